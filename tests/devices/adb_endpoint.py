"""A phone's end of the ADB protocol: authorisation as on a real one, which Debian's adbd does not ask for.

Only what the states of a phone need. Every message: command, two arguments, length, byte sum, inverted command
(AOSP, packages/modules/adb: protocol.txt).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading

HEADER = struct.Struct("<6I")
TOKEN, SIGNATURE, PUBLIC_KEY = 1, 2, 3
VERSION, MAX_PAYLOAD = 0x01000001, 4096
BANNER = b"device::ro.product.name=sim;ro.product.model=Sim_Phone;ro.product.device=sim;features=shell_v2,cmd"


def code(word: str) -> int:
    """The number of a four-letter command."""
    return int.from_bytes(word.encode(), "little")


class PhoneEndpoint:
    """Listens on the loopback; `trust` is the owner's tap on 'Allow'."""

    def __init__(self) -> None:
        self.trust = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), connection, connection.makefile("rb") as incoming:
            while head := incoming.read(HEADER.size):
                command, kind, _, length, _, _ = HEADER.unpack(head)
                incoming.read(length)
                if command == code("CNXN") or (command == code("AUTH") and kind == SIGNATURE):
                    # No key is known before the owner has trusted one.
                    self._send(connection, "AUTH", TOKEN, os.urandom(20))
                elif command == code("AUTH") and kind == PUBLIC_KEY:
                    threading.Thread(target=self._ask_owner, args=(connection,), daemon=True).start()

    def _ask_owner(self, connection: socket.socket) -> None:
        self.trust.wait(60)
        with contextlib.suppress(OSError):
            self._send(connection, "CNXN", VERSION, BANNER)

    def _send(self, connection: socket.socket, command: str, argument: int, data: bytes) -> None:
        word, second = code(command), MAX_PAYLOAD if command == "CNXN" else 0
        connection.sendall(HEADER.pack(word, argument, second, len(data), sum(data), word ^ 0xFFFFFFFF) + data)
