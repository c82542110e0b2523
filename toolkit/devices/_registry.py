"""Known devices: one TOML file each, found by file name in ./devices and in the user's own folder."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import platformdirs

from acmix.toolkit.device import HOST_NAME, Device, TransportName, printable
from acmix.toolkit.errors import UsageError, did_you_mean

FILE_LIMIT_BYTES = 1 << 16
MOST_CACHE_MB = 1_000_000
"""A shell that counts in 32 bits must be able to add it up in KiB."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ADDRESSES: dict[TransportName, tuple[re.Pattern[str], str]] = {
    "local": (re.compile(r""), "none: leave it out"),
    "adb": (re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"), "a serial of `adb devices`: 8A1X0Z3K, 192.168.1.7:5555"),
    "ssh": (
        re.compile(r"(ssh://)?([A-Za-z0-9_][A-Za-z0-9_.-]{0,63}@)?[A-Za-z0-9_:\[][A-Za-z0-9_.:%\]-]{0,252}"),
        "a host, with or without a user, or a name of your ssh config: pi@raspberrypi.local, ssh://pi@10.0.0.5:2222",
    ),
    "ios": (re.compile(r"[0-9A-Fa-f][0-9A-Fa-f-]{7,63}"), "a UDID: 00008030-001122334455667E"),
}
HOST = Device(HOST_NAME, "local", description="this machine")


@dataclass(frozen=True)
class Entry:
    """A device of the registry and the file that says so; file: None for the host."""

    device: Device
    file: Path | None


def folders() -> tuple[Path, Path]:
    """Where device files are: the project's, which wins, and the user's."""
    return Path("devices"), Path(platformdirs.user_config_dir("acmix")) / "devices"


def check_device(device: Device) -> None:
    """UsageError for a field that cannot be, or that a shell or a program could take for something else."""
    if not NAME.fullmatch(device.name):
        raise UsageError(
            f"{printable(device.name)!r} cannot be a device's name.\n"
            "Use letters, digits, dots, dashes and underscores, beginning with a letter or digit: rpi_5."
        )
    if device.transport not in ADDRESSES:
        raise UsageError(
            f"device {device.name!r}: there is no transport {printable(device.transport)!r}."
            f"\nWhat there is: {', '.join(get_args(TransportName))}."
        )
    pattern, example = ADDRESSES[device.transport]
    if not pattern.fullmatch(device.address):
        shown = printable(device.address)
        raise UsageError(
            f"device {device.name!r}: {device.transport} cannot reach the address {shown!r}.\nIt is {example}."
        )
    if not 1 <= device.threads <= 256:
        raise UsageError(f"device {device.name!r}: threads = {device.threads}.\nIt is a number from 1 to 256.")
    if any(not 0 <= core < 4096 for core in device.cores) or len(set(device.cores)) != len(device.cores):
        raise UsageError(f"device {device.name!r}: cores = {list(device.cores)}.\nEach is a processor's number, once.")
    if not 0 <= device.cache_mb <= MOST_CACHE_MB:
        raise UsageError(
            f"device {device.name!r}: cache_mb = {device.cache_mb}.\n"
            f"It is a number from 0, which keeps nothing there, to {MOST_CACHE_MB}."
        )
    folder = device.work_folder
    # Quoted, as every word for a device is, ~ would be a folder of that name.
    if not folder.isprintable() or ".." in Path(folder).parts or folder.startswith(("-", "~")):
        raise UsageError(
            f"device {device.name!r}: the work folder {printable(folder)!r} cannot be used.\n"
            "It is a path on the device, absolute or from the home folder (bench/work, not ~/bench/work), without "
            "'..'; acmix makes its own in it."
        )
    if not device.description.isprintable():
        raise UsageError(f"device {device.name!r}: its description has control characters; write it in one line.")


def entries() -> tuple[Entry, ...]:
    """The host, then every device file, by name; the project's file hides the user's of the same name."""
    found: dict[str, Path] = {}
    for folder in reversed(folders()):
        found |= {file.stem: file for file in sorted(folder.glob("*.toml")) if file.stem != HOST_NAME}
    return (Entry(HOST, None), *(Entry(read(found[name]), found[name]) for name in sorted(found)))


def load_device(name: str) -> Device:
    """The device of `devices/<name>.toml`; `host` is always there."""
    if name == HOST_NAME:
        return HOST
    known = list(_names())
    for folder in folders():
        if name in known and (file := folder / f"{name}.toml").is_file():
            return read(file)
    raise UsageError(
        f"no device is called {printable(name)!r}.{did_you_mean(name, known)}\n"
        "`acmix devices list` shows what is known and attached; `acmix devices add` writes a device down."
    )


def _names() -> Iterator[str]:
    yield HOST_NAME
    for folder in folders():
        yield from (file.stem for file in sorted(folder.glob("*.toml")))


def read(file: Path) -> Device:
    """The device of one file; its name is the file's."""
    try:
        if file.stat().st_size > FILE_LIMIT_BYTES:
            raise UsageError(f"{file} is no device file: it has more than {FILE_LIMIT_BYTES} bytes.")
        table = tomllib.loads(file.read_text("utf-8"))
        known = {field.name for field in dataclasses.fields(Device)} - {"name"}
        for key in table.keys() - known:
            listing = ", ".join(sorted(known))
            raise UsageError(f"{file}: there is no field {key!r}.{did_you_mean(key, known)}\nWhat there is: {listing}.")
        device = msgspec.convert({"name": file.stem, **table}, Device)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{file} is no device file: {printable(str(error))}.\ndocs/devices.md shows one.") from error
    check_device(device)
    return device


def write(device: Device, folder: Path, overwrite: bool) -> Path:
    """Save a device in `folder`; its file's name is its own."""
    check_device(device)
    if device.name == HOST_NAME:
        raise UsageError(f"{HOST_NAME!r} is this machine and always there.\nGive the device another name.")
    file = folder / f"{device.name}.toml"
    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists already.\nAdd --overwrite to replace it, or choose another name.")
    values: dict[str, Any] = {
        field.name: getattr(device, field.name)
        for field in dataclasses.fields(Device)
        if field.name != "name" and getattr(device, field.name) != field.default
    }
    # A printable string is written alike in JSON and in TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    folder.mkdir(parents=True, exist_ok=True)
    whole = file.with_name(f".{file.name}.new")
    whole.write_text("".join(lines), "utf-8")
    whole.replace(file)
    return file
