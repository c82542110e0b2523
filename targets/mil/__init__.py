"""A reference evaluator for Core ML ML programs: runs a saved .mlpackage on any machine, without coremltools.

    from acmix.targets.mil import load_package
    model = load_package("model.mlpackage")
    outputs = model({"image": array})

What runs is the saved file, its specification and its weights, operator by operator as Apple's MIL reference defines
them. It is a reference and no phone: the Neural Engine sums in another order.
"""

from __future__ import annotations

from acmix.targets.mil.model import Model, State, load_package

__all__ = ["Model", "State", "load_package"]
