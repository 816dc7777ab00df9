"""Memory that a computation needs at its peak."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_memory(work: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes that `work()` holds at its peak, beyond what was held before; None on a device that does not count them.

    On CUDA what torch takes from the device: to that a recorded fast loop (`Recorder`) holds fast between its replays,
    where nothing of it is allocated. On the CPU the running sum of the allocations that torch's profiler sees.
    """
    device = torch.device(device)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) - before
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
