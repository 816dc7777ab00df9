"""Too little memory: which settings take less of it, and give the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_ltm.config import SlowConfig
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
        if smaller := takes_less(slow, splits=splits):
            settings = " ".join(f"--set {key}={value}" for key, value in smaller.items())
            message += f"go on with --resume {settings}, which gives the same figures in less memory"
        else:
            message += (
                "no setting that gives the same figures takes less; begin a new run with a smaller model, shorter "
                "sequences, fast.subsample or --dtype bfloat16"
            )
        raise OutOfMemory(message) from None


def takes_less(slow: SlowConfig, *, splits: bool = True) -> dict[str, str]:
    """Settings by which the same slow step takes less memory; empty where there are none.

    Smaller micro-batches, more of them: by the smallest factor of their size. Where each is one sequence, or may not be
    split (`splits`), layers that are computed again.
    """
    if slow.batch_size > 1 and splits:
        factor = next(n for n in range(2, slow.batch_size + 1) if slow.batch_size % n == 0)
        fewer, more = slow.batch_size // factor, slow.accumulate * factor
        return {"slow.batch_size": f"{fewer}", "slow.accumulate": f"{more}"}
    return {} if slow.recompute else {"slow.recompute": "true"}
