"""iPhones through usbmuxd's protocol, against an endpoint written apart from the client, honest and hostile."""

from __future__ import annotations

import contextlib
import plistlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acmix.toolkit.device import Device
from acmix.toolkit.devices import _usbmux, connect
from acmix.toolkit.errors import GateError, UsageError

UDID = "00008030-001122334455667E"
VALUES = {"DeviceName": "Ada's iPhone\x1b[2J", "ProductType": "iPhone15,2", "ProductVersion": "17.5"}
Reply = Callable[[dict[str, object], bool], bytes]


def mux_answer(content: dict[str, object]) -> bytes:
    body = plistlib.dumps(content)
    return struct.pack("<IIII", len(body) + 16, 1, 8, 1) + body


class Endpoint:
    """usbmuxd with one iPhone, on a socket of its own."""

    def __init__(self, path: Path, paired: bool) -> None:
        self.paired = paired
        self.raw: bytes | None = None
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as incoming, contextlib.suppress(OSError, struct.error):
            while True:
                (size,) = struct.unpack("<I12x", incoming.read(16))
                asked = plistlib.loads(incoming.read(size - 16))
                if self.raw is not None:
                    connection.sendall(self.raw)
                    if self.raw == b"":
                        time.sleep(30)
                    return
                connection.sendall(mux_answer(self._answer(asked)))
                if asked["MessageType"] == "Connect":
                    assert asked["PortNumber"] == 0x7EF2
                    self._lockdown(connection, incoming.read)

    def _answer(self, asked: dict[str, object]) -> dict[str, object]:
        if asked["MessageType"] == "ListDevices":
            return {"DeviceList": [{"DeviceID": 7, "Properties": {"SerialNumber": UDID, "DeviceID": 7}}]}
        if asked["MessageType"] == "ReadPairRecord":
            return {"PairRecordData": b"record"} if self.paired else {"MessageType": "Result", "Number": 2}
        return {"MessageType": "Result", "Number": 0}

    def _lockdown(self, connection: socket.socket, read: Callable[[int], bytes]) -> None:
        asked = plistlib.loads(read(struct.unpack(">I", read(4))[0]))
        # Binary, as a device answers: XML could not hold the escape character.
        body = plistlib.dumps({"Request": "GetValue", "Value": VALUES[asked["Key"]]}, fmt=plistlib.FMT_BINARY)
        connection.sendall(struct.pack(">I", len(body)) + body)


@pytest.fixture
def start_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], Endpoint]]:
    made: list[Endpoint] = []

    def begin(paired: bool) -> Endpoint:
        made.append(Endpoint(tmp_path / "mux", paired))
        monkeypatch.setenv("USBMUXD_SOCKET_ADDRESS", f"UNIX:{tmp_path / 'mux'}")
        monkeypatch.setattr(_usbmux, "TIMEOUT_S", 1.0)
        return made[-1]

    yield begin
    for endpoint in made:
        endpoint.server.close()


def test_a_paired_iphone_is_ready_and_named_without_control_characters(
    start_endpoint: Callable[[bool], Endpoint],
) -> None:
    start_endpoint(True)
    with connect(Device("iphone", "ios", UDID)) as transport:
        state = transport.state()
    assert state.ready
    assert state.detail == "Ada's iPhone?[2J, iPhone15,2, iOS 17.5"


def test_an_iphone_that_does_not_trust_us_is_not_paired(start_endpoint: Callable[[bool], Endpoint]) -> None:
    start_endpoint(False)
    with connect(Device("iphone", "ios", UDID.replace("-", "").lower())) as transport:
        state = transport.state()
    assert state.availability == "not paired"
    assert "Trust This Computer" in state.cure


def test_another_iphone_is_absent(start_endpoint: Callable[[bool], Endpoint]) -> None:
    start_endpoint(True)
    with connect(Device("iphone", "ios", "00008030-0000000000000000")) as transport:
        assert transport.state().availability == "absent"


def test_without_usbmuxd_it_is_absent_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USBMUXD_SOCKET_ADDRESS", raising=False)
    monkeypatch.setattr(_usbmux, "SOCKET", "/no/such/socket")
    assert _usbmux.phones() == ()
    with connect(Device("iphone", "ios", UDID)) as transport:
        assert transport.state().availability == "absent"
        with pytest.raises(UsageError, match="lets no foreign command run"):
            transport.run(["true"], timeout_s=1)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack("<4I", 2**31, 1, 8, 1),
        struct.pack("<4I", 8, 1, 8, 1),
        struct.pack("<4I", 16 + 9, 1, 8, 1) + b"<not xml>",
        struct.pack("<4I", 16 + 40, 1, 8, 1) + b"bplist00" + bytes(32),
        struct.pack("<4I", 1000, 1, 8, 1) + b"half",
    ],
)
def test_a_hostile_usbmuxd_is_a_sentence_within_its_time(
    start_endpoint: Callable[[bool], Endpoint], raw: bytes
) -> None:
    start_endpoint(True).raw = raw
    begin = time.monotonic()
    with pytest.raises(GateError) as raised:
        _usbmux.phones()
    assert time.monotonic() - begin < 5
    assert str(raised.value).isprintable()
    with connect(Device("iphone", "ios", UDID)) as transport:
        assert transport.state().availability == "offline"


@pytest.mark.parametrize("devices", [None, 5, [1], [{}], [{"Properties": 3}], [{"Properties": {"SerialNumber": 4}}]])
def test_a_list_of_another_form_is_an_empty_one(start_endpoint: Callable[[bool], Endpoint], devices: object) -> None:
    start_endpoint(True).raw = mux_answer({"DeviceList": devices} if devices is not None else {})
    assert _usbmux.phones() == ()
