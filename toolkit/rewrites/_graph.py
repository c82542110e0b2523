"""Surgery on a captured program's graph: what the rules of this room share."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from acmix.toolkit.rewrites._memory import is_exclusive, is_in_place, may_alias, writers

Emit = Callable[..., Node]
"""emit(operator, *arguments, **keywords): a new node with its shape, in the place that was chosen."""

ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn")
HELD = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


def calls(program: ExportedProgram, *operators: OpOverload) -> list[Node]:
    """The calls of any of these operators, in order."""
    return [n for n in program.graph.nodes if n.op == "call_function" and n.target in operators]


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The shape of a node's one tensor; None when it has none, or a size that is not fixed."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)


def emit_before(program: ExportedProgram, place: Node) -> Emit:
    """An Emit whose nodes stand before `place` and inherit its origin in the user's source."""

    def emit(operator: OpOverload, *arguments: Any, **keywords: Any) -> Node:
        with program.graph.inserting_before(place):
            node: Node = program.graph.call_function(operator, arguments, keywords)
        values = pytree.tree_map_only(Node, lambda n: n.meta["val"], (arguments, keywords))
        mode = detect_fake_mode(pytree.tree_leaves(values))
        assert mode is not None
        with mode:
            node.meta["val"] = operator(*values[0], **values[1])
        node.meta.update({key: place.meta[key] for key in ORIGIN if key in place.meta})
        return node

    return emit


def replace(program: ExportedProgram, old: Node, new: Node) -> None:
    """Let everything that read `old`, the program's outputs included, read `new`; `old` is removed.

    Where `old` had memory of its own and `new` may not, a copy keeps later in-place calls apart.
    """
    if _has_own_memory(old) and not is_exclusive(new) and any(w > old for n in (old, new) for w in writers(n)):
        new = emit_before(program, old)(torch.ops.aten.clone.default, new)
    old.replace_all_uses_with(new)
    program.graph_signature.replace_all_uses(old.name, new.name)
    program.graph.erase_node(old)


def _has_own_memory(node: Node) -> bool:
    """Whether the call makes its result anew; each part of a tuple is a tensor of its own."""
    call = node.args[0] if node.target is operator.getitem else node
    return isinstance(call, Node) and not may_alias(call)


def remove_unused(program: ExportedProgram) -> None:
    """Remove calls that nothing reads, then parameters and buffers that nothing reads; recompile."""
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and not node.users and not _writes(node):
            program.graph.erase_node(node)
    specs = program.graph_signature.input_specs
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    for spec in [s for s in specs if s.kind in HELD and not nodes[s.arg.name].users]:
        specs.remove(spec)
        program.graph.erase_node(nodes[spec.arg.name])
        if not any(s.target == spec.target for s in specs):
            _stores(program)[spec.kind].pop(str(spec.target), None)
    program.graph_module.recompile()


def _writes(node: Node) -> bool:
    """Whether the call changes in place what something else may read: an input, a view, a value with readers."""
    return is_in_place(node) and not (isinstance(node.args[0], Node) and is_exclusive(node.args[0]))


def constant_value(program: ExportedProgram, node: object) -> Tensor | None:
    """The value of a parameter, buffer or constant that the program does not change; None for anything else."""
    if not isinstance(node, Node) or node.op != "placeholder" or writers(node):
        return None
    spec = next(s for s in program.graph_signature.input_specs if s.arg.name == node.name)
    if spec.kind not in HELD:
        return None
    value = program.state_dict.get(str(spec.target), program.constants.get(str(spec.target)))
    return value.detach() if isinstance(value, Tensor) else None


def add_constant(program: ExportedProgram, name: str, value: Tensor) -> Node:
    """A new buffer of the program: its placeholder. The name is made unique."""
    first = next(i for i, s in enumerate(program.graph_signature.input_specs) if s.kind not in HELD)
    taken = {str(s.target) for s in program.graph_signature.input_specs} | {n.name for n in program.graph.nodes}
    unique = next(c for c in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if c not in taken)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    mode = detect_fake_mode([n.meta["val"] for n in placeholders])
    assert mode is not None
    with program.graph.inserting_before(placeholders[first]):
        node: Node = program.graph.placeholder(unique)
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    program.graph_signature.input_specs.insert(
        first, InputSpec(InputKind.BUFFER, TensorArgument(node.name), unique, persistent=True)
    )
    program.state_dict[unique] = value
    return node


def _stores(program: ExportedProgram) -> dict[InputKind, dict[str, Any]]:
    return {
        InputKind.PARAMETER: program.state_dict,
        InputKind.BUFFER: program.state_dict,
        InputKind.CONSTANT_TENSOR: program.constants,
    }
