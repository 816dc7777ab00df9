"""Too little memory: which settings take less of it, and give the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_ltm.config import SlowConfig
from pyro_ltm.distributed import current
from pyro_ltm.errors import OutOfMemory, is_out_of_memory


@contextmanager
def told_what_fits(folder: Path, slow: SlowConfig, *, splits: bool = True) -> Iterator[None]:
    """Turns an error for want of memory into one that says how the run in `folder` can go on.

    Args:
        splits: smaller micro-batches give the same figures.

    Raises:
        OutOfMemory: in place of any error for want of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"{folder}: out of memory; the last checkpoint is kept: "
        if smaller := takes_less(slow, current().size, splits=splits):
            settings = " ".join(f"--set {key}={value}" for key, value in smaller.items())
            message += f"go on with --resume {settings}, which gives the same figures in less memory"
        else:
            message += (
                "no setting that gives the same figures takes less; begin a new run with a smaller model, shorter "
                "sequences, fast.subsample or --dtype bfloat16"
            )
        raise OutOfMemory(message) from None


def takes_less(slow: SlowConfig, processes: int = 1, *, splits: bool = True) -> dict[str, str]:
    """Settings by which the same slow step of so many processes takes less memory; empty where there are none.

    Smaller micro-batches, more of them: the largest that are smaller than a process has. Where each is one sequence, or
    may not be split (`splits`), layers that are computed again.
    """
    micro_batch = min(slow.batch_size, -(-slow.sequences // processes))  # as the trainer deals sequences out
    if micro_batch > 1 and splits:
        fewer = next(size for size in range(micro_batch - 1, 0, -1) if slow.batch_size % size == 0)
        return {"slow.batch_size": f"{fewer}", "slow.accumulate": f"{slow.sequences // fewer}"}
    return {} if slow.recompute else {"slow.recompute": "true"}
