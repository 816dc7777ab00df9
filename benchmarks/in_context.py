"""Tasks learned in context at small size: accuracy against shots, of an LTM and of its twin.

    python -m benchmarks.in_context --out runs/in-context [--only lookup] [--seeds 0,1,2] [--hours 2]
    python -m benchmarks.in_context --table runs/in-context

Rows come one by one, as `benchmarks.rows` says. A row is one training: a task of `in-context`, a window, a side, a
seed. Sides are the LTM; its twin after equally many slow steps (equal tokens); and the twin that gets all operations of
the LTM's training, fast loop included, as more slow steps. On one task also LTMs with other numbers of thoughts, of
fast steps, and other widths. All learn alike, with the settings of `benchmarks.claim`. Each is asked questions of new
documents after 0 to 8 shots, thoughts fitted to the prompt alone; and the LTM once more with no fast step, to tell what
fitting is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.claim import FAST, GRID, SCHEDULE, SLOW
from benchmarks.interleave import machine
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from benchmarks.trained import FIT_STEPS, TWIN, configure, operations, scoring_loop, train
from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.data.in_context import task
from pyro_ltm.runs import Run
from pyro_ltm.scores.continuation import Predictor
from pyro_ltm.scores.estimate import mean_error
from pyro_ltm.tasks.few_shot import score_lessons

LTM, EQUAL_TOKENS, LONGER = "ltm", "twin", "twin, longer"
SHOTS = (0, 1, 2, 4, 8)
HEADS = [f"{shots} shot{'s' * (shots != 1)}" for shots in SHOTS]
LEARNED, ASKED = 20_000, 128
"""Documents to learn from, and to ask about."""
STEPS, BATCH, PARTICLES = 600, 16, 8
CHANGED = ("thoughts", "fast_steps", "dim")
"""Of a row, where it is not as most are."""
DOCUMENTS_SEED = 1_000_000
"""Stream of the documents that are asked about."""


@dataclass(frozen=True)
class Row:
    """One training. `size`: of the task."""

    task: str
    size: int
    side: str
    seed: int
    window: int = 128
    thoughts: int = 4
    fast_steps: int = 16
    dim: int = 64

    @property
    def name(self) -> str:
        """Of its file."""
        words = (f"{self.task}-{self.size}", f"w{self.window}", self.side, f"s{self.seed}")
        changed = [f"{key}{getattr(self, key)}" for key in CHANGED if getattr(self, key) != getattr(Row, key)]
        return "-".join("-".join((*words, *changed)).replace(",", "").replace("_", "").split())


EASY = (("words", 1), ("lookup", 2), ("copy", 2), ("modular", 2))
HARD = (("words", 3), ("lookup", 8), ("copy", 3), ("modular", 6))
PLAN = [
    *((name, size, window) for name, size in EASY for window in (128, 8)),
    *((name, size, 128) for name, size in HARD),
]
"""Tasks with their sizes and windows, the most important first: 128 holds a whole document, 8 the last shot or two."""
AXES: Mapping[str, Sequence[int]] = {"thoughts": (2, 16), "fast_steps": (4, 64), "dim": (32, 128)}
"""What else is changed, one at a time, on the first task of the plan."""


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order: all tasks with the first seed before others."""
    for seed in seeds:
        for name, size, window in PLAN:
            yield from (Row(name, size, side, seed, window) for side in (LTM, EQUAL_TOKENS, LONGER))
    name, size, window = PLAN[0]
    for key, values in AXES.items():
        for value in values:
            yield Row(name, size, LTM, seeds[0], window, **{key: value})
            if key == "dim":
                yield Row(name, size, EQUAL_TOKENS, seeds[0], window, dim=value)


def prepared(row: Row, out: Path) -> TokenDataset:
    """The documents to learn from, as tokens, in OUT, where they stay; each is a sequence."""
    folder = out / f"data-{row.task}-{row.size}"
    if not folder.exists():
        # A word is a token, and so is the end of each line and of the document.
        lesson = next(task(row.task, row.size).lessons(0, 1, SHOTS[-1]))
        length = len(lesson.text.split()) + len(lesson.shots) + 1
        source = f"in-context:{row.task},size={row.size},shots={SHOTS[-1]},documents={LEARNED}"
        prepare([source], folder, vocab_size=1024, sequence_length=length, validation_fraction=0.0)
    return TokenDataset(folder)


