"""Pairs that a program brought along: quantized by its author (torchao's PT2E, trained or not), ranges untouched.

The author's scales, zero points and integer weights are read out of the graph, and nothing is calibrated again. What
no runtime here could take as it is gets refused, by the name of the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from acmix.toolkit._pair_nodes import DEQUANTIZE, QUANTIZE, check_pairs, make_signed, pair_kind, write_weights
from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import ACTIVATIONS, COMPUTE, MOVES, Grid, integers
from acmix.toolkit.program import quiet
from acmix.toolkit.quantize import constant, graph_module
from acmix.toolkit.quantized import Calibrated, Quantized, example_inputs, kept_float
from acmix.toolkit.ranges import Fingerprint, QuantizedTensor, Range, Ranges, fingerprint
from acmix.toolkit.recipe import Recipe

OWN_RANGES = "the program's own"
"""Name of the samples of ranges that came with the program; their count is 0."""
OWN_WEIGHT, OWN_SCALES = "own_weight_", "own_scales_"
"""Buffers of the float program: the value of each layer's integers, and their scales, a channel each."""


def has_pairs(program: ExportedProgram) -> bool:
    """Whether a program was quantized, or prepared for it, by its author."""
    return any(pair_kind(node) for node in program.graph.nodes)


def are_own(ranges: Ranges | None) -> bool:
    """Whether ranges came with the program: nothing was calibrated."""
    return ranges is not None and ranges.samples_count == 0


def check_request(recipe: Recipe, is_calibrated: bool) -> None:
    """Raise UsageError where an export of a program with pairs asks for other integers than the program's own."""
    if (recipe.weights, recipe.activations) != ("int8", "int8") or recipe.name == "mixed":
        raise UsageError(
            f"--precision {recipe.name} is for float programs, and this one holds quantize and dequantize pairs.\n"
            "Ask for --precision w8a8, or export the float network."
        )
    if is_calibrated:
        raise UsageError(
            "--calibration finds ranges, and this program holds pairs with scales and zero points of its own, which "
            "stay as they are.\nLeave --calibration out and give the program as a .pt2, or export the float network."
        )


def read_pairs(program: ExportedProgram) -> Quantized:
    """The quantized form of a program with pairs: its own scales, zero points and integer weights.

    pairs: the program itself; uint8 activations are written as int8, which is the same grid, and weights a channel
    each.  Raises UsageError for the pairs that no runtime here takes, naming the node.
    """
    module = graph_module(program)
    check_pairs(module.graph)
    weights = write_weights(module)
    if not weights or not any(pair_kind(node) == QUANTIZE for node in module.graph.nodes):
        raise UsageError(
            "the program's pairs leave weights or activations float throughout.\n"
            "Quantize both: prepare_qat_pt2e with per-channel int8 weights and static int8 activations."
        )
    for node in list(module.graph.nodes):
        if pair_kind(node) in (QUANTIZE, DEQUANTIZE):
            make_signed(node)
    inputs = example_inputs(program)
    pairs = _exported(module, inputs)
    plain, found = _without_pairs(module, weights)
    floats = _exported(plain, inputs)
    renamed = _renaming(plain.graph, graph_module(floats).graph)
    tensors = {renamed[name]: _named(tensor, renamed[name]) for name, tensor in found.tensors.items()}
    grid = Grid(
        tensors,
        frozenset(renamed[name] for name in found.tensors if name not in {s for s, _ in found.edges}),
        frozenset((renamed[source], renamed[reader]) for source, reader in found.edges),
        frozenset(renamed[name] for name in weights),
    )
    calibrated = Calibrated(
        floats, _ranges(floats, tensors), ("scales, zero points and weights are the program's own",)
    )
    return Quantized(calibrated, grid, pairs, kept_float(list(graph_module(floats).graph.nodes), grid, frozenset()))


def unfit_for_fusion(graph: fx.Graph) -> str:
    """Why kernels that fuse a layer, its pairs and its activation would give other values; '' where they do not."""
    for node in graph.nodes:
        if node.target in ACTIVATIONS and _is_between_grids(node):
            return f"{node.name!r} is rounded before and after on two grids, and fused kernels round it once"
        if node.target in COMPUTE and pair_kind(node.args[1]) == "dequantize_per_channel":
            if pair_kind(node.args[0]) != DEQUANTIZE:
                return f"{node.name!r} reads a float input"
            if not _is_quantized_behind(node):
                return f"the result of {node.name!r} is float"
    return ""


