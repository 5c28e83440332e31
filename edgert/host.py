"""What this machine is, and what a process of it uses. The only module that asks psutil."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VNNI", "Host", "cpu_seconds", "detect", "peak_rss_bytes", "rss_bytes"]

_FEATURE_KEYS = ("flags", "Features")
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""CPU features that sum 8-bit products in 32 bits in one instruction, so that nothing saturates."""


@dataclass(frozen=True, slots=True)
class Host:
    """One machine, as far as profiles and artifacts ask.

    Args:
        arch: as ``uname -m`` says: ``x86_64``, ``aarch64``, ``armv7l``.
        features: CPU flags as the kernel names them (``avx2``, ``avx512_vnni``, ``asimddp``).
        cores: logical cores this process may use.
        memory_bytes: of the machine, or of the control group that holds this process where that is less.
        boards: device-tree names of the board and its chip, most specific first; empty on a PC.
    """

    arch: str
    features: frozenset[str]
    cores: int
    memory_bytes: int
    boards: tuple[str, ...] = ()

    @property
    def vnni(self) -> bool:
        """Whether 8-bit products are summed in 32 bits in one instruction, so that nothing saturates."""
        return bool(self.features & VNNI)


def detect(root: Path = Path("/")) -> Host:
    """This machine.

    Args:
        root: where ``proc`` and ``sys`` are; the features, boards and memory limit of another one's copy can be read.
    """
    import psutil

    memory = int(psutil.virtual_memory().total)
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    return Host(
        arch=platform.machine(),
        features=_features(_read(root / "proc/cpuinfo")),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=min(memory, int(limit)) if limit.isdigit() else memory,
        boards=tuple(name for name in _read(root / "proc/device-tree/compatible").split("\0") if name),
    )


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now; 0 when it is gone."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def peak_rss_bytes() -> int:
    """The most memory this process ever had resident.

    ``ru_maxrss`` would also count the parent's memory at the moment of the fork, hence the kernel's own mark.
    """
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return rss_bytes(os.getpid())


def cpu_seconds() -> float:
    """CPU time of this process so far, all its threads, user and system."""
    return time.process_time()


def _features(cpuinfo: str) -> frozenset[str]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in _FEATURE_KEYS:
            return frozenset(value.split())
    return frozenset()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
