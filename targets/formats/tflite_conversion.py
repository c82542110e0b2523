"""From a captured program to TFLite flatbuffer bytes, through litert-torch's own passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

TO_LAST = [0, 2, 3, 1]
TO_FIRST = [0, 3, 1, 2]


def convert(program: ExportedProgram, last_inputs: Sequence[bool], last_outputs: Sequence[bool]) -> bytes:
    """The program as a TFLite model whose marked inputs and outputs are channel-last; raises litert-torch's errors.

    litert_torch.convert takes modules only: it would export program.module() once more (0.5 to 2 s of 11).
    So its steps are called here one by one; the extra pins litert-torch to the one minor version that has them.
    """
    from litert_torch import fx_infra
    from litert_torch._convert import core, litert_converter, signature

    fx_infra.silence_torch_logs()
    lowered = program.run_decompositions(fx_infra.decomp.pre_convert_decomp())
    make_channel_last(lowered, last_inputs, last_outputs)
    lowered = core._run_convert_passes(lowered)
    arguments = tuple(pytree.tree_leaves(lowered.example_inputs))
    interface = signature.Signature("serving_default", None, arguments, {})
    exporter = litert_converter.exported_programs_to_flatbuffer([lowered], [interface])
    return bytes(exporter.to_bytes())


def make_channel_last(program: ExportedProgram, inputs: Sequence[bool], outputs: Sequence[bool]) -> None:
    """Turn the marked rank-4 inputs and outputs of `program` from NCHW to NHWC, in place, by permutations."""
    _permute_inputs(program, inputs)
    _permute_outputs(program, outputs)
    program.graph_module.recompile()


def _permute_inputs(program: ExportedProgram, marked: Sequence[bool]) -> None:
    graph = program.graph
    names = [s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    nodes = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    last = list(nodes.values())[-1] if nodes else None
    arguments, structure = pytree.tree_flatten(program.example_inputs)
    for position, (name, wanted) in enumerate(zip(names, marked, strict=True)):
        if not wanted:
            continue
        node, channel_first = nodes[name], nodes[name].meta["val"]
        with graph.inserting_after(last):
            permuted = graph.call_function(torch.ops.aten.permute.default, (node, TO_FIRST))
        node.replace_all_uses_with(permuted, delete_user_cb=lambda user, own=permuted: user is not own)
        node.meta["val"] = channel_first.permute(TO_LAST).contiguous()
        node.meta.pop("tensor_meta", None)
        permuted.meta["val"] = node.meta["val"].permute(TO_FIRST)
        arguments[position] = arguments[position].permute(TO_LAST).contiguous()
    program.example_inputs = pytree.tree_unflatten(arguments, structure)


def _permute_outputs(program: ExportedProgram, marked: Sequence[bool]) -> None:
    graph = program.graph
    output = graph.output_node()
    results: list[Any] = list(output.args[0])
    specs = program.graph_signature.output_specs
    positions = [i for i, s in enumerate(specs) if s.kind == OutputKind.USER_OUTPUT]
    for position, wanted in zip(positions, marked, strict=True):
        if not wanted:
            continue
        with graph.inserting_before(output):
            permuted = graph.call_function(torch.ops.aten.permute.default, (results[position], TO_LAST))
        permuted.meta["val"] = results[position].meta["val"].permute(TO_LAST)
        results[position] = permuted
        specs[position].arg = TensorArgument(name=permuted.name)
    output.args = (tuple(results),)