def unfit_for_ranges(quantized: Quantized) -> str:
    """Why the pairs cannot be said as one range a tensor, as TFLite wants them; '' where they can."""
    grids: dict[str, set[tuple[float, int]]] = {}
    graph = graph_module(quantized.pairs).graph
    for node in graph.nodes:
        if pair_kind(node) == QUANTIZE:
            grids.setdefault(_float_source(node).name, set()).add((float(node.args[1]), int(node.args[2])))
        if node.target in COMPUTE and pair_kind(node.args[1]) != "dequantize_per_channel":
            return f"the weights of {node.name!r} are float"
    if reason := unfit_for_fusion(graph):
        return reason
    several = next((name for name, found in grids.items() if len(found) > 1), "")
    if several:
        return f"{several!r} is rounded to two different grids"
    module = graph_module(quantized.pairs)
    for node in module.graph.nodes:
        if pair_kind(node) == "dequantize_per_channel" and int(constant(module, node.args[0]).min()) < -127:
            return f"the weights of {next(iter(node.users)).name!r} reach -128"
    return ""


def own_weights(module: GraphModule) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Each layer's weight and the scales of its channels (axis 0), of a float program that read_pairs made."""
    buffers = dict(module.named_buffers())
    return [
        (buffers[name].numpy(), buffers[name.replace(OWN_WEIGHT, OWN_SCALES)].numpy())
        for name in buffers
        if name.startswith(OWN_WEIGHT)
    ]


def check_untouched(ranges: Ranges, held: tuple[QuantizedTensor, ...], target: str) -> None:
    """Raise UsageError where a saved file holds an activation on another grid than the program's own.

    A tensor that the converter made (a padded input, say) has to be on a grid that the program has somewhere.
    """
    own = {name: integers(values, name) for name, values in ranges.tensors.items()}
    grids = {(tensor.scale, tensor.zero_point) for tensor in own.values()}
    for tensor in held:
        if not tensor.node and (tensor.scale, tensor.zero_point) in grids:
            continue
        wanted = own.get(tensor.node)
        if wanted is None or (wanted.scale, wanted.zero_point) != (tensor.scale, tensor.zero_point):
            expected = f"scale {wanted.scale} and zero point {wanted.zero_point}" if wanted else "float"
            raise UsageError(
                f"{target} would hold {tensor.node or 'a tensor of its own'!r} with scale {tensor.scale} and zero "
                f"point {tensor.zero_point}, and the program has {expected}.\nLeave {target} out of --target."
            )


@dataclass(frozen=True)
class _Found:
    """The pairs of a graph: by the node that makes the float tensor; edges: where not every reader has the pair."""

    tensors: dict[str, QuantizedTensor]
    edges: frozenset[tuple[str, str]]


def _float_source(node: Any) -> Node:
    """The float tensor that a chain of pairs rounds."""
    while pair_kind(node) in (QUANTIZE, DEQUANTIZE):
        node = node.args[0]
    assert isinstance(node, Node)
    return node


def _is_between_grids(activation: Node) -> bool:
    before = activation.args[0]
    if pair_kind(before) != DEQUANTIZE or _float_source(before).target not in COMPUTE:
        return False
    return any(user.args[1:] != before.args[1:] for user in activation.users if pair_kind(user) == QUANTIZE)  # type: ignore[union-attr]


def _is_quantized_behind(layer: Node) -> bool:
    readers = list(layer.users)
    if len(readers) == 1 and readers[0].target in ACTIVATIONS:
        readers = list(readers[0].users)
    return bool(readers) and all(pair_kind(reader) == QUANTIZE for reader in readers)


