"""A recipe: what precision the artifact has, and how closely it must agree with eager float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Tolerance:
    """The least agreement with eager float32 that passes.

    An output passes at `snr_db` or more. Where eager gives all zeros there is no signal to compare with:
    there the largest absolute difference must be `max_abs` or less.
    """

    snr_db: float
    max_abs: float


@dataclass(frozen=True)
class Recipe:
    """A TOML file of calibration/recipes, decoded."""

    name: str
    weights: Precision
    activations: Precision
    tolerance: Tolerance
    description: str = ""

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges must be observed on samples first: never for floats."""
        return not (self.weights.startswith("float") and self.activations.startswith("float"))
