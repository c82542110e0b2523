"""Attached iPhones, asked of usbmuxd by its own protocol: property lists behind a header of four 32-bit words.

Every system with an iPhone attached runs usbmuxd: macOS as its own service, Linux from the package usbmuxd.
"""

from __future__ import annotations

import os
import plistlib
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acmix.toolkit.device import printable
from acmix.toolkit.errors import GateError

SOCKET = "/var/run/usbmuxd"
VARIABLE = "USBMUXD_SOCKET_ADDRESS"
TIMEOUT_S = 5.0
LIMIT_BYTES = 1 << 20
PLIST_MESSAGE, PLIST_VERSION = 8, 1
LOCKDOWN_PORT = 62078


@dataclass(frozen=True)
class Phone:
    """One attached device. name, product and system are '' where it does not say."""

    udid: str
    number: int
    paired: bool
    name: str = ""
    product: str = ""
    system: str = ""


def address() -> str | None:
    """Where usbmuxd listens, 'UNIX:path' or 'host:port'; None when there is none."""
    if told := os.environ.get(VARIABLE):
        return told
    return f"UNIX:{SOCKET}" if Path(SOCKET).exists() else None


class Connection:
    """One conversation, over before its time-out."""

    def __init__(self, where: str) -> None:
        self.deadline = time.monotonic() + TIMEOUT_S
        try:
            if where.upper().startswith("UNIX:") or "/" in where:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.settimeout(TIMEOUT_S)
                self.socket.connect(where[5:] if where.upper().startswith("UNIX:") else where)
            else:
                host, _, port = where.rpartition(":")
                self.socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        except (OSError, ValueError, OverflowError) as error:
            raise GateError(f"usbmuxd does not answer at {printable(where)}: {error}") from error

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One question to usbmuxd itself."""
        body = plistlib.dumps({"ClientVersionString": "acmix", "ProgName": "acmix", **message})
        self._send(struct.pack("<4I", 16 + len(body), PLIST_VERSION, PLIST_MESSAGE, 1) + body)
        size, _, kind, _ = struct.unpack("<4I", self._receive(16))
        if kind != PLIST_MESSAGE or not 16 <= size <= LIMIT_BYTES:
            raise GateError(f"usbmuxd answers something else than property lists (kind {kind}, {size} bytes)")
        return _read(self._receive(size - 16))

    def ask_lockdown(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One question to the device's own lockdownd, after Connect."""
        body = plistlib.dumps({"Label": "acmix", **message})
        self._send(struct.pack(">I", len(body)) + body)
        (size,) = struct.unpack(">I", self._receive(4))
        if size > LIMIT_BYTES:
            raise GateError(f"the device answers {size} bytes to a short question")
        return _read(self._receive(size))

    def _send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise GateError(f"usbmuxd closed the connection: {error}") from error

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                raise GateError(f"usbmuxd gave no whole answer within {TIMEOUT_S:g} s")
            self.socket.settimeout(left_s)
            try:
                some = self.socket.recv(size - len(data))
            except OSError as error:
                raise GateError(f"usbmuxd gave no whole answer: {error}") from error
            if not some:
                raise GateError("usbmuxd closed the connection in the middle of an answer")
            data += some
        return bytes(data)


def _read(body: bytes) -> dict[str, Any]:
    try:
        answer = plistlib.loads(body)
    except Exception as error:
        # plistlib lets many exceptions of its parsers through, and the bytes are a stranger's.
        raise GateError(f"usbmuxd answers what is no property list: {printable(str(error))}") from error
    if not isinstance(answer, dict):
        raise GateError("usbmuxd answers a property list of another form")
    return answer


def phones() -> tuple[Phone, ...]:
    """Every attached device; empty without usbmuxd. GateError when it answers nonsense or nothing."""
    where = address()
    if where is None:
        return ()
    with Connection(where) as connection:
        listed = connection.ask({"MessageType": "ListDevices"}).get("DeviceList")
    found = []
    for each in listed if isinstance(listed, list) else []:
        properties = each.get("Properties") if isinstance(each, dict) else None
        if isinstance(properties, dict):
            udid, number = properties.get("SerialNumber"), properties.get("DeviceID")
            if isinstance(udid, str) and isinstance(number, int):
                found.append(_describe(where, printable(udid, 64), number))
    return tuple(found)


def _describe(where: str, udid: str, number: int) -> Phone:
    with Connection(where) as connection:
        answer = connection.ask({"MessageType": "ReadPairRecord", "PairRecordID": udid})
    paired = isinstance(answer.get("PairRecordData"), bytes)
    try:
        name, product, system = (_value(where, number, key) for key in ("DeviceName", "ProductType", "ProductVersion"))
    except GateError:
        # A locked or sleeping device keeps silent: it is attached all the same.
        return Phone(udid, number, paired)
    return Phone(udid, number, paired, name, product, system)


def _value(where: str, number: int, key: str) -> str:
    with Connection(where) as connection:
        # usbmuxd wants the port in network order inside a number of the host's order.
        port = socket.htons(LOCKDOWN_PORT)
        if connection.ask({"MessageType": "Connect", "DeviceID": number, "PortNumber": port}).get("Number") != 0:
            raise GateError("the device refuses the connection")
        value = connection.ask_lockdown({"Request": "GetValue", "Key": key}).get("Value")
    return printable(value, 60) if isinstance(value, str) else ""
