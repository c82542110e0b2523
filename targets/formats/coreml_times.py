"""Core ML's estimate of where the time goes: its compute plan, on a Mac. Written from coremltools 9.0, never run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from acmix.toolkit.errors import UsageError
from acmix.toolkit.kernels import KernelTime, KernelTimes
from acmix.toolkit.target import Array, Runner

MEASURED_BY = (
    "Core ML's compute plan: its estimated share of each operator, times the measured time of the whole prediction; "
    "no operator was timed"
)


class PlannedModel:
    """A prediction whose time is divided as Core ML's compute plan says. model: an MLModel on the CPU."""

    def __init__(self, model: Any, run: Runner, outputs: Sequence[str]) -> None:
        self.model, self.run, self.outputs = model, run, list(outputs)
        self.latencies_ns: list[int] = []

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        begin = time.perf_counter_ns()
        made = self.run(inputs)
        self.latencies_ns.append(time.perf_counter_ns() - begin)
        return made

    def kernels(self) -> KernelTimes:
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(
            path=self.model.get_compiled_model_path(), compute_units=self.model.compute_unit
        )
        program = plan.model_structure.program
        if program is None:
            raise UsageError("Core ML's compute plan knows ML programs only, and this file holds none.")
        return KernelTimes(tuple(self._kernels(plan, program.functions["main"].block)), MEASURED_BY)

    def _kernels(self, plan: Any, block: Any) -> Iterator[KernelTime]:
        for operation in block.operations:
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            if cost is None:
                continue
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            device = type(usage.preferred_compute_device).__name__ if usage is not None else "unknown"
            name = operation.outputs[0].name
            value = f"output.{self.outputs.index(name)}" if name in self.outputs else name
            times = tuple(round(cost.weight * latency) for latency in self.latencies_ns)
            yield KernelTime(operation.operator_name, value, device, None, times)
