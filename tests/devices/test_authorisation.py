"""A phone and a board that do not trust us yet, seen through the real clients."""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from acmix.toolkit.device import Device
from acmix.toolkit.devices import adb, connect
from acmix.toolkit.devices._checks import examine
from acmix.toolkit.errors import GateError


@pytest.fixture
def endpoint(private_adb_server: None) -> Iterator[Any]:
    """The phone's end, in this process; the client is the real one."""
    found = importlib.util.spec_from_file_location("adb_endpoint", Path(__file__).parent / "adb_endpoint.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made = module.PhoneEndpoint()
    yield made
    made.close()


def test_a_phone_is_unauthorized_until_its_owner_allows_it(endpoint: Any) -> None:
    device = Device("phone", "adb", f"127.0.0.1:{endpoint.port}")
    with connect(device) as transport:
        state = transport.state()
        assert state.availability == "unauthorized"
        assert "Allow USB debugging" in state.cure
        with pytest.raises(GateError, match=r"unauthorized[\s\S]*Allow USB debugging"):
            transport.run(["true"], timeout_s=10)
        last = examine(device)[-1]
        assert not last.fine and "unauthorized" in last.found
        endpoint.trust.set()
        deadline = time.monotonic() + 10
        while not transport.state().ready and time.monotonic() < deadline:
            time.sleep(0.2)
        assert transport.state().ready
    (attached,) = adb.attached(adb.program())
    assert attached.model == "Sim Phone"


def test_a_phone_that_is_not_there_is_absent(private_adb_server: None) -> None:
    for address in ("8A1X0Z3K", "127.0.0.1:9"):
        with connect(Device("phone", "adb", address)) as transport:
            state = transport.state()
            assert state.availability in ("absent", "offline") and state.cure


def test_a_board_that_takes_none_of_our_keys_is_unauthorized(
    start: Callable[..., AbstractContextManager[Any]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with (
        start("strict", request, tmp_path, "PubkeyAuthentication no") as neighbour,
        connect(neighbour.device) as transport,
    ):
        state = transport.state()
        assert state.availability == "unauthorized"
        assert "ssh-copy-id strict" in state.cure
        with pytest.raises(GateError, match="unauthorized"):
            transport.run(["true"], timeout_s=10)


def test_a_board_with_another_host_key_is_not_talked_to(
    start: Callable[..., AbstractContextManager[Any]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with start("swapped", request, tmp_path) as neighbour:
        home = request.getfixturevalue("ssh_home").folder
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
        (home / "swapped.known").write_text(f"swapped {(tmp_path / 'other.pub').read_text()}")
        with connect(neighbour.device) as transport:
            state = transport.state()
        assert state.availability == "unauthorized"
        assert "host key" in state.detail
