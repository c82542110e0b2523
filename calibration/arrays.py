"""Calibration from arrays: .npz and .npy files, and the arrays that a user's own Python function gives."""

from __future__ import annotations

import random
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from acmix.calibration.photos import normalise
from acmix.calibration.selection import spread
from acmix.toolkit import source
from acmix.toolkit.errors import UsageError
from acmix.toolkit.samples import digest_of
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ArraySamples:
    """Samples held in memory, in the network's own layout."""

    name: str
    identifiers: tuple[str, ...]
    samples: tuple[tuple[Array, ...], ...]

    @property
    def labels(self) -> None:
        return None

    @cached_property
    def digest(self) -> str:
        return digest_of(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        return iter(self.samples)

    def pick(self, positions: Sequence[int]) -> ArraySamples:
        """The samples at these positions."""
        identifiers = tuple(self.identifiers[i] for i in positions)
        return replace(self, identifiers=identifiers, samples=tuple(self.samples[i] for i in positions))


def read_array_file(
    file: Path, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None, limit: int
) -> ArraySamples:
    """At most `limit` samples of a .npz (an array an input, by name) or .npy (one array), spread evenly.

    The first axis counts the samples.  Raises UsageError for a file that cannot be read or does not fit.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}.\nWrite one: numpy.savez('{file.stem}.npz', {_names(inputs)}).")
    arrays = _load(file, inputs)
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise UsageError(f"{file} has {counts} samples: the first axis of every array counts the same samples.")
    total = next(iter(counts.values()))
    if total == 0:
        raise UsageError(f"{file} holds no sample: the first axis counts them.")
    rows = spread(total, limit)
    columns = [
        conform(arrays[spec.name][list(rows)], spec, preprocess, f"{file}, array {spec.name!r}") for spec in inputs
    ]
    samples = tuple(tuple(column[i : i + 1] for column in columns) for i in range(len(rows)))
    return ArraySamples(file.name, tuple(str(row) for row in rows), samples)


def _names(inputs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name}=array" for spec in inputs)


def _load(file: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The arrays by input name; whatever its name, a lone array belongs to a lone input."""
    try:
        # Rows are picked before they are read: a .npy of a whole data set is never held at once.
        opened = np.load(file, mmap_mode="r", allow_pickle=False)
        found = {"": opened}
        if isinstance(opened, np.lib.npyio.NpzFile):
            with opened:
                found = dict(opened)
    except UNREADABLE as error:
        raise UsageError(
            f"{file} cannot be read: {error}\nIt has to be what numpy.savez or numpy.save writes, of numbers only."
        ) from error
    if len(found) == len(inputs) == 1:
        return {inputs[0].name: next(iter(found.values()))}
    wanted = [spec.name for spec in inputs]
    if sorted(found) != sorted(wanted):
        raise UsageError(
            f"{file} holds {sorted(found) or 'nothing'}; the model takes {sorted(wanted)}.\n"
            f"Write them by name: numpy.savez('{file.stem}.npz', {_names(inputs)})."
        )
    return found


def read_function(
    reference: str, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None, limit: int, seed: int
) -> ArraySamples:
    """The first `limit` samples of `file.py:function`, which gives arrays, tensors, or tuples of them, an input each.

    An item is one sample, with or without its batch axis, or a batch of several.  The global generators of
    Python, numpy and torch are seeded while it runs.  Raises UsageError for an error of the function's own.
    """
    file, _, attribute = reference.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"there is no file {file}.\nGive a Python file: --calibration photos.py:make_samples.")
    found = source.attribute_of(source.import_source(file), file, attribute)
    samples: list[tuple[Array, ...]] = []
    with _seeded(seed):
        for position, item in enumerate(_items(found, reference)):
            samples += _split(item, inputs, preprocess, f"{reference}, item {position}")
            if len(samples) >= limit:
                break
    if not samples:
        raise UsageError(f"{reference} gave no sample.\nYield one array for each: yield image.")
    samples = samples[:limit]
    return ArraySamples(reference, tuple(str(i) for i in range(len(samples))), tuple(samples))


def _items(found: Any, reference: str) -> Iterator[Any]:
    try:
        given = found() if callable(found) else found
        if not isinstance(given, Iterable):
            raise UsageError(
                f"{reference} gave a {type(given).__name__}, which cannot be iterated over.\n"
                "Return a list of arrays, or yield them one by one."
            )
        yield from given
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{reference} failed: {type(error).__name__}: {error}\n{source.user_line(error)}") from error


def _split(
    item: Any, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None, where: str
) -> list[tuple[Array, ...]]:
    parts = list(item) if isinstance(item, tuple | list) else [item]
    if len(parts) != len(inputs):
        hint = "A label does not belong there: yield image, not (image, label)." if len(inputs) == 1 else ""
        raise UsageError(f"{where}, has {len(parts)} arrays; the model takes {len(inputs)}.\n{hint}".rstrip())
    columns = [
        conform(_batched(_as_array(part, where), spec), spec, preprocess, where)
        for part, spec in zip(parts, inputs, strict=True)
    ]
    if len({len(column) for column in columns}) != 1:
        raise UsageError(
            f"{where}: its arrays hold {[len(column) for column in columns]} samples, not the same number."
        )
    return [tuple(column[i : i + 1] for column in columns) for i in range(len(columns[0]))]


def _as_array(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: a {type(value).__name__} does not become an array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{where} is a {type(value).__name__}.\nYield an array or a tensor of numbers.")
    return array


def _batched(array: Array, spec: TensorSpec) -> Array:
    return array[None] if array.ndim == len(spec.shape) - 1 else array


def conform(array: Array, spec: TensorSpec, preprocess: Preprocess | None, where: str) -> Array:
    """Samples [N, ...] as the network takes them; uint8 photos [N, H, W, 3] are normalised by the preprocessing.

    Raises UsageError for another shape, for a type that is not the input's kind, and for NaN or infinity.
    """
    is_float = np.issubdtype(np.dtype(spec.dtype), np.floating)
    if array.dtype == np.uint8 and is_float and preprocess is not None and array.shape[1:] == (*preprocess.crop, 3):
        array = np.concatenate([normalise(image, preprocess) for image in array])
    if array.shape[1:] != spec.shape[1:]:
        raise UsageError(
            f"{where} has shape {array.shape}; {spec.name!r} takes {_shape(spec)}.\n{_shape_hint(array, spec)}"
        )
    kinds = "f" if is_float else "b" if spec.dtype == "bool" else "iu"
    if array.dtype.kind not in kinds:
        photos = ", or photos as uint8 [N, H, W, 3] with a preprocessing" if is_float else ""
        raise UsageError(
            f"{where} is of {array.dtype}; {spec.name!r} takes {spec.dtype}.\n"
            f"Give values as the network takes them{photos}."
        )
    if not np.isfinite(array).all():
        raise UsageError(f"{where} holds NaN or infinity, so no range can be found.\nRemove such samples.")
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _shape(spec: TensorSpec) -> str:
    return f"[N, {', '.join(str(size) for size in spec.shape[1:])}]"


def _shape_hint(array: Array, spec: TensorSpec) -> str:
    if array.shape == spec.shape[1:]:
        return "It lacks the axis that counts the samples: array[None]."
    if array.ndim == 4 and array.shape[1:] == (*spec.shape[2:], spec.shape[1]):
        return "Its channels are last: array.transpose(0, 3, 1, 2)."
    return f"The first axis counts the samples; each is {'x'.join(map(str, spec.shape[1:]))}."


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeded global generators, as they were again afterwards."""
    import torch

    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
