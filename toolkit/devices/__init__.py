"""How a device is reached: one transport a file, found by the device's `transport`; the registry of known devices."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager

from acmix.toolkit.device import Device, Transport
from acmix.toolkit.devices._registry import check_device, load_device

__all__ = ["connect", "load_device"]


def connect(device: Device) -> AbstractContextManager[Transport]:
    """The device's transport; nothing of a connection stays when the context closes.

    Connecting asks nothing of the device yet: state() tells whether it is there. The work folder is the connection's
    own: a second push of the same file is short, and it goes with remove_work_folder() or with the connection.
    """
    check_device(device)
    opened: AbstractContextManager[Transport] = importlib.import_module(
        f"acmix.toolkit.devices.{device.transport}"
    ).connect(device)
    return opened
