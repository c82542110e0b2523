"""What --model means: a name of the zoo, module:attribute, file.py:attribute, a saved program, or unrolled:NAME."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import math
import re
import sys
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError, did_you_mean
from acmix.toolkit.spec import ModelSpec, Preprocess, TensorSpec

if TYPE_CHECKING:
    from torch import nn

INPUT = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:]*?)(?::(?P<dtype>\w+))?$")
UNROLLED = "unrolled:"
"""Before the name of an adaptive model: all its stages as one network."""
DTYPES = ("float32", "int32", "int64")


@dataclass(frozen=True)
class ModelSource:
    """A model as the user named it."""

    reference: str
    kind: Literal["zoo", "module", "program", "unrolled"]
    spec: ModelSpec


def parse_input(text: str, position: int = 0) -> TensorSpec:
    """`[name=]1x3x160x160[:dtype]` as a spec; rank 4 is taken as nchw.

    Raises UsageError for a dynamic, empty or rank-0 shape, a batch that is not 1, an unknown dtype.
    """
    match = INPUT.match(text.strip())
    sizes = match["shape"].split("x") if match and match["shape"] else []
    if not match or not sizes:
        raise UsageError(f"--input {text!r} has no shape: acmix needs at least a batch of 1.\nWrite 1x3x224x224.")
    if not all(size.isascii() and size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(
            f"--input {text!r} is not a fixed shape: every size is a whole number above 0.\n"
            "Dynamic sizes leave the fast paths of the runtimes; export one artifact a size: --input 1x3x224x224."
        )
    shape = tuple(int(size) for size in sizes)
    if shape[0] != 1:
        raise UsageError(
            f"--input {text!r} has batch {shape[0]}; acmix exports batch 1.\nWrite 1x{'x'.join(sizes[1:])}."
        )
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise UsageError(f"--input {text!r} has type {dtype!r}; known are {', '.join(DTYPES)}.")
    name = match["name"] or ("image" if position == 0 else f"input_{position}")
    return TensorSpec(name, shape, dtype, "nchw" if len(shape) == 4 else "any")


def find_model(reference: str, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None = None) -> ModelSource:
    """The model that --model names, with --input and --preprocess applied; nothing is built yet."""
    if reference.startswith(UNROLLED):
        from acmix.toolkit.adaptive.unrolled import find_unrolled

        source = find_unrolled(reference)
        if inputs:
            raise UsageError(f"the inputs of {reference} are those of its stages: leave --input out.")
    elif reference.endswith(".pt2"):
        source = ModelSource(reference, "program", _program_spec(Path(reference)))
        if inputs:
            raise UsageError(f"{reference} has its inputs fixed already: leave --input out.")
    elif ":" in reference:
        source = ModelSource(reference, "module", _module_spec(reference, inputs))
    else:
        source = ModelSource(reference, "zoo", _zoo_spec(reference, inputs))
    if preprocess is not None:
        source = replace(source, spec=replace(source.spec, preprocess=preprocess))
    return source


def _zoo_spec(name: str, inputs: tuple[TensorSpec, ...]) -> ModelSpec:
    known = [card.name for card in catalog.model_cards()]
    if name not in known:
        raise UsageError(
            f"no model is called {name!r}.{did_you_mean(name, known)}\n"
            f"`acmix list models` shows all {len(known)}; your own: --model package.module:make_net, "
            "--model file.py:make_net or --model captured.pt2."
        )
    spec = catalog.load_model(name)
    return at_inputs(spec, inputs) if inputs else spec


def at_inputs(spec: ModelSpec, inputs: tuple[TensorSpec, ...]) -> ModelSpec:
    """The same model for another input size; the preprocessing is scaled with it."""
    old, new = spec.inputs[0], inputs[0]
    if inputs == spec.inputs:
        return spec
    if len(inputs) > 1 or len(spec.inputs) > 1 or len(old.shape) != 4:
        raise UsageError(f"the inputs of {spec.name} are fixed by its ModelSpec: leave --input out.")
    if len(new.shape) != 4 or new.shape[:2] != old.shape[:2] or new.dtype != old.dtype:
        wanted = "x".join(str(s) for s in (*old.shape[:2], "H", "W"))
        raise UsageError(f"{spec.name} takes one input {wanted} of {old.dtype}, not {'x'.join(map(str, new.shape))}.")
    size = (new.shape[2], new.shape[3])
    if spec.resized is not None:
        spec = spec.resized(spec, size)
    preprocess = spec.preprocess
    if preprocess is not None and preprocess.crop != size:
        short = round(preprocess.resize_short * min(size) / min(preprocess.crop))
        preprocess = replace(preprocess, resize_short=short, crop=size)
    return replace(spec, inputs=(replace(old, shape=new.shape),), preprocess=preprocess)


def _module_spec(reference: str, inputs: tuple[TensorSpec, ...]) -> ModelSpec:
    module_name, _, attribute = reference.rpartition(":")
    found = attribute_of(import_source(module_name), module_name, attribute)
    if isinstance(found, ModelSpec):
        return at_inputs(found, inputs) if inputs else found
    if not inputs:
        raise UsageError(f"--model {reference} does not say what goes in.\nAdd --input 1x3x224x224.")
    name = re.sub(r"\W+", "_", attribute).strip("_").lower()
    return ModelSpec(name=name, build=_builder(found, reference), inputs=inputs, outputs=("output",), classifies=False)


def import_source(name: str) -> ModuleType:
    """The module of a name or of a .py file; raises UsageError when there is none or it fails."""
    try:
        if name.endswith(".py"):
            return import_file(Path(name))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {name!r} (looked in the current folder and the installed packages).\n"
                "Run from the folder that holds it, or name the file: --model path/to/nets.py:make_net."
            ) from error
        raise UsageError(f"importing {name!r} failed: {error}\n{user_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name!r} failed: {type(error).__name__}: {error}\n{user_line(error)}") from error


def import_file(path: Path) -> ModuleType:
    """The module of a .py file, under a name of our own."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}.\nGive the path of a Python file: --model nets.py:make_net.")
    return _imported(path, path.resolve(), path.stat().st_mtime_ns)


