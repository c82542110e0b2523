"""`acmix inspect` and `acmix list`: no flag is passed over, and a wrong name is answered with those that are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from acmix.apps import forecasts, verbs
from acmix.toolkit.errors import UsageError


@pytest.mark.parametrize("flags", [{"target": "onnx"}, {"inputs": ["1x3x32x32"]}], ids=["target", "input"])
def test_a_flag_of_a_forecast_beside_an_artifact_is_refused(flags: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="looks at an artifact, or at a model before its export"):
        verbs.inspect(tmp_path, **flags)  # type: ignore[arg-type]


def test_a_flag_of_artifacts_beside_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="--every lists the operators of an artifact: leave it out"):
        forecasts.show(None, "mobilenet_v2", "onnx", (), every=True, as_json=False)


def test_an_unknown_list_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="Did you mean rewrites\\?\nacmix lists models, targets, recipes, rewrites"):
        verbs.list_room("rewrite")
