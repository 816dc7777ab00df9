"""Thoughts against test-time training: the gain of fitting q to the text so far, and of adapting the twin to it.

    python -m benchmarks.test_time --out runs/test-time --shared ../shared [--only wikitext-2] [--seeds 0,1,2]
    python -m benchmarks.test_time --table runs/test-time

Rows come one by one, as `benchmarks.rows` says. A row is a text, a window and a seed: an LTM and its twin are trained
on equally many tokens, as in `benchmarks.claim`, and read the same test sequences in the same chunks, each chunk scored
before anything is learned from it. The LTM fits q to all tokens before a chunk (`evaluate_prefix`), with more and more
fast steps; the twin takes more and more steps of low-rank adaptation on the chunk that it has just read
(`evaluate_adapted`), at the rate and on the matrices that are best on validation text for so many steps. Operations are
counted as they are executed, of scoring as of learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import claim
from benchmarks.claim import EQUAL_TOKENS, LTM, rounded
from benchmarks.interleave import machine
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import TEXTS, prepared
from benchmarks.trained import Trained, scoring_loop, train
from pyro_ltm.data import TokenDataset
from pyro_ltm.optimizers import Adam
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.scores import Adaptation, Figure, difference, evaluate_adapted, evaluate_prefix
from pyro_ltm.scores.dependence import Places

SEQUENCES, COUNTED = 24, 1
"""Test sequences, and those on which operations are counted."""
CHUNKS = 8
"""In each sequence."""
FITS, PARTICLES = (0, 1, 2, 4, 8, 16), 4
"""Fast steps of each fit, natural-gradient ones; draws from q."""
ADAPTATIONS, RANK = (0, 1, 2, 4, 8, 16), 4
"""Steps on each chunk."""
RATES = (0.001, 0.003, 0.01)
TARGETS = {"queries and values": ("wq", "wv"), "all matrices": ("wq", "wk", "wv", "wo", "w1", "w2", "w3")}
TUNED = 8
"""Validation sequences by which rate and matrices are chosen, for each number of steps."""
PLAN = [("tinyshakespeare", 8), ("wikitext-2", 8), ("proposals", 8), ("worlds-15", 8), ("wikitext-2", 256)]
"""Texts and windows, the most important first."""


@dataclass(frozen=True)
class Row:
    """A text, a window, a seed."""

    text: str
    window: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.text}-w{self.window}-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order."""
    yield from (Row(text, window, seed) for seed in seeds for text, window in PLAN)


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains both sides, and scores each with more and more steps."""
    parts = prepared(row.text, data, out)
    sides = {
        side: train(claim.config_of(claim.Row(row.text, row.window, side, row.seed), parts), parts.train)
        for side in (LTM, EQUAL_TOKENS)
    }
    twin, places = sides[EQUAL_TOKENS], list[Places]()

    def score(of: Callable[[int], Figure]) -> dict[str, Any]:
        figure = of(SEQUENCES)
        assert figure.places is not None
        places.append(figure.places)
        tokens = int(figure.sequence_tokens[:COUNTED].sum())
        spent = count_operations(lambda: of(COUNTED)) / tokens
        return {"nats": rounded(figure.sequence_nats), "operations": round(spent)}

    def fit(steps: int) -> dict[str, Any]:
        return score(lambda sequences: fitted(sides[LTM], parts.test, steps, sequences))

    def adapt(steps: int) -> dict[str, Any]:
        how = tuned(twin, parts.validation, steps)
        return how | score(
            lambda sequences: adapted(twin, parts.test, steps, sequences, rate=how["rate"], targets=how["targets"])
        )

    result = {"fitted": {str(steps): fit(steps) for steps in FITS}}
    result["adapted"] = {str(steps): adapt(steps) for steps in ADAPTATIONS}
    lengths = [int(length) for length in parts.test.lengths[: len(places[0].ids)]]
    trained = {side: {"seconds": round(one.seconds, 1), "steps": one.best_step} for side, one in sides.items()}
    about = {"tokens": lengths, "places": places[0].to_dict(), "trained": trained, "machine": machine()}
    return asdict(row) | result | about


def fitted(side: Trained, data: TokenDataset, steps: int, sequences: int) -> Figure:
    """The LTM's predictive figure, q fitted before each chunk."""
    return evaluate_prefix(
        side.run.model,
        dataset_batches(data, 16, "cpu", limit=sequences),
        scoring_loop(side.run).with_steps(steps),
        particles=PARTICLES,
        prefixes=None,
        stride=data.sequence_length // CHUNKS,
        seed=1,
    )