@functools.cache
def _imported(path: Path, place: Path, changed_ns: int) -> ModuleType:
    """Once for each state of a file: to run it twice would make two of every class and network in it."""
    # A name of our own for each place: the user's file may be called like a module of Python's, or like another file.
    name = f"acmix_user_{path.stem}_{zlib.crc32(bytes(place)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as Python.")
    sys.path.insert(0, str(place.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def attribute_of(module: ModuleType, module_name: str, attribute: str) -> Any:
    """What a user's module holds under a name; raises UsageError with the nearest ones."""
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{module_name} has no {attribute!r}.{did_you_mean(attribute, names)}")
    return getattr(module, attribute)


def _builder(found: Any, reference: str) -> Callable[[], nn.Module]:
    from torch import nn

    if not isinstance(found, nn.Module) and not callable(found):
        raise UsageError(
            f"{reference} is a {type(found).__name__}.\nIt has to be an nn.Module, a function or class that makes one, "
            "or an acmix ModelSpec."
        )

    def build() -> nn.Module:
        if isinstance(found, nn.Module):
            return _copied(found, reference)
        try:
            module = found()
        except Exception as error:
            raise UsageError(
                f"calling {reference} failed: {type(error).__name__}: {error}\n{user_line(error)}"
            ) from error
        if not isinstance(module, nn.Module):
            raise UsageError(f"{reference}() gave a {type(module).__name__}, not an nn.Module.")
        return module

    return build


def _copied(module: nn.Module, reference: str) -> nn.Module:
    """A build is changed in place, by weights and by folding: the user's own stays as it is."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UsageError(
            f"{reference} is a network that cannot be copied: {type(error).__name__}: {error}\n"
            "Name a function that makes it instead: --model file.py:make_net."
        ) from error


def _program_spec(path: Path) -> ModelSpec:
    from acmix.toolkit.program import load_program

    program = load_program(path)
    return ModelSpec(
        name=re.sub(r"\W+", "_", path.stem).strip("_").lower(),
        build=program.module,
        inputs=program_inputs(path, program),
        outputs=("output",),
        classifies=False,
    )


def program_inputs(path: Path, program: Any) -> tuple[TensorSpec, ...]:
    """The user inputs of a program; raises UsageError when one is dynamic or not batch 1."""
    names = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            if not hasattr(value, "shape") or not all(isinstance(s, int) for s in value.shape):
                raise UsageError(
                    f"{path}: input {node.name!r} has a dynamic shape {tuple(getattr(value, 'shape', ()))}.\n"
                    "Capture it with torch.export.export(...) without dynamic_shapes."
                )
            text = f"{node.name}={'x'.join(map(str, value.shape))}:{str(value.dtype).removeprefix('torch.')}"
            specs.append(parse_input(text))
    return tuple(specs)


def user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is the user's own: 'nets.py:12: y = x.item()'."""
    import torch

    ours = str(Path(__file__).parent)
    foreign = (str(Path(torch.__file__).parent), ours, str(Path(importlib.__file__).parent), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(foreign)]
    models = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(f"{ours}/models")]
    if not (frames or models):
        return ""
    frame = (frames or models)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


def parameter_count(module: nn.Module) -> int:
    """How many parameters, shared ones once."""
    return sum(math.prod(p.shape) for p in module.parameters())
