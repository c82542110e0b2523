"""A bicubic or antialiased resize as two constant matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._graph import Emit, add_constant, calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten
RESIZES = (ATEN.upsample_bicubic2d.vec, ATEN._upsample_bicubic2d_aa.vec, ATEN._upsample_bilinear2d_aa.vec)


@dataclass(frozen=True)
class BicubicResize:
    """Replace a separable resize by `R_y x R_x^T`, R being what torch's own kernel makes of the identity.

    1. x is float32 or float64, [N, C, H, W], and every size is fixed; any align_corners, sizes or scales.
    2. The axis that grows less goes first: the second product pays for what the first has grown.
    3. An antialiased resize from or to one column stays: torch's own kernel is not separable there.
    4. A plain bilinear resize stays: every runtime has it, both ways of align_corners, and faster.

    Core ML's converter refuses bicubic and drops the antialiasing of bilinear without a word; XNNPACK leaves
    index gathers outside its delegates; ONNX Runtime has bicubic, 50 times slower than these two products.

        upsample_bicubic2d(x, ...)   becomes   permute(linear(permute(linear(x, R_x)), R_y))
    """

    name: str = "bicubic_resize"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace(program, node) for node in calls(program, *RESIZES))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, node: Node) -> bool:
    x, output = node.args[0], shape_of(node)
    shape = shape_of(x) if isinstance(x, Node) else None
    if not isinstance(x, Node) or shape is None or output is None:
        return False
    if x.meta["val"].dtype not in (torch.float32, torch.float64):
        return False
    # torch's antialiasing kernels are not separable where one side is a single pixel wide.
    if node.target is not ATEN.upsample_bicubic2d.vec and 1 in (shape[3], output[3]):
        return False
    emit = emit_before(program, node)
    axes = [axis for axis in (2, 3) if not _is_identity(_matrix(node, axis))]
    axes.sort(key=lambda axis: output[axis] / shape[axis] if shape[axis] else 0)
    resized = x
    for axis in axes:
        resized = _product(program, emit, resized, axis, _matrix(node, axis))
    replace(program, node, emit(ATEN.clone.default, x) if resized is x else resized)
    return True


def _matrix(node: Node, axis: int) -> Tensor:
    """[new, old]: one row for each new pixel, from the operator itself along one axis, the other of one pixel."""
    x, size, align_corners, scales = node.args[0], node.args[1], node.args[2], (*node.args, None)[3]
    assert isinstance(x, Node)
    old = int(x.meta["val"].shape[axis])
    # One channel a pixel, always along the width: torch's antialiasing kernel goes wrong on images one pixel wide.
    identity = torch.eye(old, dtype=x.meta["val"].dtype).reshape(1, old, 1, old)
    new_size = [1, int(str(size[axis - 2]))] if isinstance(size, list | tuple) else None
    new_scales = [1.0, float(str(scales[axis - 2]))] if isinstance(scales, list | tuple) else None
    columns = node.target(identity, new_size, align_corners, new_scales)  # type: ignore[operator]
    matrix: Tensor = columns[0, :, 0, :].t()
    return matrix


def _is_identity(matrix: Tensor) -> bool:
    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype))


def _product(program: ExportedProgram, emit: Emit, x: Node, axis: int, matrix: Tensor) -> Node:
    weight = add_constant(program, "resize", matrix.contiguous())
    if axis == 3:
        return emit(ATEN.linear.default, x, weight)
    turned = emit(ATEN.linear.default, emit(ATEN.permute.default, x, [0, 1, 3, 2]), weight)
    return emit(ATEN.permute.default, turned, [0, 1, 3, 2])


REWRITE = BicubicResize()
