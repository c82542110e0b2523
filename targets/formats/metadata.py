"""What an exported file says about itself, whatever its format."""

from __future__ import annotations

import dataclasses
import json

from acmix.toolkit.target import LoweringJob


def metadata(job: LoweringJob) -> dict[str, str]:
    """Key and text of everything an app needs beside the tensors: the same keys in every format.

    acmix.preprocess and acmix.labels are JSON, and absent when the job has none.
    """
    texts = {"acmix.model": job.model, "acmix.recipe": job.recipe.name}
    if job.preprocess is not None:
        texts["acmix.preprocess"] = json.dumps(dataclasses.asdict(job.preprocess), sort_keys=True)
    if job.labels:
        texts["acmix.labels"] = json.dumps(job.labels, ensure_ascii=False)
    return texts


def description(job: LoweringJob) -> str:
    """One line for a human who opens the file in a viewer."""
    from importlib.metadata import version

    return f"{job.model}, {job.recipe.name}, exported by acmix {version('acmix')} from torch {version('torch')}"
