"""The memory that is free here, and how much of it a network may take."""

from __future__ import annotations

import os
from pathlib import Path

MEMORY_SHARE = 0.5  # of the memory that is free now; loading needs room for the weights and for their copy
MOST_MODULES = 50_000  # the deepest published networks have some thousands
UNKNOWN_MEMORY = 8 * 2**30  # bytes taken as free where the system does not tell


def allowed_bytes() -> int:
    """What a network's tensors may take together."""
    return int(available_memory() * MEMORY_SHARE)


def oversized(allowed: int) -> str:
    """What is wrong with a network that needs more than is allowed."""
    return f"needs over {allowed / 2**30:.1f} GiB for its tensors, the budget here"


def available_memory() -> int:
    """Bytes that can be had without swapping: the system's figure, or the control group's when that is less."""
    return min(_free_on_the_system(), _free_in_the_group())


def _free_on_the_system() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return UNKNOWN_MEMORY


def _free_in_the_group() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        return max(0, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return 2**62