def _without_pairs(module: GraphModule, weights: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[GraphModule, _Found]:
    """The same graph in float, changed in place, with the weights' values; and the pairs that were in it."""
    tensors: dict[str, QuantizedTensor] = {}
    edges: set[tuple[str, str]] = set()
    for node in [n for n in module.graph.nodes if pair_kind(n) == QUANTIZE]:
        source = _float_source(node)
        scale, zero_point = node.args[1:3]
        tensors.setdefault(source.name, QuantizedTensor(source.name, float(scale), int(zero_point)))
        if any(not pair_kind(user) for user in source.users):
            edges.update((source.name, r.name) for back in node.users for r in back.users if not pair_kind(r))
    for node in [n for n in module.graph.nodes if pair_kind(n) == DEQUANTIZE]:
        node.replace_all_uses_with(_float_source(node))
    layers = [n for n in module.graph.nodes if n.name in weights]
    for number, layer in enumerate(layers):
        integer, scales = weights[layer.name]
        shape = (-1,) + (1,) * (integer.dim() - 1)
        module.register_buffer(f"{OWN_WEIGHT}{number}", integer.float() * scales.reshape(shape))
        module.register_buffer(f"{OWN_SCALES}{number}", scales)
        with module.graph.inserting_before(layer):
            layer.update_arg(1, module.graph.get_attr(f"{OWN_WEIGHT}{number}"))
    module.graph.eliminate_dead_code()
    return module, _Found(tensors, frozenset(edges))


def _exported(module: GraphModule, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The module's graph as a program, without the weights that nothing reads (the float ones of training)."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in read and not name.startswith(OWN_SCALES):
            owner, _, last = name.rpartition(".")
            delattr(module.get_submodule(owner), last)
    module.recompile()
    with torch.no_grad(), quiet():
        return torch.export.export(module, inputs)


def _renaming(before: fx.Graph, after: fx.Graph) -> dict[str, str]:
    """The names that export gave to inputs and operators, whose order it keeps."""
    old, new = ([n for n in g.nodes if n.op in ("placeholder", "call_function")] for g in (before, after))
    inputs = [[n for n in nodes if n.op == "placeholder"] for nodes in (old, new)]
    calls = [[n for n in nodes if n.op == "call_function"] for nodes in (old, new)]
    pairs = [*zip(*inputs, strict=True), *zip(*calls, strict=True)]
    assert all(one.target == other.target for one, other in pairs if one.op == "call_function")
    return {one.name: other.name for one, other in pairs}


def _named(tensor: QuantizedTensor, name: str) -> QuantizedTensor:
    return QuantizedTensor(name, tensor.scale, tensor.zero_point, tensor.bits)


def _ranges(program: ExportedProgram, tensors: Mapping[str, QuantizedTensor]) -> Ranges:
    """What each pair expresses, exactly, for the tensor and whatever only moves it; fingerprints from seeded noise."""
    graph = graph_module(program).graph
    known = {
        name: Range((-128 - t.zero_point) * t.scale, (127 - t.zero_point) * t.scale) for name, t in tensors.items()
    }
    for node in (*graph.nodes, *reversed(graph.nodes)):
        source = node.args[0] if node.args else None
        if (node.target in MOVES or _pads_with_zeros(node)) and isinstance(source, Node):
            for one, other in ((source.name, node.name), (node.name, source.name)):
                if one in known:
                    known.setdefault(other, known[one])
    sample = tuple(_noise(program, known))
    prints = _Fingerprints(graph_module(program))
    with torch.no_grad():
        prints.run(*(torch.from_numpy(a.copy()) for a in sample), enable_io_processing=False)
    return Ranges(known, prints.found, sample, "minmax", OWN_RANGES, 0, "")


def _pads_with_zeros(node: Node) -> bool:
    """Whether it adds zeros, which every grid has, to values that it moves."""
    if node.target is not torch.ops.aten.pad.default:
        return False
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return mode == "constant" and not value


def _noise(program: ExportedProgram, known: Mapping[str, Range]) -> Iterator[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    names = [n.name for n in graph_module(program).graph.nodes if n.op == "placeholder"]
    for name, zeros in zip(names, example_inputs(program), strict=True):
        values = known.get(name, Range(-2.0, 2.0))
        array = random.uniform(values.low, values.high, tuple(zeros.shape)) if zeros.is_floating_point() else zeros
        yield np.asarray(array, dtype=zeros.numpy().dtype)


class _Fingerprints(fx.Interpreter):
    """Runs a float graph and keeps the fingerprint of every floating tensor."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Fingerprint] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
            self.found[n.name] = fingerprint(value.double().numpy())
        return value
