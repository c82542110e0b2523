"""A recipe: what precision the artifact has, and how closely it must agree with eager float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from acmix.toolkit.ranges import Observer

Precision = Literal["float32", "float16", "int16", "int8", "int4"]


FLOOR_DB = 10.0
"""Never is less asked for: outputs of zeros keep 0 dB."""


@dataclass(frozen=True)
class Tolerance:
    """The least agreement with eager float32 that passes.

    An output passes at `snr_db` or more. Where eager gives all zeros there is no signal to compare with:
    there the largest absolute difference must be `max_abs` or less.

    A network can amplify rounding so much that eager itself does not keep `snr_db` (a deep one with random
    weights, say). Then `margin_db` below what eager keeps is asked for, sample by sample: see
    `acmix.toolkit.conditioning`.
    """

    snr_db: float
    max_abs: float
    margin_db: float | None = None

    def asked_db(self, attainable_db: float | None) -> float:
        """The least SNR that passes where eager keeps `attainable_db` under the recipe's own rounding."""
        if attainable_db is None or self.margin_db is None:
            return self.snr_db
        return min(self.snr_db, max(attainable_db - self.margin_db, FLOOR_DB))


@dataclass(frozen=True)
class Recipe:
    """A TOML file of calibration/recipes, decoded.

    tolerance: against eager float32. conversion: of a quantized file against its simulation in torch.
    observer, equalize, correct_bias: how ranges are found, and how weights are mended first, for integer activations.
    """

    name: str
    weights: Precision
    activations: Precision
    tolerance: Tolerance
    description: str = ""
    conversion: Tolerance | None = None
    observer: Observer = "mse"
    equalize: bool = False
    correct_bias: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether anything of the file is held as integers with a scale."""
        return self.weights.startswith("int")

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are integers, whose ranges only calibration finds."""
        return self.activations.startswith("int")
