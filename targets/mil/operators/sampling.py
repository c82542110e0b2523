"""Sampling an image at any coordinates: resample, affine transforms, crops that are resized."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.resizing import SAMPLING_MODES, grid
from acmix.targets.mil.operators.slicing import reflected

PADDING_MODES = ("constant", "border", "reflection", "symmetric")
COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
BOXES = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")
ONE_IMAGE_A_BOX = 17
"""The first opset whose crop_resize takes boxes [N, 4] and box_indices in place of roi."""
FAR = 2.0**40


def _symmetric(places: Tensor, size: int) -> Tensor:
    """Integer positions mirrored at the edges, whose elements are repeated."""
    folded = places.remainder(2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def _mapped(places: Tensor, size: int, padding: str) -> Tensor:
    if padding == "reflection":
        return reflected(places, size)
    return _symmetric(places, size) if padding == "symmetric" else places.clamp(0, size - 1)


def _taken(image: Tensor, rows: Tensor, columns: Tensor, padding: str, value: float) -> Tensor:
    """image [B, C, H, W] at integer rows and columns, [B, h, w]; those outside by the padding's rule."""
    height, width = image.shape[2:]
    places = _mapped(rows, height, padding) * width + _mapped(columns, width, padding)
    flat = places.reshape(len(places), 1, -1).expand(-1, image.shape[1], -1)
    taken = image.flatten(2).gather(2, flat).reshape(*image.shape[:2], *rows.shape[1:])
    if padding != "constant":
        return taken
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside[:, None], taken, torch.full_like(taken, value))


def _bilinear(image: Tensor, rows: Tensor, columns: Tensor, padding: str, value: float) -> Tensor:
    """image [B, C, H, W] at rows and columns, [B, h, w] in float64."""
    top, left = rows.floor(), columns.floor()
    down, right = ((part - whole)[:, None].to(image.dtype) for part, whole in ((rows, top), (columns, left)))
    total = torch.zeros((), dtype=image.dtype)
    for row_step, row_share in ((0, 1 - down), (1, down)):
        for column_step, column_share in ((0, 1 - right), (1, right)):
            taken = _taken(image, top.long() + row_step, left.long() + column_step, padding, value)
            total = total + taken * row_share * column_share
    return total


def _folded(places: Tensor, size: int, padding: str) -> Tensor:
    """Positions brought into the image, before the nearest element is taken."""
    if padding in ("reflection", "symmetric"):
        low, span = (0.0, size - 1) if padding == "reflection" else (-0.5, size)
        if span == 0:
            return torch.zeros_like(places)
        folded = (places - low).remainder(2 * span)
        places = torch.minimum(folded, 2 * span - folded) + low
    return places if padding == "constant" else places.clamp(0, size - 1)


def _positions(values: Tensor, size: int, mode: str, aligned: bool) -> Tensor:
    """Coordinates as positions on an axis of `size` elements.

    aligned: the ends of the range are the centres of the first and last element, else their outer edges.
    """
    values = values.to(torch.float64).nan_to_num(0.0).clamp(-FAR, FAR)
    if mode == "unnormalized":
        return values
    share = (values + 1) / 2 if mode == "normalized_minus_one_to_one" else values
    return share * (size - 1) if aligned else share * size - 0.5


@operator("resample")
def resample(call: Call) -> Tensor:
    """x [B, C, H, W] at coordinates [B, h, w, 2], each (column, row)."""
    x, coordinates = call.tensor("x"), call.tensor("coordinates")
    if x.dim() != 4 or coordinates.dim() != 4 or coordinates.shape[3] != 2 or x.shape[0] != coordinates.shape[0]:
        raise call.refuse(f"x {list(x.shape)} and coordinates {list(coordinates.shape)} do not fit")
    return _sampled(call, x, coordinates)


def _sampled(call: Call, x: Tensor, coordinates: Tensor) -> Tensor:
    mode, aligned = call.choice("coordinates_mode", COORDINATES), call.flag("align_corners")
    padding, value = call.choice("padding_mode", PADDING_MODES), call.number("padding_value", 0.0)
    call.reserve((*x.shape[:2], *coordinates.shape[1:3]))
    columns, rows = (_positions(coordinates[..., i], x.shape[3 - i], mode, aligned) for i in (0, 1))
    if call.choice("sampling_mode", ("bilinear", "nearest")) == "bilinear":
        return _bilinear(x, rows, columns, padding, value)
    rows, columns = _folded(rows, x.shape[2], padding), _folded(columns, x.shape[3], padding)
    return _taken(x, rows.round().long(), columns.round().long(), padding, value)


@operator("affine")
def affine(call: Call) -> Tensor:
    """x [B, C, H, W] at (a0 u + a1 v + a2, b0 u + b1 v + b2) for (u, v) from -1 to 1 over the output."""
    x, matrix = call.tensor("x"), call.tensor("transform_matrix")
    height, width = call.integer("output_height"), call.integer("output_width")
    if x.dim() != 4 or matrix.dim() != 2 or matrix.shape[1] != 6 or matrix.shape[0] not in (1, x.shape[0]):
        raise call.refuse(f"x {list(x.shape)} and transform_matrix {list(matrix.shape)} do not fit")
    call.reserve((*x.shape[:2], height, width))
    u, v = (_ends(call, count) for count in (width, height))
    base = torch.stack([u.expand(height, width), v[:, None].expand(height, width), torch.ones(height, width)], -1)
    turned = base.to(torch.float64) @ matrix.to(torch.float64).reshape(-1, 1, 2, 3).mT
    return _sampled(call, x, turned.expand(x.shape[0], -1, -1, -1))


