"""What can be reached now: the devices of the registry, and what is attached beside them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from acmix.toolkit.device import Device, DeviceState, TransportName
from acmix.toolkit.devices import _registry, _usbmux, adb, connect, ios
from acmix.toolkit.errors import AcmixError


@dataclass(frozen=True)
class Listed:
    """One device and its state. file: of the registry; '' for the host and for what is only attached.

    name: '' for what is attached and not in the registry.
    """

    name: str
    transport: TransportName
    address: str
    state: DeviceState
    file: str = ""
    description: str = ""


def list_devices() -> tuple[tuple[Listed, ...], tuple[str, ...]]:
    """Every known and attached device, the known ones first, and what could not be looked at, as sentences."""
    entries = _registry.entries()
    with ThreadPoolExecutor(max_workers=8) as pool:
        # adb's server starts once, before many ask for it.
        searches = [pool.submit(_search, look) for look in (_phones, _iphones)]
        found = [search.result() for search in searches]
        states = list(pool.map(lambda entry: state_of(entry.device), entries))
    known = tuple(
        Listed(e.device.name, e.device.transport, e.device.address, state, str(e.file or ""), e.device.description)
        for e, state in zip(entries, states, strict=True)
    )
    addresses = {listed.address for listed in known}
    beside = tuple(listed for listing, _ in found for listed in listing if listed.address not in addresses)
    return known + beside, tuple(problem for _, problem in found if problem)


def state_of(device: Device) -> DeviceState:
    """A device's state; an error on the way to it is one too."""
    try:
        with connect(device) as transport:
            return transport.state()
    except AcmixError as error:
        detail, _, cure = str(error).partition("\n")
        return DeviceState("offline", detail, cure)


def _search(look: Callable[[], tuple[Listed, ...]]) -> tuple[tuple[Listed, ...], str]:
    try:
        return look(), ""
    except AcmixError as error:
        return (), str(error)


def _phones() -> tuple[Listed, ...]:
    attached = adb.attached(adb.program())
    return tuple(Listed("", "adb", phone.serial, phone.state, description=phone.model) for phone in attached)


def _iphones() -> tuple[Listed, ...]:
    return tuple(
        Listed("", "ios", phone.udid, ios.state_of(phone), description=phone.name) for phone in _usbmux.phones()
    )
