"""A run held against the truth, on texts that it writes itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyro_ltm.noise import fold
from pyro_ltm.runs.data import cut_of
from pyro_ltm.scores.calibration import Calibration, bins_of, evaluate_calibration
from pyro_ltm.scores.own_texts import Written, write_texts
from pyro_ltm.scores.sandwich import Sandwich, evaluate_sandwich

if TYPE_CHECKING:
    from pyro_ltm.runs.run import Run


def calibrate(
    run: Run,
    texts: int,
    *,
    draws: int = 99,
    length: int | None = None,
    fast_steps: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **how: Any,
) -> Calibration:
    """Where the truth lies under q: see `evaluate_calibration`, which takes the rest.

    A guide without a density is replaced as in `Run.evaluate`.

    Args:
        length: of the texts, in tokens; None: that of the run's data.

    Raises:
        UserError: the run has no thoughts, `length` is more than the model reads, or too few texts.
    """
    bins_of(draws, texts)  # before any of them is written
    written = _written(run, texts, length, batch_size, seed)
    loop = run.loop.with_density().with_steps(fast_steps)
    return evaluate_calibration(run.model, written, loop, layers=run.config.model.layers, draws=draws, seed=seed, **how)


def sandwich(
    run: Run,
    texts: int,
    *,
    length: int | None = None,
    fast_steps: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **how: Any,
) -> Sandwich:
    """The evidence of the texts of `calibrate`, from both sides: see `evaluate_sandwich`, which takes the rest."""
    written = _written(run, texts, length, batch_size, seed)
    return evaluate_sandwich(run.model, written, run.loop.with_density().with_steps(fast_steps), seed=seed, **how)


def _written(run: Run, texts: int, length: int | None, batch_size: int, seed: int) -> Iterator[Written]:
    """Texts of the model itself, cut as its data are: each to its end, or documents one after the other."""
    longest, packing, _ = cut_of(run)
    start = run.tokenizer.end_of_text
    return write_texts(
        run.model,
        texts,
        start=start,
        length=length or longest,
        end=start if packing == "document" else None,
        batch_size=batch_size,
        seed=fold(seed, "own texts"),
    )
