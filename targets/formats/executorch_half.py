"""An exported program whose arithmetic is float16 and whose interface stays float32."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

LARGEST_FLOAT16 = 65504.0
CONVOLUTION = "aten.convolution.default"


def half_program(program: ExportedProgram) -> ExportedProgram:
    """The same program with float16 parameters, cast from float32 at every input and back at every output.

    Tensors beyond float16's range (masks of -1e9) become its largest finite number.  `program` stays as it is.
    Intermediate shapes and dtypes go stale: whoever decomposes the result next computes them again.
    """
    import torch
    from torch.export import ExportedProgram
    from torch.export.graph_signature import InputKind

    module = copy.deepcopy(program.graph_module)
    signature = copy.deepcopy(program.graph_signature)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = _float16_arguments(node.args), _float16_arguments(dict(node.kwargs))
    for spec, node in zip(signature.input_specs, placeholders, strict=True):
        # The copy renames what shadows a builtin: `input` becomes `input_1`.
        spec.arg = dataclasses.replace(spec.arg, name=node.name)
        if not _is_float32(node):
            continue
        if spec.kind is InputKind.USER_INPUT:
            _cast_input(module.graph, node)
        else:
            node.meta["val"] = node.meta["val"].to(torch.float16)
    _cast_outputs(module.graph, signature)
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


def _is_float32(node: fx.Node) -> bool:
    import torch

    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _float16_arguments(arguments: Any) -> Any:
    import torch
    from torch.fx.node import map_aggregate

    return map_aggregate(arguments, lambda a: torch.float16 if a is torch.float32 else a)


def _cast_input(graph: fx.Graph, node: fx.Node) -> None:
    import torch

    with graph.inserting_after(node):
        half = graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": torch.float16})
    half.meta["val"] = node.meta["val"].to(torch.float16)
    node.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)


def _cast_outputs(graph: fx.Graph, signature: Any) -> None:
    import torch
    from torch.export.graph_signature import OutputKind

    output = next(node for node in graph.nodes if node.op == "output")
    results = list(output.args[0])
    for index, spec in enumerate(signature.output_specs):
        if not hasattr(results[index], "name"):
            continue
        spec.arg = dataclasses.replace(spec.arg, name=results[index].name)
        if spec.kind is not OutputKind.USER_OUTPUT or not _is_float32(results[index]):
            continue
        with graph.inserting_before(output):
            single = graph.call_function(torch.ops.aten._to_copy.default, (results[index],), {"dtype": torch.float32})
        single.meta["val"] = results[index].meta["val"]
        results[index] = single
        spec.arg = dataclasses.replace(spec.arg, name=single.name)
    output.args = (tuple(results),)


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
    stock = visitors[CONVOLUTION]

    class HalfFilters(stock):  # type: ignore[misc]
        def define_tensor(self, *args: Any, force_fp32: bool = False, **kwargs: Any) -> None:
            is_filter = kwargs.get("convert_to_nhwc", False)
            super().define_tensor(*args, force_fp32=force_fp32 and not is_filter, **kwargs)

    visitors[CONVOLUTION] = HalfFilters
    try:
        yield
    finally:
        visitors[CONVOLUTION] = stock
