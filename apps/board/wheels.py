"""The runtimes of a device, out of their own Python packages: the version that this installation has, for arm64."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import platformdirs

from acmix.toolkit.device import printable
from acmix.toolkit.errors import UsageError

DOWNLOAD_TIMEOUT_S = 600.0
PLATFORMS = (
    "manylinux2014_aarch64",
    *(f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34)),
)


def cache_folder() -> Path:
    """Where runners and runtimes are kept between calls; all of it can be made again."""
    return Path(platformdirs.user_cache_dir("acmix"))


def installed_version(package: str, extra: str) -> str:
    """The version here: the device gets the same. UsageError without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(f"{package} is not installed here.\nInstall it: pip install 'acmix[{extra}]'.") from error


def find_wheel(package: str, version: str) -> Path:
    """The arm64 wheel of a package, downloaded once by pip; UsageError when it cannot be had."""
    folder = cache_folder() / "wheels"
    pattern = f"{re.sub('[-.]+', '_', package)}-{version}-*aarch64.whl"
    found = sorted(folder.glob(pattern))
    if not found:
        _download(package, version, folder)
        found = sorted(folder.glob(pattern))
    if not found:
        raise UsageError(f"pip brought no arm64 wheel of {package} {version}.\nPut one into {folder}.")
    return found[0]


def _download(package: str, version: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--implementation", "cp", "--python-version", python]
    command += [word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    try:
        done = subprocess.run(
            [*command, f"{package}=={version}"], capture_output=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
        said = printable(done.stderr[-300:]) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        raise UsageError(
            f"the arm64 wheel of {package} {version} cannot be downloaded: {said}\n"
            f"With a network, pip does it; without one, put the wheel into {folder}."
        )


def unpack(wheel: Path, prefixes: tuple[str, ...], folder: Path) -> None:
    """The files of a wheel below any of the prefixes, into a folder; UsageError for a wheel without them."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(prefixes) and not name.endswith("/")]
            if any(".." in PurePosixPath(name).parts for name in names):
                raise UsageError(f"{wheel} holds a path that leaves its folder.\nRemove it; pip brings another.")
            for name in names:
                archive.extract(name, folder)
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{wheel} cannot be unpacked: {error}\nRemove it; pip brings another.") from error
    if not names:
        raise UsageError(f"{wheel.name} has no {' nor '.join(prefixes)}: this acmix does not know that version.")


def digest_word(*parts: bytes) -> str:
    """Sixteen hex digits that tell one build from another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def environment() -> dict[str, str]:
    """For compilers: messages in English, so that errors can be read by whoever helps."""
    return {**os.environ, "LC_ALL": "C"}
