"""The GELU spelled out: equal in float64, and never read back by the rule that knows spellings."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites import gelu
from acmix.toolkit.rewrites.erf_gelu import REWRITE

GELU = torch.ops.aten.gelu.default


class Gelus(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.gelu(x), nn.functional.gelu(x, approximate="tanh")


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), reach=st.floats(0.01, 30), seed=st.integers(0, 99))
def test_it_is_the_same_function_and_the_tanh_gelu_stays(shape: list[int], reach: float, seed: int) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * reach
    program = torch.export.export(Gelus(), (x,))
    assert REWRITE.apply(program) == 1
    program.validate()
    for found, wanted in zip(program.module()(x), Gelus()(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert [node.kwargs for node in program.graph.nodes if node.target is GELU] == [{"approximate": "tanh"}]
    assert [REWRITE.apply(program), gelu.REWRITE.apply(program)] == [0, 0]
