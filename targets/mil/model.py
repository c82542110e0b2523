"""A loaded package that can be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acmix.targets.mil.arithmetic import Accumulation, Arithmetic, Precision
from acmix.targets.mil.evaluate import ReadyBlock, Session, run_block
from acmix.targets.mil.feeds import Output, outputs_of, values_of
from acmix.targets.mil.interface import Interface
from acmix.targets.mil.prepare import prepare
from acmix.targets.mil.program import Function, Program, elements_of
from acmix.targets.mil.reading import read_package
from acmix.toolkit.errors import UsageError, did_you_mean


@dataclass
class State:
    """What a stateful model remembers between calls: tensors by name, zeros at first."""

    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A package, ready to be evaluated: model({"image": array}) gives its outputs by name."""

    program: Program
    arithmetic: Arithmetic
    blocks: Mapping[str, ReadyBlock]

    def __call__(
        self, inputs: Mapping[str, Any], function: str | None = None, state: State | None = None
    ) -> dict[str, Output]:
        """Outputs by name: arrays, pixels for images, a label and a dictionary for a classifier.

        inputs: arrays by name; for an image a PIL image or RGB pixels, [1, H, W, 3].  function: of several, else the
        default one.  state: of make_state, which the call changes.  Raises UsageError.
        """
        called = self._function(function)
        if called.interface.states and state is None:
            raise UsageError("this model has states: make one by model.make_state() and give it to every call.")
        session = Session(called.opset, self.arithmetic, state.tensors if state else {})
        with torch.no_grad():
            values = values_of(called, inputs, self.arithmetic)
            results = run_block(self.blocks[called.name], values, None, session)
        return outputs_of(called, results, self.arithmetic)

    def interface(self, function: str | None = None) -> Interface:
        """The inputs, outputs and states of a function."""
        return self._function(function).interface

    def make_state(self, function: str | None = None) -> State:
        """The states of a function, all zeros."""
        states = self._function(function).interface.states
        for one in states:
            elements_of(one.shape, f"the state '{one.name}'")
        return State({one.name: torch.zeros(one.shape, dtype=self.arithmetic.dtype) for one in states})

    def _function(self, name: str | None) -> Function:
        name = name or self.program.default_function
        if name not in self.program.functions:
            known = self.program.functions
            raise UsageError(
                f"the package has no function '{name}'.{did_you_mean(name, known)} It has: {', '.join(known)}."
            )
        return self.program.functions[name]


def load_package(
    path: Path | str,
    precision: Precision = "declared",
    accumulate: Accumulation = "float32",
    check_weights: bool = True,
) -> Model:
    """Read an .mlpackage for evaluation; see Arithmetic for the two modes.  Raises UsageError.

    check_weights: refuse weights whose fingerprint is not the one that acmix wrote into its own packages.
    """
    arithmetic = Arithmetic(precision, accumulate)
    program = read_package(Path(path))
    if not check_weights:
        program = replace(program, fingerprint="")
    return Model(program, arithmetic, prepare(program, arithmetic))
