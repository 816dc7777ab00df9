"""Fair timings: what is compared runs in turn, in one process, and each is judged by its median."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def interleaved(
    works: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each work, [rounds], taken in turn; each runs `warm` times before that."""
    for _ in range(warm):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(clock() - began)
    return seconds


def quiet_clock() -> Callable[[], float]:
    """The processor's seconds where one thread computes, which a busy machine disturbs less; else the time."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def summary(seconds: list[float], per: float = 1.0) -> dict[str, Any]:
    """Median, smallest and largest, each divided by `per`; seconds."""
    values = [second / per for second in seconds]
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "rounds": len(values),
    }


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """How many times faster: the median of the rounds' ratios, and the smallest and largest of them."""
    ratios = [slow / fast for slow, fast in zip(slower, faster, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def machine() -> dict[str, Any]:
    """The machine: processor, threads, memory, versions; and the GPU where there is one."""
    flags = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    found = {
        "processor": name,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
        "bfloat16": "amx" if "amx_bf16" in flags else "avx512" if "avx512_bf16" in flags else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "pyro-ppl")},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties().total_memory
    return found
