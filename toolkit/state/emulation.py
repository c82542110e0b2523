"""Whether a device is emulated: its milliseconds are then no latency of anything."""

from __future__ import annotations

import re

from acmix.toolkit.conditions import ReadText
from acmix.toolkit.state.linux import CPU

ARM64 = frozenset({"aarch64", "arm64"})
MIDR_SINCE = (4, 10)
"""Linux shows midr_el1 since about then; an older kernel without it proves nothing."""
FOREIGN_KERNEL = re.compile(r"x86[-_]64|amd64|\bi[3-6]86\b", re.IGNORECASE)
RELEASE = re.compile(r"Linux version ([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)


def evidence(read_text: ReadText, architecture: str | None, properties: dict[str, str]) -> tuple[str, ...] | None:
    """Every sign of an emulator; () when it was looked for and there is none, None when nothing could be read.

    architecture: what `uname -m` says.  properties: Android's, {} elsewhere.  A virtual machine that runs on the
    processor itself (KVM and the like) is not emulated. An arm64 one whose device tree is linux,dummy-virt is taken
    for emulated all the same: qemu-system with -cpu cortex-a72 gives that tree and a real processor's midr_el1 too.
    """
    version, info = read_text("/proc/version"), read_text("/proc/cpuinfo")
    tree = [read_text(f"/proc/device-tree/{leaf}") for leaf in ("model", "compatible")]
    if version is None and info is None and not properties:
        return None
    signs = [
        f"the device tree says {sign}" for sign in ("QEMU", "linux,dummy-virt") if any(sign in (t or "") for t in tree)
    ]
    if properties.get("ro.kernel.qemu") == "1" or properties.get("ro.boot.qemu") == "1":
        signs.append("Android says that it runs in QEMU")
    info = (info or "")[:65536]
    if "QEMU TCG" in info:
        signs.append("the processor calls itself QEMU TCG")
    if re.search(r"^CPU implementer[ \t]{0,9}: 0x00$", info, re.MULTILINE):
        signs.append("the processor has no implementer")
    if architecture in ARM64:
        signs += _foreign(version or "", read_text(f"{CPU}/cpu0/regs/identification/midr_el1"))
    return tuple(signs)


def _foreign(version: str, midr: str | None) -> list[str]:
    """Signs that arm64 is only played: another architecture's kernel, no register that each arm64 kernel shows."""
    signs = []
    # Only an arm64 kernel has the register, wherever it was built: its text may name the builder's architecture.
    if not (midr or "").strip().strip("0x") and FOREIGN_KERNEL.search(version[:400]):
        signs.append("an arm64 program under an x86 kernel")
    release = RELEASE.match(version[:400])
    if midr is None and release and (int(release[1]), int(release[2])) >= MIDR_SINCE:
        signs.append("an arm64 kernel without midr_el1")
    return signs
