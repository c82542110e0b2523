"""What `acmix selftest` makes and judges by itself, without a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acmix.apps.selftest import runs
from acmix.apps.selftest.command import _addresses, _without_address, export_tiny
from acmix.apps.selftest.links import _numbers
from acmix.apps.selftest.record import Check, FailedError, Record, Report, SkippedError, Subject, conduct, read, write
from acmix.apps.selftest.tiny import make_net
from acmix.toolkit.conditions import Battery, Clock, Sensor, State
from acmix.toolkit.device import Device
from acmix.toolkit.errors import GateError, UsageError


def test_the_tiny_network_is_the_same_everywhere_and_draws_nothing_from_the_callers_seed() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    one, other = make_net().state_dict(), make_net().state_dict()
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert float(one["1.running_var"].std()) > 0.1


def test_the_tiny_network_is_exported_as_floats_and_as_integers(tmp_path: Path) -> None:
    made = [artifact for one in ("float32", "w8a8") for artifact in export_tiny(tmp_path, one, ("onnx",))]
    assert [a.manifest.recipe.name for a in made] == ["float32", "w8a8"]
    assert all(a.manifest.proof.verdict == "passed" for a in made)
    quantized = made[1].manifest.quantization
    assert quantized is not None and quantized.layers >= 5


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (FailedError("no", seen=3), "failed"),
        (SkippedError("cannot be"), "skipped"),
        (GateError("the device is \x1b[31mgone\nPlug it in."), "failed"),
        (UsageError("the artifact was changed"), "failed"),
    ],
)
def test_whatever_goes_wrong_becomes_a_record_in_safe_words(error: Exception, outcome: str) -> None:
    def run() -> dict[str, object]:
        raise error

    made = conduct(Check("one", "it holds", run))
    assert made.outcome == outcome and made.reason and made.reason.isprintable()
    assert made.evidence == ({"seen": 3} if isinstance(error, FailedError) else {})


def test_an_address_is_in_neither_the_reason_nor_the_evidence() -> None:
    device = Device("rpi_5", "ssh", "pi@10.1.2.3")
    said = "pi@10.1.2.3 is offline: ssh: connect to host 10.1.2.3 port 22"
    made = _without_address(Record("link", "it is there", "failed", said, {"said": [said]}), _addresses(device))
    assert "10.1.2.3" not in repr(made) and "is offline: ssh: connect to host (its address) port 22" in made.reason
    assert _without_address(made, _addresses(Device("host", "local"))) == made


def test_a_defect_of_ours_is_no_failure_of_the_device() -> None:
    with pytest.raises(ZeroDivisionError):
        conduct(Check("one", "it holds", lambda: {"x": 1 / 0}))


def test_readings_that_cannot_be_are_told() -> None:
    right = State(sensors=(Sensor("cpu", 51.0),), clocks=(Clock((0,), now_khz=1_800_000, hardware_khz=2_400_000),))
    assert runs._unlikely(right) == [] and runs._unlikely(State()) == []
    wrong = State(sensors=(Sensor("cpu", 51000.0),), clocks=(Clock((0,), now_khz=0),), battery=Battery(percent=850.0))
    assert len(runs._unlikely(wrong)) == 3
    assert runs._backwards(State(busy_s=10.0), State(busy_s=9.0)) == ["busy_s went from 10 to 9"]


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", {0}), ("0-2,5", {0, 1, 2, 5}), ("", set()), ("x", set()), ("1-", {1}), ("-1", set())]
)
def test_lists_of_processors_are_read(text: str, numbers: set[int]) -> None:
    assert _numbers(text) == numbers


def test_a_report_is_read_back_and_nothing_half_written_stays(tmp_path: Path) -> None:
    report = Report(Subject("box", "ssh", "", (2, 3), 1), "begun", "ended", {}, {}, ())
    write(report, tmp_path / "facts.json")
    assert read(tmp_path / "facts.json") == report
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UsageError, match="is no selftest"):
        read(tmp_path / "other.json")
