"""Sorting, choosing and finding."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator

THRESHOLD_FREE = 17
"""The first opset whose non_maximum_suppression has no score_threshold and counts boxes along the last axis."""


@operator("argsort")
def argsort(call: Call) -> Tensor:
    """Where the elements along an axis (the last unless told) go when sorted, downwards unless ascending."""
    x = call.tensor("x")
    axis = call.axis("axis", x.dim(), -1)
    return torch.argsort(x, dim=axis, descending=not call.flag("ascending"), stable=True)


@operator("topk")
def topk(call: Call) -> tuple[Tensor, ...]:
    """The k (1) largest, or smallest, along an axis (the last unless told) in order, and where they were."""
    x, k = call.tensor("x"), call.integer("k", 1)
    axis = call.axis("axis", x.dim(), -1)
    k = x.shape[axis] if k == -1 else k
    if not 0 <= k <= x.shape[axis]:
        raise call.refuse(f"'k' is {k} for an axis of {x.shape[axis]}")
    values, indices = torch.sort(x, dim=axis, descending=not call.flag("ascending"), stable=True)
    best = (values.narrow(axis, 0, k), indices.narrow(axis, 0, k))
    return best if call.flag("return_indices", True) else best[:1]


@operator("non_zero")
def non_zero(call: Call) -> Tensor:
    """The index of every element that is not 0, [N, rank]."""
    return torch.nonzero(call.tensor("x"))


@operator("non_maximum_suppression")
def non_maximum_suppression(call: Call) -> tuple[Tensor, ...]:
    """Boxes (x, y, width, height) by falling score without those that overlap a better one by more than a threshold.

    A box's score is its best class; per class, only boxes of one best class suppress each other.  When no box passes
    score_threshold the best one stays.  Places that stay empty hold zeros, and -1 as the index.
    """
    boxes, scores = call.tensor("boxes"), call.tensor("scores")
    last = call.opset >= THRESHOLD_FREE and "score_threshold" not in call
    if last:
        boxes, scores = boxes.mT, scores.mT
    count, batch = call.integer("max_boxes"), boxes.shape[0]
    call.reserve((batch, count, 4 + scores.shape[2]))
    kept_boxes, kept_scores = boxes.new_zeros((batch, count, 4)), scores.new_zeros((batch, count, scores.shape[2]))
    kept, totals = torch.full((batch, count), -1), torch.zeros(batch, dtype=torch.int64)
    for image in range(batch):
        chosen = _survivors(call, boxes[image], scores[image])[:count]
        kept_boxes[image, : len(chosen)], kept_scores[image, : len(chosen)] = (
            boxes[image, chosen],
            scores[image, chosen],
        )
        kept[image, : len(chosen)], totals[image] = chosen, len(chosen)
    return (kept_boxes.mT, kept_scores.mT, kept) if last else (kept_boxes, kept_scores, kept, totals)


def _survivors(call: Call, boxes: Tensor, scores: Tensor) -> Tensor:
    best, classes = scores.max(1)
    threshold = call.number("iou_threshold")
    per_class = call.flag("per_class_suppression")
    alive = torch.ones(len(boxes), dtype=torch.bool)
    if "score_threshold" in call:
        alive = best > call.number("score_threshold")
    chosen: list[int] = []
    for index in torch.argsort(best, descending=True, stable=True).tolist():
        if alive[index]:
            chosen.append(index)
            beaten = _overlap(boxes, boxes[index]) > threshold
            alive &= ~(beaten & (classes == classes[index])) if per_class else ~beaten
    return torch.tensor(chosen or [int(best.argmax())])


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of each box with one; 0 where a box has no area."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    sides = (torch.minimum(high, box[:2] + box[2:] / 2) - torch.maximum(low, box[:2] - box[2:] / 2)).clamp(min=0)
    shared, areas, area = sides.prod(1), boxes[:, 2:].prod(1), box[2:].prod()
    return torch.where((areas > 0) & (area > 0), shared / (areas + area - shared), torch.zeros_like(shared))