def config_of(row: Row, data: TokenDataset) -> Config:
    """How a row is trained."""
    scale = row.dim**0.5  # embeddings of unit variance at any width
    settings = [
        *(f"model.window={row.window}", f"model.dim={row.dim}", f"model.embedding_scale={scale}"),
        *(f"slow.batch_size={BATCH}", f"slow.steps={STEPS}", f"seed={row.seed}", *SCHEDULE),
    ]
    if row.side != LTM:
        return configure("nano", data, [*settings, *GRID[SLOW["twin"]], *TWIN])
    own = [f"model.thoughts={row.thoughts}", f"fast.steps={row.fast_steps}"]
    return configure("nano", data, [*settings, *GRID[SLOW["ltm"]], *FAST, *own])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains a row and asks it."""
    texts = prepared(row, out)
    config = config_of(row, texts)
    if row.side == LONGER:
        theirs = operations(config_of(Row(**asdict(row) | {"side": LTM}), texts), texts)
        config = apply_settings(config, [f"slow.steps={int(STEPS * theirs / operations(config, texts))}"])
    found = train(config, texts)
    result = asdict(row) | {
        "steps": config.slow.steps,
        "parameters": sum(weight.numel() for weight in found.run.model.parameters()),
        "operations": operations(config, texts),
        "seconds": round(found.seconds, 1),
        "machine": machine(),
        "fitted": asked(found.run, row, FIT_STEPS),
    }
    return result | ({"not fitted": asked(found.run, row, 0)} if row.side == LTM else {})


def asked(run: Run, row: Row, steps: int) -> dict[str, Any]:
    """By shots: of each document whether the answer was right, by each measure, and its nats."""
    loop = scoring_loop(run)
    scorer = Predictor(run.model, loop.with_steps(steps if loop.steps else 0), particles=PARTICLES, seed=1)
    lessons, found = list(task(row.task, row.size).lessons(DOCUMENTS_SEED, ASKED, SHOTS[-1])), {}
    for shots in SHOTS:
        one = score_lessons(scorer, run.tokenizer, lessons, shots)
        found[str(shots)] = {
            "right": [int(right) for right in one.right],
            "choice": round(one.choice, 4),
            "nats": [round(nats, 4) for nats in one.answer_nats.tolist()],
        }
    return found


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    made = {"in-context": _accuracy(found), "in-context gaps": _gaps(found), "in-context nats": _nats(found)}
    return made | {"in-context rows": _rows(found)}


def _cells(found: Rows) -> dict[tuple[Any, ...], list[Any]]:
    """Rows that differ in their seed alone, in the order of the plan."""
    made: dict[tuple[Any, ...], list[Any]] = {}
    order = sorted(found.values(), key=lambda row: (PLAN.index((row["task"], row["size"], row["window"])), row["seed"]))
    for row in order:
        key = row["task"], row["size"], row["window"], row["side"], row["thoughts"], row["fast_steps"], row["dim"]
        made.setdefault(key, []).append(row)
    return made


def _label(key: tuple[Any, ...]) -> list[Any]:
    name, size, window, side, *rest = key
    changed = [f"{axis} {value}" for axis, value in zip(CHANGED, rest, strict=True) if value != getattr(Row, axis)]
    return [name, size, window, ", ".join([side, *changed]).replace("fast_steps", "fast steps").replace("ltm", "LTM")]


def _mean(rows: list[Any], kind: str, shots: int, figure: str) -> torch.Tensor:
    """[S] a figure of each document, averaged over seeds."""
    return torch.tensor([row[kind][str(shots)][figure] for row in rows], dtype=torch.float64).mean(0)


def _by_shots(found: Rows, figure: str) -> list[list[Any]]:
    """A line for each side, with the mean over documents and seeds, and its error over documents."""
    lines = []
    for key, rows in _cells(found).items():
        for kind in ("fitted", "not fitted"):
            if kind in rows[0]:
                each = [_mean(rows, kind, shots, figure) for shots in SHOTS]
                cells = [f"{float(one.mean()):.3f} ± {mean_error(one, None).stderr:.3f}" for one in each]
                label = _label(key)
                label[-1] += ", no fast step" if kind == "not fitted" else ""
                lines.append([*label, len(rows), *cells])
    return lines


def _columns(found: Rows, figure: str, best: str) -> str:
    lines = _by_shots(found, figure)
    for name, size in dict.fromkeys((line[0], line[1]) for line in lines):
        known = [f"{getattr(task(name, size).known_after(shots), best):.3f}" for shots in SHOTS]
        lines.append([name, size, "", "best, exactly", "", *known])
    lines.sort(key=lambda line: (*EASY, *HARD).index((line[0], line[1])))
    return table(["task", "size", "window", "side", "seeds", *HEADS], lines)


def _accuracy(found: Rows) -> str:
    return _columns(found, "right", "accuracy")


def _nats(found: Rows) -> str:
    return _columns(found, "nats", "nats")


def _gaps(found: Rows) -> str:
    """How much more often the LTM is right than each twin, over the seeds that both have, paired by document."""
    cells, lines = _cells(found), []
    for key, rows in cells.items():
        *of, side, _, _, dim = key
        for twin in (EQUAL_TOKENS, LONGER) if side == LTM else ():
            usual = (Row.thoughts, Row.fast_steps)
            twins = {row["seed"]: row for row in cells.get((*of, twin, *usual, dim), [])}
            pairs = [(row, twins[row["seed"]]) for row in rows if row["seed"] in twins]
            if pairs:
                mine, its = (list(each) for each in zip(*pairs, strict=True))
                gaps = [_mean(mine, "fitted", shots, "right") - _mean(its, "fitted", shots, "right") for shots in SHOTS]
                shown = [f"{float(gap.mean()):+.3f} ± {mean_error(gap, None).stderr:.3f}" for gap in gaps]
                lines.append([*_label(key), twin, len(pairs), *shown])
    return table(["task", "size", "window", "LTM", "above", "seeds", *HEADS], lines)


def _rows(found: Rows) -> str:
    lines = []
    for key, rows in _cells(found).items():
        for row in rows:
            cost = [row["steps"], f"{row['parameters']:,}", f"{row['operations'] / 1e12:.2f}", f"{row['seconds']:.0f}"]
            right = [
                f"{sum(row['fitted'][str(shots)]['right']) / len(row['fitted']['0']['right']):.3f}" for shots in SHOTS
            ]
            lines.append([*_label(key), row["seed"], *cost, *right])
    columns = ["task", "size", "window", "side", "seed", "steps", "parameters", "TFLOP", "s"]
    return table([*columns, *HEADS], lines)


def _shares(row: Any) -> dict[str, float]:
    """Accuracy of one row by shots."""
    return {shots: sum(one["right"]) / len(one["right"]) for shots, one in row["fitted"].items()}


def line(row: Any) -> str:
    """Printed when a row is done."""
    which = f"{row['task']} {row['size']} w{row['window']} {row['side']} seed {row['seed']}"
    return f"{which}: {_shares(row)} in {row['seconds']} s"


STUDY = Study("in-context", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
