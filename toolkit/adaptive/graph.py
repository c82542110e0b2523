"""All stages of an adaptive model in torch: as published, with patches cut by the host, and as one graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.adaptive.spec import Crop, Photo, Resize, Run, Stage, Step, Zeros
from acmix.toolkit.adaptive.unrolled import distinct_photos, steps_of
from acmix.toolkit.prepare import flat_tensors, inference_form
from acmix.toolkit.spec import ModelSpec

Nudge = tuple[float, float]
"""How far the row and the column of every predicted place are moved, relative to its norm."""
DIRECTIONS = tuple(itertools.product((-1.0, 1.0), repeat=2))


class Unrolled(nn.Module):
    """Every stage, whatever the exits say: photos [1, 3, H, W] to the logits of each exit, then the predicted places.

    This is the published form: a patch is cut at the whole numbers that its place gives, as the host does it.
    """

    def __init__(self, stages: Sequence[Stage], networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self._keys = free_keys(networks)
        self.networks = nn.ModuleDict({self._keys[name]: network for name, network in networks.items()})

    def network(self, name: str) -> nn.Module:
        """One network by the name that the stages give it."""
        return self.networks[self._keys[name]]

    def forward(self, *photos: Tensor) -> tuple[Tensor, ...]:
        return self.run(photos)[0]

    def run(self, photos: Sequence[Tensor], nudge: Nudge = (0.0, 0.0)) -> tuple[tuple[Tensor, ...], list[list[int]]]:
        """The outputs, and the corner (row, column) of every patch where the form cuts it at whole numbers."""
        seen = {p.preprocess: x for p, x in zip(distinct_photos(self.stages), photos, strict=True)}
        values: dict[str, Tensor] = {}
        corners: list[list[int]] = []
        steps = steps_of(self.stages)
        for step in steps:
            if isinstance(step, Photo):
                values[step.gives] = seen[step.preprocess]
            elif isinstance(step, Crop):
                values[step.gives] = self.cut(step, values[step.source], values[step.action], nudge, corners)
            else:
                values.update(zip(_names(step), self._made(step, values, photos[0]), strict=True))
        places = dict.fromkeys(step.action for step in steps if isinstance(step, Crop))
        return tuple(values[name] for name in (*(stage.logits for stage in self.stages), *places)), corners

    def cut(self, step: Crop, image: Tensor, action: Tensor, nudge: Nudge, corners: list[list[int]]) -> Tensor:
        """The patch of a step, its corner at row floor(a0 (H - height)), column floor(a1 (W - width))."""
        room = [side - patch for side, patch in zip(image.shape[2:], step.size, strict=True)]
        margin = float(action.norm()) * max(room)
        places = [
            # Nudged places stay in the image.
            min(max(math.floor(float(a * r) + n * margin), 0), r) if n else math.floor(float(a * r))
            for a, r, n in zip(action.reshape(2), room, nudge, strict=True)
        ]
        corners.append(places)
        row, column = places
        return image[:, :, row : row + step.size[0], column : column + step.size[1]]

    def _made(self, step: Step, values: Mapping[str, Tensor], photo: Tensor) -> Sequence[Tensor]:
        if isinstance(step, Run):
            return flat_tensors(self.network(step.network)(*(values[name] for name in step.takes)))
        if isinstance(step, Resize):
            return (F.interpolate(values[step.source], step.size, mode="bicubic", align_corners=True),)
        assert isinstance(step, Zeros)
        return (self.zeros(step, photo),)

    def zeros(self, step: Zeros, photo: Tensor) -> Tensor:
        """Zeros of the photo's type."""
        return photo.new_zeros(step.shape)

    def nudged(self, inputs: Sequence[Tensor], relative: float) -> Iterator[tuple[Tensor, ...]]:
        """The outputs with other patches: those that places off by `relative` of their norm would cut.

        The margin in pixels is that of the proof of the way: so much of a place's norm times its patch's widest room.
        """
        own = self.run(inputs)[1]
        for row, column in DIRECTIONS if own else ():
            outputs, corners = self.run(inputs, (row * relative, column * relative))
            if corners != own:
                yield outputs


