"""Max pooling with its stride written out: the same numbers, and Core ML takes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.rewrites.max_pool_stride import REWRITE


class Pool(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, **self.options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"kernel_size": 2}, 1),
        ({"kernel_size": (3, 2)}, 1),
        ({"kernel_size": 3, "padding": 1}, 1),
        ({"kernel_size": 3, "stride": 2}, 0),
        ({"kernel_size": 2, "stride": 1, "padding": 1}, 0),
    ],
)
def test_the_pooled_map_stays_the_same(options: dict[str, object], times: int) -> None:
    x = torch.randn(1, 3, 9, 7, dtype=torch.float64)
    program = torch.export.export(Pool(**options), (x,))
    assert REWRITE.apply(program) == times
    program.validate()
    assert torch.equal(program.module()(x), Pool(**options)(x))
    assert REWRITE.apply(program) == 0


def test_coremltools_takes_a_pooling_only_with_its_stride() -> None:
    coremltools = pytest.importorskip("coremltools")

    def convert(rewritten: bool) -> object:
        program = torch.export.export(Pool(kernel_size=2), (torch.randn(1, 3, 8, 8),))
        if rewritten:
            assert REWRITE.apply(program) == 1
        return coremltools.convert(program.run_decompositions({}), skip_model_load=True)

    with pytest.raises(ValueError, match="expected minimum 3"):
        convert(rewritten=False)
    assert convert(rewritten=True)
