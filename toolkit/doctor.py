"""What this installation and this machine can do."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from acmix.toolkit import catalog, machine


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what to do when it is not fine."""

    what: str
    found: str
    fine: bool
    cure: str = ""


def examine() -> list[Check]:
    """Python, every target's packages and runtime, processors, memory and disk."""
    return [_python(), *(_target(name) for name in catalog.stems("targets")), *_host()]


def _python() -> Check:
    version = platform.python_version_tuple()
    fine = (int(version[0]), int(version[1])) >= (3, 11)
    return Check("Python", platform.python_version(), fine, "" if fine else "acmix needs Python 3.11 or newer")


def _target(name: str) -> Check:
    target = catalog.load_target(name)
    missing = catalog.missing_package(name)
    if missing:
        return Check(f"target {name}", f"{missing} is not installed", False, f"pip install 'acmix[{name}]'")
    found = ", ".join(f"{n} {v}" for n, v in machine.versions(target.distributions).items())
    reason = target.cannot_run_here(target.options())
    return Check(f"target {name}", found, True, f"exports; {reason}" if reason else "")


def _host() -> list[Check]:
    cpus = machine.usable_cpus()
    memory_gb = psutil.virtual_memory().available / 2**30
    disk_gb = shutil.disk_usage(Path.cwd()).free / 2**30
    governor = machine.governor(cpus[0])
    noisy = governor not in ("performance", "unknown")
    return [
        Check("processors", f"{len(cpus)}, {machine.cpu_name()}", True),
        Check("frequency governor", governor, True, "latencies vary; set it to 'performance'" if noisy else ""),
        Check("free memory", f"{memory_gb:.1f} GiB", memory_gb > 2, "" if memory_gb > 2 else "converters need 2 GiB"),
        Check("free disk here", f"{disk_gb:.1f} GiB", disk_gb > 1, "" if disk_gb > 1 else "choose another --out"),
    ]