def adapted(side: Trained, data: TokenDataset, steps: int, sequences: int, *, rate: float, targets: str) -> Figure:
    """The twin's, adapted after each chunk."""
    optimizer = Adam(lr=rate, beta1=0.9, eps=1e-8, schedule="constant")
    how = Adaptation(steps=steps, rank=RANK, targets=TARGETS[targets], optimizer=optimizer)
    batches = dataset_batches(data, 16, "cpu", limit=sequences)
    return evaluate_adapted(side.run.model, batches, how, stride=data.sequence_length // CHUNKS, seed=1)


def tuned(side: Trained, data: TokenDataset, steps: int) -> dict[str, Any]:
    """The rate and the matrices that are best on validation text at so many steps, and nats a token there."""
    ways = [(rate, targets) for rate in RATES for targets in TARGETS]
    found = {
        way: adapted(side, data, steps, TUNED, rate=way[0], targets=way[1]).nats_per_token
        for way in (ways if steps else ways[:1])
    }
    rate, targets = min(found, key=lambda way: found[way])
    return {"rate": rate, "targets": targets, "validation": round(found[rate, targets], 5)}


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    return {"test-time": _equal(found), "test-time steps": _steps(found)}


class _Cell:
    """The rows of one text and window: sums over its seeds, sequence by sequence."""

    def __init__(self, rows: list[Any]):
        self.rows, first = rows, rows[0]
        self.label = [TEXTS[first["text"]].label, first["window"]]
        self.tokens = torch.tensor(first["tokens"], dtype=torch.float64)
        ids, documents = (first["places"][key] for key in ("ids", "documents"))
        self.places = Places(torch.tensor(ids), None if documents is None else torch.tensor(documents))

    def nats(self, side: str, steps: int) -> torch.Tensor:
        """[R, S], a line for each seed."""
        return torch.tensor([row[side][str(steps)]["nats"] for row in self.rows], dtype=torch.float64)

    def operations(self, side: str, steps: int) -> float:
        """Of a token, against the twin that only reads: the largest of the seeds."""
        alone = self.rows[0]["adapted"]["0"]["operations"]
        return float(max(row[side][str(steps)]["operations"] for row in self.rows) / alone)

    def validation(self, steps: int) -> float:
        """Nats a token of the adapted twin on validation text, mean of the seeds."""
        return float(sum(row["adapted"][str(steps)]["validation"] for row in self.rows) / len(self.rows))

    def gap(self, higher: torch.Tensor, lower: torch.Tensor) -> str:
        """How far one lies below the other, paired by sequence, mean of the seeds; behind it the least and the most."""
        mean, *each = (
            difference(high, low, self.tokens, self.places)
            for high, low in ((higher.mean(0), lower.mean(0)), *zip(higher, lower, strict=True))
        )
        shown = f"{mean.nats_per_token:+.4f} ± {mean.stderr:.4f}"
        levels = [one.nats_per_token for one in each]
        return shown if len(each) == 1 else f"{shown} ({min(levels):+.4f} to {max(levels):+.4f})"

    def gain(self, side: str, steps: int) -> str:
        """Against the same side without a step."""
        return self.gap(self.nats(side, 0), self.nats(side, steps))

    def below_twin(self, side: str, steps: int) -> str:
        """Against the twin that only reads."""
        return self.gap(self.nats("adapted", 0), self.nats(side, steps))


def _cells(found: Rows) -> list[_Cell]:
    made: dict[tuple[str, int], list[Any]] = {}
    for row in found.values():
        made.setdefault((row["text"], row["window"]), []).append(row)
    return [_Cell(made[key]) for key in sorted(made, key=PLAN.index)]


def _equal(found: Rows) -> str:
    """For each fit, beside the adaptation that is best on validation text of those that cost no more."""
    columns = ["text", "window", "seeds", "fast steps", "operations", "gain of fitting", "steps of adaptation"]
    columns += ["operations", "gain of adapting", "LTM below the adapted twin"]
    lines = []
    for cell in _cells(found):
        for steps in FITS[1:]:
            cost = cell.operations("fitted", steps)
            other = min((one for one in ADAPTATIONS if cell.operations("adapted", one) <= cost), key=cell.validation)
            between = cell.gap(cell.nats("adapted", other), cell.nats("fitted", steps))
            mine = [steps, f"{cost:.1f}", cell.gain("fitted", steps)]
            its = [other, f"{cell.operations('adapted', other):.1f}", cell.gain("adapted", other)]
            lines.append([*cell.label, len(cell.rows), *mine, *its, between])
    return table(columns, lines)


def _steps(found: Rows) -> str:
    """Each side with each number of steps."""
    columns = ["text", "window", "side", "steps", "operations", "nats a token", "gain", "below the twin"]
    names, lines = {"fitted": ("LTM", FITS), "adapted": ("twin, adapted", ADAPTATIONS)}, []
    for cell in _cells(found):
        for side, (name, counts) in names.items():
            for steps in counts:
                level = float(cell.nats(side, steps).mean(0).sum() / cell.tokens.sum())
                figures = [f"{cell.operations(side, steps):.1f}", f"{level:.4f}"]
                gaps = [cell.gain(side, steps) if steps else "", cell.below_twin(side, steps)]
                lines.append([*cell.label, name, steps, *figures, *gaps])
    return table(columns, lines)


def line(row: Any) -> str:
    """Printed when a row is done."""
    tokens = sum(row["tokens"])
    levels = {
        side: {steps: round(sum(one["nats"]) / tokens, 4) for steps, one in row[side].items()}
        for side in ("fitted", "adapted")
    }
    return f"{row['text']} w{row['window']} seed {row['seed']}: {levels}"


STUDY = Study("test-time", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