def _ends(call: Call, count: int) -> Tensor:
    """-1 to 1 over an axis of the output; its middle when it has one element."""
    steps = torch.arange(count, dtype=torch.float64)
    if not call.flag("align_corners"):
        return (2 * steps + 1) / count - 1
    return steps * 2 / (count - 1) - 1 if count > 1 else torch.zeros(1, dtype=torch.float64)


@operator("crop_resize")
def crop_resize(call: Call) -> Tensor:
    """Boxes of x [B, C, H, W], each resized; samples outside the image are pad_value.

    Since iOS 17 [N, C, h, w], box i from image box_indices[i] (i unless told); before, roi [N, 1, 4, 1, 1] gives
    [N, B, C, h, w] and [N, 1, 5, 1, 1], with the image's index first, [N, 1, C, h, w].
    """
    x = call.tensor("x")
    if call.opset >= ONE_IMAGE_A_BOX and "boxes" in call:
        boxes = call.tensor("boxes")
        images = call.tensor("box_indices").long() if "box_indices" in call else torch.arange(len(boxes))
        return _crops(call, x, boxes, images)
    roi = call.tensor("roi")
    if roi.dim() != 5 or roi.shape[2] not in (4, 5):
        raise call.refuse(f"'roi' has the shape {list(roi.shape)} in place of [N, 1, 4 or 5, 1, 1]")
    boxes = roi.reshape(roi.shape[0], roi.shape[2])
    if boxes.shape[1] == 5:
        return _crops(call, x, boxes[:, 1:], boxes[:, 0].long())[:, None]
    batch = x.shape[0]
    images = torch.arange(batch).repeat(len(boxes))
    crops = _crops(call, x, boxes.repeat_interleave(batch, 0), images)
    return crops.reshape(len(boxes), batch, *crops.shape[1:])


def _crops(call: Call, x: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
    height, width = call.integer("target_height", 1), call.integer("target_width", 1)
    shape = call.reserve((len(boxes), x.shape[1], height, width))
    if boxes.shape[1:] != (4,) or images.shape != boxes.shape[:1]:
        raise call.refuse(f"boxes {list(boxes.shape)} and box_indices {list(images.shape)} do not fit")
    if len(boxes) and not 0 <= int(images.min()) <= int(images.max()) < x.shape[0]:
        raise call.refuse(f"a box is of an image outside 0 to {x.shape[0] - 1}")
    mode, value = call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT"), call.number("pad_value", 0.0)
    crops = x.new_full(shape, value)
    for index, (top, left, bottom, right) in enumerate(_corners(call, x, boxes).tolist()):
        rows = _places(call, mode, (top, bottom), height, x.shape[2])
        columns = _places(call, mode, (left, right), width, x.shape[3])
        mesh = rows[:, None].expand(height, width), columns.expand(height, width)
        crop = _bilinear(x[images[index]][None], mesh[0][None], mesh[1][None], "border", 0.0)[0]
        inside = (mesh[0] >= 0) & (mesh[0] <= x.shape[2] - 1) & (mesh[1] >= 0) & (mesh[1] <= x.shape[3] - 1)
        crops[index] = torch.where(inside, crop, crops[index])
    return crops


def _places(call: Call, mode: str, ends: tuple[float, float], count: int, size: int) -> Tensor:
    """Positions along one side of a box; a box turned round gives those of the box, from its far end."""
    first, last = ends
    steps = grid(mode, abs(last - first) + 1, count)
    places = first + steps if last >= first else first - steps
    outside = not bool(((places >= 0) & (places <= size - 1)).any())
    # Apple publishes one value of such a box before iOS 17 (coremltools' TestCropResize: the image mirrored at its last
    # element, no padding) and calls crops beyond the image unstable; since then pad_value is the rule.
    if mode == "UNALIGN_CORNERS" and call.opset < ONE_IMAGE_A_BOX and outside:
        return reflected(places, size)
    return places


def _corners(call: Call, x: Tensor, boxes: Tensor) -> Tensor:
    """[N, 4]: first row, first column, last row, last column."""
    mode = call.choice("box_coordinate_mode", BOXES, "CORNERS_HEIGHT_FIRST")
    boxes = boxes.to(torch.float64).nan_to_num(0.0).clamp(-FAR, FAR)
    if mode.endswith("WIDTH_FIRST"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if mode.startswith("CENTER"):
        boxes = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    boxes = boxes * call.number("spatial_scale", 1.0)
    if call.flag("normalized_coordinates"):
        boxes = boxes * torch.tensor([x.shape[2] - 1, x.shape[3] - 1] * 2, dtype=torch.float64)
    return boxes
