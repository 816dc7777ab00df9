"""A run on texts that it was not trained on: each under the valid protocols, by the token, the byte and the word."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.runs.protocols import Count, Evaluation, evaluate_protocols, valid_figures
from pyro_ltm.runs.run import Run
from pyro_ltm.scores import Difference
from pyro_ltm.scores.estimate import plain
from pyro_ltm.tasks.text_tasks import Level, Task, TextCounts, prepare_task

UPPER_BOUND = "upper bound on nats: z fitted to the sequence that is scored, the whole KL charged, fresh noise"
BY_ORDERS = "upper bound on nats: the mean over orders in which a masked diffusion may write them, on fresh noise"
DIFFUSION = "masked diffusion"
EXACT = "exact: an autoregressive model has nothing to bound"
PREDICTIVE = "predictive: each token from the text before it alone"
FLOOR = "floor: the text's own entropy, exactly, which no bound and no prediction can lie below"


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The figures of one task.

    Attributes:
        task: what was scored. levels: figures by name: `bound`, `importance-weighted`, `prefix`, `twin`,
            `masked diffusion`, `floor`.
        meanings: what kind of figure each is.
        below_twin, above_floor: how far below the twin and above the floor, paired by sequence, in nats a token.
        no_bytes: why there are no figures by the byte and the word; empty where there are some.
        no_floor: why a world's text has no floor here; empty where it has one, and for other texts.
        documents, tokens, words, bytes, sequences: of what was scored; words and bytes of the original text.
        counts_are_estimated: only the first sequences were scored: words and bytes are their share of the text's, by
            tokens.
        particles, fast_steps, stride, seed: how it was measured; stride None without a predictive figure.
    """

    task: Task
    levels: dict[str, Level]
    meanings: dict[str, str]
    below_twin: dict[str, Difference] = field(default_factory=dict)
    above_floor: dict[str, Difference] = field(default_factory=dict)
    no_bytes: str = ""
    no_floor: str = ""
    documents: int
    tokens: int
    words: int
    bytes: int
    sequences: int
    counts_are_estimated: bool
    particles: int
    fast_steps: int
    stride: int | None
    seed: int

    @property
    def fitted(self) -> bool:
        """Whether its figures are bounds; the twin's are exact."""
        return self.meanings[next(iter(self.levels))] != EXACT

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a key for each figure, with its `meaning`; `no_bytes` and `no_floor` where those are missed."""
        result = plain(self)
        levels, meanings = result.pop("levels"), result.pop("meanings")
        reasons = {name: why for name in ("no_bytes", "no_floor") if (why := result.pop(name))}
        figures = {name: {**level, "meaning": meanings[name]} for name, level in levels.items()}
        return figures | result | reasons


def score_task(
    run: Run,
    task: Task,
    *,
    particles: int = 16,
    sequences: int | None = None,
    counting: Callable[[str, int], Count] | None = None,
    **scoring: Any,
) -> TaskScore:
    """Scores `run`, and its rivals on the same tokens, on one task.

    Args:
        particles: draws K, of the importance-weighted bound and of the predictive mixture.
        sequences: at most so many; None: as the task says.
        counting: begins to count the sequences of a figure, of so many, and gives what is called with the progress.
        scoring: `protocols` of `bound` and `prefix`, `twin`, `masked_diffusion` and the rest of `evaluate_protocols`.

    Raises:
        UserError: the text cannot be read, its sequences do not fit the model, or a figure lies below the entropy of a
            world's text (`check_floor`).
    """
    with _named(task), tempfile.TemporaryDirectory(prefix="pyro-ltm-") as temporary:
        data, counts = prepare_task(task, run.tokenizer, run.sequence_length, Path(temporary))
        total = min([len(data), *(limit for limit in (task.sequences, sequences) if limit)])

        def count(name: str) -> Count:
            assert counting is not None
            return counting(f"{task.name}: {name}", total)

        scoring |= {"particles": particles, "sequences": total, "counting": count if counting else None}
        found = evaluate_protocols(run, data, **scoring)
        share = (found.bound or found.prefix).tokens / data.tokens  # type: ignore[union-attr]
        whole = total == len(data)
    scored = TextCounts(counts.documents, round(counts.words * share), round(counts.bytes * share))
    return _task_score(run, task, found, scored, sequences=total, counts_are_estimated=not whole)


def _task_score(run: Run, task: Task, found: Evaluation, scored: TextCounts, **more: Any) -> TaskScore:
    """The figures of an evaluation as those of a task, over the words and bytes that were scored."""
    first: Any = found.bound or found.prefix
    model = run.config.model
    figures: dict[str, Any] = valid_figures({"bound": found.bound, "prefix": found.prefix})
    if not model.thoughts or first.particles == 1:
        figures.pop("importance-weighted", None)  # it says nothing that the bound does not
    others = (("twin", found.twin), (DIFFUSION, found.masked_diffusion), ("floor", found.floor))
    figures |= {name: one for name, one in others if one}
    counts = None if found.no_bytes else scored
    return TaskScore(
        task=task,
        levels={name: Level.of(figure, first.tokens, counts) for name, figure in figures.items()},
        meanings={name: _meaning(name, model) for name in figures},
        below_twin={name: gap for name, gap in found.below_twin.items() if name in figures},
        above_floor={name: gap for name, gap in found.above_floor.items() if name in figures},
        no_bytes=found.no_bytes,
        no_floor=task.why_no_floor or found.no_floor,
        documents=scored.documents,
        tokens=first.tokens,
        words=scored.words,
        bytes=scored.bytes,
        particles=first.particles,
        fast_steps=first.fast_steps,
        stride=found.prefix.stride if found.prefix else None,
        seed=first.seed,
        **more,
    )


@contextlib.contextmanager
def _named(task: Task) -> Iterator[None]:
    """Names the task in an error of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"tasks.{task.name}: {error}") from None


def _meaning(name: str, model: ModelConfig) -> str:
    if name == "floor":
        return FLOOR
    if name == DIFFUSION or (model.is_diffusion and name != "twin"):
        return BY_ORDERS
    if name == "twin" or model.is_exact:
        return EXACT
    return PREDICTIVE if name == "prefix" else UPPER_BOUND


__all__ = ["PREDICTIVE", "UPPER_BOUND", "TaskScore", "score_task"]
