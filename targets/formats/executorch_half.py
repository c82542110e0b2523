"""An exported program whose arithmetic is float16 and whose interface stays float32."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx
    from torch.export import ExportedProgram

LARGEST_FLOAT16 = 65504.0
CONVOLUTION = "aten.convolution.default"
INTERFACE = "acmix_interface_cast"


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
    import torch

    def half(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        rounded = value.detach().clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16).to(torch.float16)
        return torch.nn.Parameter(rounded, requires_grad=False) if isinstance(value, torch.nn.Parameter) else rounded

    return {name: half(value) for name, value in tensors.items()}


@contextlib.contextmanager
def float16_filters() -> Iterator[None]:
    """Store the filters of float16 convolutions as float16 while this is open.

    ExecuTorch 1.5 writes them as float32 (force_fp32 in op_conv2d.py), which doubles the file; XNNPACK rounds
    them when the model loads, and takes float16 filters as well: the results are equal bit for bit.
    """
    from executorch.backends.xnnpack.operators import node_visitor

    visitors = node_visitor._node_visitor_dict
    stock: Any = visitors[CONVOLUTION]

    class HalfFilters(stock):  # type: ignore[misc]
        def define_tensor(self, *args: Any, force_fp32: bool = False, **kwargs: Any) -> None:
            is_filter = kwargs.get("convert_to_nhwc", False)
            super().define_tensor(*args, force_fp32=force_fp32 and not is_filter, **kwargs)

    visitors[CONVOLUTION] = HalfFilters
    try:
        yield
    finally:
        visitors[CONVOLUTION] = stock