class InOneGraph(Unrolled):
    """The same for inference: no number becomes a slice, so that one graph serves every photo."""

    def __init__(self, stages: Sequence[Stage], networks: Mapping[str, nn.Module]) -> None:
        super().__init__(stages, networks)
        sizes: dict[str, tuple[int, int]] = {}
        self.cutters = nn.ModuleDict()
        self._cutter_keys = free_keys(step.gives for step in steps_of(self.stages) if isinstance(step, Crop))
        for step in steps_of(self.stages):
            if isinstance(step, Crop):
                self.cutters[self._cutter_keys[step.gives]] = OneHotCut(sizes[step.source], step.size)
            if isinstance(step, Crop | Resize):
                sizes[step.gives] = step.size
            elif isinstance(step, Photo):
                sizes[step.gives] = step.preprocess.crop
            elif isinstance(step, Zeros):
                self.register_buffer(f"zeros_{step.gives}", torch.zeros(step.shape), persistent=False)

    def cut(self, step: Crop, image: Tensor, action: Tensor, nudge: Nudge, corners: list[list[int]]) -> Tensor:
        patch: Tensor = self.cutters[self._cutter_keys[step.gives]](image, action)
        return patch

    def zeros(self, step: Zeros, photo: Tensor) -> Tensor:
        """A constant of the graph."""
        return self.get_buffer(f"zeros_{step.gives}")


class OneHotCut(nn.Module):
    """A patch [1, C, h, w] of an image [1, C, H, W] at a place [1, 2], as two products with one-hot matrices.

    Row i of the first is one at column i + floor(a0 (H - h)) and zero elsewhere, so that a sum has one term that is
    not zero: the patch holds the image's own numbers.  Costs C H w (W + h) multiply-accumulates.
    """

    rows: Tensor
    columns: Tensor
    one: Tensor

    def __init__(self, image: tuple[int, int], patch: tuple[int, int]) -> None:
        super().__init__()
        self.room = (image[0] - patch[0], image[1] - patch[1])
        self.register_buffer("one", torch.ones(1, 1), persistent=False)
        self.register_buffer("rows", _offsets(image[0], patch[0]), persistent=False)
        self.register_buffer("columns", _offsets(image[1], patch[1]).t().contiguous(), persistent=False)

    def forward(self, image: Tensor, action: Tensor) -> Tensor:
        (height, width), (h, w) = image.shape[2:], (self.rows.shape[0], self.columns.shape[1])
        row, column = (torch.floor(action[:, i : i + 1] * self.room[i]) for i in range(2))
        # 1 - |i + row - j| is one where j = i + row and no more than zero elsewhere: whole numbers, so exact.
        pick_rows = F.relu(self.one - torch.abs(self.rows + row)).reshape(1, h, height)
        pick_columns = F.relu(self.one - torch.abs(self.columns + column)).reshape(1, width, w)
        narrow = torch.bmm(image.reshape(1, -1, width), pick_columns)
        by_row = narrow.reshape(-1, height, w).permute(1, 0, 2).reshape(1, height, -1)
        return torch.bmm(pick_rows, by_row).reshape(h, -1, w).permute(1, 0, 2).reshape(1, -1, h, w)


def _offsets(side: int, patch: int) -> Tensor:
    """i - j, [patch, side]."""
    return torch.arange(patch).unsqueeze(1).float() - torch.arange(side).float()


def in_one_graph(module: Unrolled, specs: Mapping[str, ModelSpec], target: str) -> InOneGraph:
    """An equal network of the networks' own inference forms; the module stays as it is."""
    forms = {name: inference_form(module.network(name), spec, target) for name, spec in specs.items()}
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    return InOneGraph(module.stages, forms).to(dtype).train(module.training)


def free_keys(names: Iterable[str]) -> dict[str, str]:
    """A key of a ModuleDict for each name; torch refuses those of its own attributes, `keys` and `type` among them."""
    taken = nn.ModuleDict()
    keys = {}
    for name in names:
        key = name
        while hasattr(taken, key):
            key += "_"
        taken[key] = nn.Identity()
        keys[name] = key
    return keys


def _names(step: Step) -> tuple[str, ...]:
    return step.gives if isinstance(step, Run) else (step.gives,)
