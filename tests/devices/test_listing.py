"""The command that `acmix devices list` offers for an attached device: the address in it is the device's own word."""

from __future__ import annotations

import shlex

import pytest

from acmix.apps.devices import _adding
from acmix.toolkit.device import DeviceState
from acmix.toolkit.devices._discovery import Listed


@pytest.mark.parametrize("address", ["8A1X0Z3K", "192.168.1.7:5555", "adb-8A1-x2._adb-tls-connect._tcp"])
def test_a_usual_address_can_be_pasted(address: str) -> None:
    words = shlex.split(_adding(Listed("", "adb", address, DeviceState("ready"))))
    assert words[:3] == ["acmix", "devices", "add"] and words[-2:] == ["--address", address]


@pytest.mark.parametrize("address", ["$(id)", "a;b", "-s", "a b", "`id`", "???????????", ""])
def test_an_address_that_a_shell_could_misread_gets_no_command(address: str) -> None:
    assert _adding(Listed("", "adb", address, DeviceState("ready"))) == ""
