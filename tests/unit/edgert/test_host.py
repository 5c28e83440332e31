"""What this machine is, and another one's files read in its place."""

import os
from pathlib import Path

import numpy as np

from edgert import host

_PI = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"


def test_this_machine_is_described() -> None:
    found = host.detect()
    assert found.arch == os.uname().machine
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory_bytes > 64 << 20
    assert found.features


def test_the_features_and_the_board_of_an_arm_box_are_read(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(_PI)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    found = host.detect(tmp_path)
    assert found.features == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    assert found.boards == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert not found.vnni


def test_vnni_is_found_among_the_flags(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu avx2 avx512_vnni\n")
    assert host.detect(tmp_path).vnni


def test_the_limit_of_the_control_group_counts(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("268435456\n")
    assert host.detect(tmp_path).memory_bytes == 256 << 20
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert host.detect(tmp_path).memory_bytes > 0


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    found = host.detect(tmp_path)
    assert (found.features, found.boards) == (frozenset(), ())


def test_peak_memory_grows_with_what_is_used_and_stays() -> None:
    before = host.peak_rss_bytes()
    block = np.ones(host.rss_bytes(os.getpid()) + (32 << 20), np.uint8)
    held = host.peak_rss_bytes()
    del block
    assert held >= before + (16 << 20)
    assert host.peak_rss_bytes() >= held - (4 << 20)  # the kernel counts per core and adds up now and then


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert host.rss_bytes(2**22 + 1) == 0


def test_cpu_time_passes_only_while_working() -> None:
    before = host.cpu_seconds()
    np.linalg.svd(np.ones((200, 200)))
    assert host.cpu_seconds() > before
