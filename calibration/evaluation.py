"""What the rungs of `mixed` are judged on: photos in memory, with the outputs of the float program."""

from __future__ import annotations

from dataclasses import dataclass

from torch.export import ExportedProgram

from acmix.calibration.sensitivity import is_scores, require_classes
from acmix.calibration.simulation import Simulation
from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import Grid
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import Array
from acmix.toolkit.samples import Samples

ALMOST_NONE = 0.02
"""Of photos that the float network has right, or half of what guessing has: the labels are wrong, or the weights."""


@dataclass(frozen=True)
class Evaluation:
    """Photos in memory with the float program's outputs, to judge rungs on. float_right: None without labels."""

    data: Samples
    inputs: tuple[tuple[Array, ...], ...]
    wanted: tuple[tuple[Array, ...], ...]
    float_right: int | None

    @classmethod
    def of(cls, program: ExportedProgram, data: Samples) -> Evaluation:
        """Run the float program.

        Raises UsageError where its first output is no row of scores, and for labels that are not its classes.
        """
        run = Simulation(graph_module(program), Grid({}, frozenset(), frozenset(), frozenset()))
        inputs = tuple(data)
        wanted = tuple(tuple(array.copy() for array in run.outputs(sample)) for sample in inputs)
        if not wanted or not is_scores(wanted[0]):
            shape = "x".join(map(str, wanted[0][0].shape)) if wanted else "nothing"
            raise UsageError(
                f"--precision mixed counts right classes, and the first output is {shape}, no row of scores.\n"
                "Take --precision w8a8, and look at acmix analyze."
            )
        if data.labels is None:
            return cls(data, inputs, wanted, None)
        require_classes(data, wanted[0][0].size)
        right = sum(int(w[0].argmax()) == label for w, label in zip(wanted, data.labels, strict=True))
        if right <= max(ALMOST_NONE, 0.5 / wanted[0][0].size) * len(data):
            raise UsageError(
                f"the float network is right on {right} of {len(data)} photos of {data.name}, so no accuracy is left "
                "to hold: do the labels count like its classes?\nGive the numbers of its classes in labels.csv or as "
                "folder names, and trained weights; or give the photos without labels: then agreement is held."
            )
        return cls(data, inputs, wanted, right)
