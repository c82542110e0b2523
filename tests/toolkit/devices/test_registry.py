"""Device files: found by name, strict about what is in them, and never a way into a shell."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acmix.toolkit.device import Device
from acmix.toolkit.devices import _registry, connect, load_device
from acmix.toolkit.errors import UsageError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder of devices; the user's is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "devices"


def test_the_host_is_always_there(project: Path) -> None:
    assert load_device("host") == Device("host", "local", description="this machine")
    assert [entry.device.name for entry in _registry.entries()] == ["host"]


def test_what_is_written_is_read_again(project: Path) -> None:
    device = Device("rpi_5", "ssh", "pi@10.0.0.5", (2, 3), 2, "/opt/bench", 'a "board" \\ é')
    file = _registry.write(device, project, overwrite=False)
    assert tomllib.loads(file.read_text("utf-8"))["cores"] == [2, 3]
    assert load_device("rpi_5") == device


@settings(deadline=None)
@given(st.text().filter(str.isprintable))
def test_every_printable_description_is_valid_toml(description: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        device = Device("d", "local", description=description)
        assert _registry.read(_registry.write(device, Path(folder), overwrite=False)) == device


def test_the_project_s_file_hides_the_user_s(project: Path) -> None:
    _registry.write(Device("board", "ssh", "mine"), _registry.folders()[1], overwrite=False)
    _registry.write(Device("other", "ssh", "other"), _registry.folders()[1], overwrite=False)
    _registry.write(Device("board", "ssh", "ours"), project, overwrite=False)
    assert load_device("board").address == "ours"
    assert [entry.device.address for entry in _registry.entries()] == ["", "ours", "other"]


def test_an_unknown_name_is_answered_with_a_near_one(project: Path) -> None:
    _registry.write(Device("rpi_5", "ssh", "pi"), project, overwrite=False)
    with pytest.raises(UsageError, match="Did you mean rpi_5"):
        load_device("rpi5")


@pytest.mark.parametrize("name", ["../rpi", "", "a/b", "-x", "a b", "a\n", "$(id)", "é", "x" * 100])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be a device's name"):
        _registry.write(Device(name, "local"), tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("transport", "address"),
    [
        *[
            ("ssh", a)
            for a in ("", "-oProxyCommand=id", "pi@-host", "a b", "a;b", "$(id)", "`id`", "a\nb", "pi@", "a'b")
        ],
        *[("ssh", a) for a in ("ssh://-x", "pi@host/../x", "a@b@c", "host\x1b[2J", "x" * 400)],
        *[("adb", a) for a in ("", "-s", "a b", "a;b", "$(id)", "a\n", "../x")],
        *[("ios", a) for a in ("", "--all", "xyz", "0000", "00008030 1122")],
        ("local", "somewhere"),
    ],
)
def test_an_address_that_a_program_could_misread_is_refused(transport: Any, address: str) -> None:
    with pytest.raises(UsageError, match="cannot reach the address") as raised:
        connect(Device("d", transport, address))
    assert str(raised.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("transport", "address"),
    [
        *[("ssh", a) for a in ("rpi", "pi@raspberrypi.local", "ssh://pi@10.0.0.5:2222", "pi@[fe80::1%eth0]", "::1")],
        *[("adb", a) for a in ("8A1X0Z3K", "192.168.1.7:5555", "emulator-5554", "adb-8A1-x2._adb-tls-connect._tcp")],
        ("ios", "00008030-001122334455667E"),
    ],
)
def test_addresses_of_every_usual_form_are_taken(transport: Any, address: str) -> None:
    _registry.check_device(Device("d", transport, address))


@pytest.mark.parametrize("folder", ["../x", "a/../../b", "a\nb", "-rf", "~/bench", "~pi"])
def test_a_work_folder_that_leads_elsewhere_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="the work folder"):
        connect(Device("d", "ssh", "host", work_folder=folder))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("transport = 'ssh'\naddres = 'x'", r"no field 'addres'\. Did you mean address"),
        ("transport = 'telnet'", r"is no device file"),
        ("transport = ", r"is no device file"),
        ("transport = 'local'\ncores = 'all'", r"is no device file"),
        ("transport = 'local'\nthreads = 0", r"threads = 0"),
        ("transport = 'local'\ncache_mb = -1", r"cache_mb = -1\.\nIt is a number from 0, which keeps nothing there"),
        ("transport = 'local'\ncache_mb = 1000001", r"cache_mb = 1000001"),
        ("transport = 'local'\ncores = [1, 1]", r"cores = \[1, 1\]"),
        ("address = 'x'", r"is no device file"),
        ("x" * 100_000, r"more than 65536 bytes"),
        (
            "transport = 'local'\ndescription = 'a\\u001b'\n".replace("'a", '"a').replace("b'", 'b"'),
            r"control characters",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name(project: Path, text: str, sentence: str) -> None:
    project.mkdir()
    (project / "bad.toml").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=sentence) as raised:
        load_device("bad")
    assert "bad" in str(raised.value)


def test_bytes_that_are_no_text_are_refused(project: Path) -> None:
    project.mkdir()
    (project / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no device file"):
        load_device("bad")


def test_a_device_is_not_overwritten_unasked(project: Path) -> None:
    _registry.write(Device("a", "local"), project, overwrite=False)
    with pytest.raises(UsageError, match="exists already"):
        _registry.write(Device("a", "local"), project, overwrite=False)
    _registry.write(Device("a", "local", threads=2), project, overwrite=True)
    assert load_device("a").threads == 2
    with pytest.raises(UsageError, match="always there"):
        _registry.write(Device("host", "local"), project, overwrite=True)
