"""Float16 for XNNPACK: stored filters, and on request all arithmetic; inputs and outputs stay float32."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from acmix.toolkit import float16

if TYPE_CHECKING:
    import torch
    from torch import fx
    from torch.export import ExportedProgram

WITH_FILTERS = ("aten.convolution.default", "aten.linear.default")
INTERFACE = "acmix_interface_cast"
FILTER = "acmix_float16_filter"


def half_arithmetic() -> Any:
    """A pass over the edge program: float16 parameters and arithmetic, float32 inputs and outputs.

    It comes after decomposition: torch decomposes a float16 hard sigmoid or SiLU into float32 steps between
    casts, which XNNPACK refuses.
    """
    from executorch.exir.pass_base import ExportedProgramPassBase, ExportedProgramPassResult

    class HalfArithmetic(ExportedProgramPassBase):  # type: ignore[misc]
        def call(self, exported_program: ExportedProgram) -> Any:
            return ExportedProgramPassResult(half_program(exported_program), modified=True)

    return HalfArithmetic()


def half_program(program: ExportedProgram) -> ExportedProgram:
    """The edge program with float16 parameters, cast from float32 at every input and back at every output.

    Tensors beyond float16's range (masks of -1e9) become its largest finite number.  `program` stays as it is.
    """
    from torch.export import ExportedProgram

    module = copy.deepcopy(program.graph_module)
    signature = copy.deepcopy(program.graph_signature)
    _cast_interface(module.graph, signature)
    _infer_dtypes(module.graph)
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=_halves(program.state_dict),
        range_constraints=program.range_constraints,
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=_halves(program.constants),
        verifiers=program.verifiers,
    )


def _cast_interface(graph: fx.Graph, signature: Any) -> None:
    import torch
    from torch.export.graph_signature import InputKind, OutputKind

    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for spec, node in zip(signature.input_specs, placeholders, strict=True):
        # The copy renames what shadows a builtin: `input` becomes `input_1`.
        spec.arg = dataclasses.replace(spec.arg, name=node.name)
        if not _is_float32(node):
            continue
        if spec.kind is InputKind.USER_INPUT:
            with graph.inserting_after(node):
                half = _cast(graph, node, torch.float16)
            node.replace_all_uses_with(half, delete_user_cb=lambda user, half=half: user is not half)
        else:
            node.meta["val"] = node.meta["val"].to(torch.float16)
    output = graph.output_node()
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for index, (spec, result) in enumerate(zip(signature.output_specs, results, strict=True)):
        if spec.kind is OutputKind.USER_OUTPUT and _is_float32(result):
            with graph.inserting_before(output):
                results[index] = _cast(graph, result, torch.float32)
        spec.arg = dataclasses.replace(spec.arg, name=results[index].name)
    output.args = (tuple(results),)


def _is_float32(node: Any) -> bool:
    import torch

    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    from executorch.exir.dialects._ops import ops

    to_copy = ops.edge.dim_order_ops._to_dim_order_copy.default
    order = list(range(node.meta["val"].dim()))
    cast = graph.call_function(to_copy, (node,), {"dtype": dtype, "dim_order": order})
    cast.meta[INTERFACE] = True
    return cast


def _infer_dtypes(graph: fx.Graph) -> None:
    """Replace the float32 that operators are told to make by float16, and compute every result's type again."""
    import torch
    from torch._guards import detect_fake_mode
    from torch.fx.node import map_aggregate, map_arg

    def float16(argument: Any) -> Any:
        return torch.float16 if argument is torch.float32 else argument

    mode = detect_fake_mode([node.meta["val"] for node in graph.nodes if node.op == "placeholder"])
    with mode or contextlib.nullcontext():
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            if not node.meta.pop(INTERFACE, False):
                node.args, node.kwargs = map_aggregate(node.args, float16), map_aggregate(node.kwargs, float16)
            args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
            node.meta["val"] = node.target(*args, **kwargs)


def _halves(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _half(value) for name, value in tensors.items()}


def _half(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    half = value.detach().clamp(-float16.LARGEST, float16.LARGEST).to(torch.float16)
    return torch.nn.Parameter(half, requires_grad=False) if isinstance(value, torch.nn.Parameter) else half


@contextlib.contextmanager
def float16_filters() -> Iterator[None]:
    """Store filters of convolutions and linear layers as float16 while this is open; biases stay float32.

    Depthwise and first convolutions keep float32 (acmix.toolkit.float16), as do numbers beyond its range.
    XNNPACK takes a float16 filter with float32 activations (and computes in float32) as well as with float16
    ones.  ExecuTorch 1.5 makes use of neither: it writes every filter of a convolution as float32.
    """
    from executorch.backends.xnnpack.operators import node_visitor

    visitors, read = node_visitor._node_visitor_dict, node_visitor.get_param_tensor
    stock = {target: visitors[target] for target in WITH_FILTERS}

    def rounded(program: ExportedProgram, node: fx.Node) -> Any:
        tensor = read(program, node)
        return _half(tensor) if tensor is not None and node.meta.get(FILTER) else tensor

    node_visitor.get_param_tensor = rounded
    visitors.update({target: _with_float16_filter(visitor) for target, visitor in stock.items()})
    try:
        yield
    finally:
        visitors.update(stock)
        node_visitor.get_param_tensor = read


def _with_float16_filter(visitor: Any) -> Any:
    import torch

    class Float16Filter(visitor):  # type: ignore[misc]
        def define_node(self, node: fx.Node, *args: Any, **kwargs: Any) -> None:
            weight: Any = node.args[1]
            if weight.op == "placeholder" and _fits_float16(self.exported_program, weight):
                weight.meta["val"] = weight.meta["val"].to(torch.float16)
                weight.meta[FILTER] = True
            super().define_node(node, *args, **kwargs)

        def define_tensor(self, tensor: fx.Node, *args: Any, force_fp32: bool = False, **kwargs: Any) -> None:
            is_filter = kwargs.get("convert_to_nhwc", False)
            super().define_tensor(tensor, *args, force_fp32=force_fp32 and not is_filter, **kwargs)

    return Float16Filter


def _fits_float16(program: ExportedProgram, weight: fx.Node) -> bool:
    from executorch.backends.xnnpack.operators import node_visitor

    tensor = node_visitor.get_param_tensor(program, weight)
    if tensor is None or not _is_float32(weight) or float16.stays_float32(tensor.shape):
        return False
    return bool(tensor.abs().max() <= float16.LARGEST)
