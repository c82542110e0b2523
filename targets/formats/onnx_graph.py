"""Reading an ONNX graph: its interface, its shapes, its multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np

from acmix.toolkit import float16
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Layout, TensorSpec

if TYPE_CHECKING:
    import onnx

Shapes = dict[str, tuple[int, ...]]
WeightType = Literal["int8", "uint8"]


def holds_int8(model: onnx.ModelProto) -> bool:
    """Whether any of the stored tensors is of int8."""
    import onnx

    return any(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)


def interface(
    model: onnx.ModelProto, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The file's own inputs and outputs, with the axis order of the job's; a dynamic shape is refused."""
    layouts = [{spec.name: spec.layout for spec in specs} for specs in (inputs, outputs)]
    inside, outside = (
        tuple(_tensor_spec(value, known) for value in values)
        for values, known in zip((model.graph.input, model.graph.output), layouts, strict=True)
    )
    return inside, outside


def _tensor_spec(value: onnx.ValueInfoProto, layouts: dict[str, Layout]) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    if not all(axis.HasField("dim_value") for axis in tensor.shape.dim):
        raise UsageError(
            f"'{value.name}' has no fixed shape in the converted model; "
            "phones are served with static shapes: capture the model with example inputs of one size."
        )
    shape = tuple(axis.dim_value for axis in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, shape, dtype, layouts.get(value.name, "any"))


WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def halve_weights(model: onnx.ModelProto) -> tuple[int, list[str]]:
    """Store weights as float16 behind a Cast; how many, and the names of those beyond float16's range.

    Biases stay float32, they weigh nothing; so do the filters of precise convolutions, see
    `acmix.toolkit.float16`. A session folds the casts when it loads.
    """
    import onnx

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    chosen = {node.input[1]: node for node in graph.node if node.op_type in WEIGHTED and node.input[1] in stored}
    casts, beyond = [], []
    for name, node in chosen.items():
        weights = onnx.numpy_helper.to_array(stored[name])
        if weights.dtype != np.float32 or (node.op_type == "Conv" and float16.stays_float32(weights.shape)):
            continue
        if not np.abs(weights).max(initial=0) <= float16.LARGEST:
            beyond.append(name)
            continue
        half = f"{name}.float16"
        stored[name].CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float16), half))
        casts.append(onnx.helper.make_node("Cast", [half], [name], f"{name}.float32", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(casts), beyond


def shapes_of(model: onnx.ModelProto) -> Shapes:
    """The shape of every tensor that shape inference can name."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return shapes


def macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-accumulates of one node: convolutions and matrix products; 0 for everything else."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    left, right, out = (shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return prod(out) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(out) * (left[0] if transposed else left[-1]) if left else 0


def what_became(model: onnx.ModelProto, kernels: onnx.ModelProto) -> str:
    """One sentence on the session: what fusion left, what it added, and in which precision it computes."""
    import onnxruntime

    kinds = Counter(node.op_type for node in kernels.graph.node)
    added = ", ".join(f"{kinds[kind]} {kind}" for kind in ("ReorderInput", "ReorderOutput", "Cast") if kinds[kind])
    text = (
        f"onnxruntime {onnxruntime.__version__}, whose only provider here takes the whole file: "
        f"{len(model.graph.node)} nodes become {kinds.total()} kernels" + (f" ({added})" if added else "")
    )
    widened = _multiplies_halves(model) and not _multiplies_halves(kernels)
    return text + ("; float16 weights are widened: its arithmetic here is float32" if widened else "")


def _multiplies_halves(model: onnx.ModelProto) -> bool:
    """Whether a convolution or a matrix product reads float16 weights."""
    from onnx import TensorProto

    halves = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    products = [node for node in model.graph.node if node.op_type.endswith(("Conv", "Gemm", "MatMul"))]
    return any(name in halves for node in products for name in node.input)
