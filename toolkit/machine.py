"""The machine we run on: what the manifest and a measurement record of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

MEMORY_PER_CONVERSION_MB = 2500
"""Measured: a converter peaks at 1 to 2 GB on a network of 30 MB."""


def cpu_name() -> str:
    """The processor's own name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> tuple[int, ...]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def governor(cpu: int) -> str:
    """The frequency governor of one processor, or 'unknown' (virtual machines have none)."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")
    return path.read_text(encoding="ascii").strip() if path.exists() else "unknown"


def conversions_at_once(targets: int) -> int:
    """How many converters run in parallel: one a processor, as far as memory allows."""
    memory_mb = psutil.virtual_memory().available // 2**20
    return max(1, min(targets, len(usable_cpus()), memory_mb // MEMORY_PER_CONVERSION_MB))


def describe() -> dict[str, str]:
    """System, architecture, processor and Python, for the manifest."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": cpu_name(),
        "cpus": str(len(usable_cpus())),
        "python": platform.python_version(),
    }


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """The installed version of each distribution, 'not installed' where there is none."""
    found = {}
    for name in sorted(set(distributions)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
