"""Memory that a computation needs at its peak."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_memory(
    work: Callable[[], object], device: torch.device | str = "cpu", *, reserved: bool = False
) -> int | None:
    """Bytes that `work()` holds at its peak, beyond what was held before; None on a device that does not count them.

    On CUDA by torch's own count of what is allocated, or `reserved`: what torch takes from the device, in pieces of
    2 MiB and more. Of that a recorded fast loop (`Recorder`) holds its part between replays, where nothing of it is
    allocated. On the CPU the running sum of the allocations that torch's profiler sees.
    """
    device = torch.device(device)
    if device.type == "cuda":
        cuda = torch.cuda
        now, most = (cuda.memory_allocated, cuda.max_memory_allocated)
        if reserved:
            now, most = cuda.memory_reserved, cuda.max_memory_reserved
            gc.collect()
            cuda.empty_cache()
        cuda.synchronize(device)
        before = now(device)
        cuda.reset_peak_memory_stats(device)
        work()
        cuda.synchronize(device)
        return most(device) - before
    if device.type != "cpu":
        work()
        return None
    gc.collect()  # what is freed while we watch was to be allocated while we watch
    # The profiler greets on stderr whenever it starts and stops, unless told otherwise before its first time.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # `torch.profiler.profile` is this with a schedule, and imports the compiler for it: seconds.
    with profile(use_kineto=True, profile_memory=True) as watched:
        work()
    record: Any = watched.kineto_results
    events = [event for event in record.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
