"""The claim: is a latent-thought model below its autoregressive twin, at equal tokens and at equal compute?

    python -m benchmarks.claim --out runs/claim --shared ../shared [--only wikitext-2] [--seeds 0,1,2] [--hours 2]
    python -m benchmarks.claim --out runs/claim --grid
    python -m benchmarks.claim --table runs/claim

The first trains and scores row after row, the most important first, and keeps each as a file in OUT/rows: whoever stops
it loses the row under way, and the same call goes on with the next. A row is one training: a text, a window, a side, a
seed. The second makes the grid of slow learning rates by which both sides were tuned alike, on validation text. The
third puts all rows into benchmarks/claim-DATE.json, their tables into the pages, and draws the picture.

Sides, all of one preset (`nano`; for long texts `nano-long`, but with the slow loop of the others): the LTM; its twin,
the same decoder without thoughts, after equally many slow steps (equal tokens); twins of equal compute, which get all
operations of the LTM's training, fast loop included, as more slow steps or as a wider decoder (both with seed 0, then
whichever is better on validation text); of long texts as more slow steps, with the LTM's window and with far ones, and
an LTM with a far window for the same operations; and both sides on data that run out, each with the weights of its best
validation. Operations are those of `count_operations`; seconds are of one thread of the processor.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import claim_picture, claim_tables, pages, rows
from benchmarks.interleave import machine
from benchmarks.texts import TEXTS, Parts, prepared
from benchmarks.trained import TWIN, Trained, configure, judge, operations, scoring_loop, train
from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import TokenDataset
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.runs import Run
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.scores import Bound, evaluate_floor, evaluate_prefix

LTM, EQUAL_TOKENS, LONGER, WIDER = "ltm", "twin", "twin, longer", "twin, wider"
FAR, WHOLE, LTM_FAR = "twin, longer, far window", "twin, longer, whole window", "ltm, far window"
LTM_FEW, TWIN_FEW, FLOOR = "ltm, few data", "twin, few data", "floor"
LTM_STOPPED = "ltm, stopped"
STOPPED = {"twin, stopped": 1.0, "twin, half as long, stopped": 0.5, "twin, longer, stopped": 0.0}
"""Twins on data that run out, and their slow steps, of the LTM's; 0: those of equal compute. Each side has the weights
of its best validation; a schedule that ends sooner may serve an overfitting twin better than a long one, stopped."""
STEPS, LONG_STEPS = 500, 1000
"""Slow steps at equal tokens; of `nano-long`, whose step has two sequences of 2,048 tokens."""
FEW, LOOKS = 64, 12
"""Sequences of 512 tokens that are little data, and validations of a side that is stopped at its best."""
PARTICLES, PREFIX_PARTICLES, PREFIX_STEPS = 16, 16, 16
"""Draws from each posterior; for the predictive figure, as many, after so many natural-gradient steps of each fit."""
VALIDATION = 24
"""Validation sequences of 512 tokens, or as many tokens, by which is chosen."""
PROMPT, WRITTEN, TEXTS_WRITTEN = 64, 64, 4
"""Tokens given and tokens written, of so many texts, for the cost of writing."""
FAST = [
    "fast.steps=16",
    "fast.subsample=4",
    "optimizer.name=adam",
    "optimizer.lr=0.3",
    "optimizer.eps=0.01",
    "objective.warmup=0.3",
    "slow.decoder_warmup=0.1",
]
"""The LTM's fast loop, and what goes with it: half the steps of `nano-worlds`. Four natural-gradient steps, which the
search (benchmarks/search.py) liked within its few slow steps, left the thoughts of worlds unused after a thousand."""
SCHEDULE = ["slow.warmup=20", "slow.lr_final=0.0"]
GRID = {
    **{f"adamw {lr}": [f"slow.lr={lr}"] for lr in (0.005, 0.01, 0.02)},
    **{f"muon {lr}": ["slow_optimizer.name=muon", f"slow.lr={lr}"] for lr in (0.03, 0.06, 0.1)},
}
"""Slow optimizers and rates that were tried, on tinyshakespeare with a window of 8, seed 0."""
SLOW = {"ltm": "muon 0.06", "twin": "muon 0.06"}
"""Those that were best of each side on validation text."""


@dataclass(frozen=True)
class Row:
    """One training. `slow`: of the grid; empty: as `SLOW` says."""

    text: str
    window: int
    side: str
    seed: int
    size: str = "nano"
    slow: str = ""

    @property
    def steps(self) -> int:
        """Slow steps at equal tokens."""
        steps = LONG_STEPS if self.size == "nano-long" else STEPS
        return round(steps * (STOPPED.get(self.side) or 1))

    @property
    def is_ltm(self) -> bool:
        """Whether it has thoughts."""
        return self.side in (LTM, LTM_FEW, LTM_STOPPED, LTM_FAR)

    @property
    def few(self) -> bool:
        """Whether it learns from little data."""
        return self.side in (LTM_FEW, TWIN_FEW)

    @property
    def stopped(self) -> bool:
        """Whether it gets the weights of its best validation."""
        return self.few or self.side == LTM_STOPPED or self.side in STOPPED

    @property
    def gets_compute(self) -> bool:
        """Whether it gets the operations of the LTM's training, as a twin or with another window."""
        return self.side in (LONGER, WIDER, FAR, WHOLE, LTM_FAR) or STOPPED.get(self.side) == 0

    @property
    def name(self) -> str:
        """Of its file."""
        words = (self.size, self.text, f"w{self.window}", self.side, f"s{self.seed}", self.slow)
        return "-".join("-".join(words).replace(",", "").split()).strip("-")


SHORT = ("worlds-15", "tinyshakespeare", "wikitext-2", "proposals")
PLAN = [
    *((text, 8) for text in SHORT),
    *((text, 256) for text in SHORT),
    *((text, 32) for text in SHORT),
]
"""Texts and windows, the most important first."""
FEW_TEXTS = ("wikitext-2", "proposals")
FAR_WINDOW = 256
"""Tokens that each layer looks back with a far window; with a whole one, to the beginning."""
LONG_TEXTS = ("worlds-240", "tinyshakespeare-2048", "wikitext-2-2048")
RUN_OUT_TEXTS = ("tinyshakespeare-2048",)
"""Long texts of which a thousand steps are many epochs."""
MINI_TEXTS = ("proposals", "wikitext-2")


def planned(seeds: list[int], done: rows.Rows) -> Iterator[Row]:
    """The rows in order; which twin of equal compute comes with later seeds depends on what is `done` by then."""
    for text, window in PLAN:
        if text.startswith("worlds") and window == 8:
            yield Row(text, window, FLOOR, 0)
        for seed in seeds:
            sides = [LTM, EQUAL_TOKENS, LONGER, WIDER]
            if seed != seeds[0]:
                sides[2:] = [better_twin(text, window, seeds[0], done)]
            yield from (Row(text, window, side, seed) for side in sides)
    for text in FEW_TEXTS:
        for seed in seeds:
            yield from (Row(text, 8, side, seed) for side in (LTM_FEW, TWIN_FEW))
    for text in LONG_TEXTS:
        if text.startswith("worlds"):
            yield Row(text, 8, FLOOR, 0, "nano-long")
        for seed in seeds:
            sides = [LTM, EQUAL_TOKENS, LONGER, FAR, WHOLE, LTM_FAR]
            yield from (Row(text, 8, side, seed, "nano-long") for side in sides)
    for text in RUN_OUT_TEXTS:
        for seed in seeds:
            twins = STOPPED if seed == seeds[0] else [better_stopped(text, seeds[0], done)]
            yield from (Row(text, 8, side, seed, "nano-long") for side in (LTM_STOPPED, *twins))
    for text in MINI_TEXTS:
        yield from (Row(text, 256, side, 0, "mini") for side in (LTM, EQUAL_TOKENS, LONGER))


def better_twin(text: str, window: int, seed: int, done: rows.Rows, size: str = "nano") -> str:
    """The twin of equal compute that is better on validation text; more steps where one of them is missing."""
    return _best([Row(text, window, side, seed, size) for side in (LONGER, WIDER)], done)


def better_stopped(text: str, seed: int, done: rows.Rows) -> str:
    """The twin on data that run out that is best on validation text."""
    return _best([Row(text, 8, side, seed, "nano-long") for side in STOPPED], done)


def _best(candidates: list[Row], done: rows.Rows) -> str:
    """The side of the lowest validation; the first where none is done."""
    found = {row.side: done[row.name]["validation"] for row in candidates if row.name in done}
    return min(found, key=lambda side: found[side], default=candidates[0].side)


class Few(TokenDataset):
    """The first sequences of a training split."""

    def __init__(self, data: TokenDataset, count: int):
        super().__init__(data.folder, data.split)
        self.count = count

    def __len__(self) -> int:
        return min(self.count, super().__len__())


def config_of(row: Row, parts: Parts) -> Config:
    """How a row is trained, before its compute is made equal."""
    text, is_ltm = TEXTS[row.text], row.is_ltm
    slow = row.slow or SLOW["ltm" if is_ltm else "twin"]
    batch = [f"slow.batch_size={text.batch_size}"] if row.size == "nano" else []
    fast = [] if row.size == "nano-long" else FAST
    settings = [f"slow.steps={row.steps}", f"seed={row.seed}", *SCHEDULE, *GRID[slow]]
    return configure(
        row.size, parts.train, [f"model.window={row.window}", *batch, *settings, *(fast if is_ltm else TWIN)]
    )


def with_compute_of_ltm(row: Row, parts: Parts) -> Config:
    """One that gets the operations of the LTM's training, as other slow steps or as a wider decoder."""
    mine = config_of(row, parts)
    if row.side in (FAR, WHOLE, LTM_FAR):
        window = parts.train.sequence_length if row.side == WHOLE else FAR_WINDOW
        mine = apply_settings(mine, [f"model.window={window}"])
    theirs = operations(config_of(Row(**asdict(row) | {"side": LTM}), parts), parts.train)
    share = theirs / operations(mine, parts.train)
    if row.side != WIDER:
        return apply_settings(mine, [f"slow.steps={int(row.steps * share)}"])

    own, even = mine.model.dim, 2 * mine.model.heads
    widths = range(own, 8 * own, even)

    def cost(width: int) -> int:
        return operations(apply_settings(mine, [f"model.dim={width}"]), parts.train)

    width = widths[max(0, bisect.bisect_right(widths, theirs, key=cost) - 1)]
    # The scale of embedding and weights stays that of unit variance at this width.
    scale = mine.model.embedding_scale * (width / own) ** 0.5 if mine.model.embedding_scale != 1 else 1.0
    return apply_settings(mine, [f"model.dim={width}", f"model.embedding_scale={scale}"])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains and scores a row."""
    sizes = {"vocab_size": 4096, "length": 1024} if row.size == "mini" else {}
    parts = prepared(row.text, data, out, **sizes)
    if row.side == FLOOR:
        return asdict(row) | floor_of(row, parts)
    config = with_compute_of_ltm(row, parts) if row.gets_compute else config_of(row, parts)
    text = TEXTS[row.text]
    validation = VALIDATION * 512 // parts.train.sequence_length
    if row.stopped:
        looks = [f"slow.eval_every={max(1, config.slow.steps // LOOKS)}", f"slow.eval_sequences={validation}"]
        learned = Few(parts.train, FEW) if row.few else parts.train
        found = train(apply_settings(config, looks), learned, parts.validation, weights="best")
    else:
        found = train(config, parts.train)
    result = asdict(row) | described(config, found)
    if not row.few:
        result["operations"] = operations(config, parts.train)
    if row.slow or not row.is_ltm:
        result["validation"] = judge(found.run, parts.validation, validation, particles=4).nats_per_token
    if row.slow:
        return result
    bound = judge(found.run, parts.test, text.test_sequences, particles=PARTICLES)
    result |= figures(bound, parts.test)
    if config.model.thoughts and row.side != LTM_STOPPED:
        result["prefix"] = predicted(found.run, parts.test, text.test_sequences)
    return result | {"writing": writing(found.run, parts.test)}


def predicted(run: Run, data: TokenDataset, sequences: int) -> list[float]:
    """Nats of each of the first sequences by the predictive figure, q fitted at every quarter."""
    length = data.sequence_length
    found = evaluate_prefix(
        run.model,
        dataset_batches(data, 16, "cpu", limit=sequences),
        scoring_loop(run).with_steps(PREFIX_STEPS),
        particles=PREFIX_PARTICLES,
        prefixes=[length // 2],
        stride=length // 4,
        seed=1,
    )
    return rounded(found.sequence_nats)


def described(config: Config, found: Trained) -> dict[str, Any]:
    """Description of a training, and its cost."""
    return {
        "steps": config.slow.steps,
        "best_step": found.best_step,
        "dim": config.model.dim,
        "parameters": sum(weight.numel() for weight in found.run.model.parameters()),
        "training_tokens": config.slow.steps * config.slow.sequences * config.data.sequence_length,
        "seconds": round(found.seconds, 2),
        "validations": {step: round(nats, 4) for step, nats in found.validations.items()},
        "machine": machine(),
    }


def figures(bound: Bound, data: TokenDataset) -> dict[str, Any]:
    """Nats of each sequence, by the ELBO and importance-weighted, with what paired differences need."""
    bits = bound.bits_per_byte / bound.nats_per_token
    return {
        "nats": rounded(bound.sequence_nats),
        "iwae": rounded(bound.sequence_iwae_nats),
        "tokens": [int(count) for count in bound.sequence_tokens],
        "places": bound.places.to_dict(),
        "rate": round(bound.kl_nats_per_sequence, 3),
        "shuffled": round(bound.distortion_shuffled - bound.distortion_nats_per_token, 5),
        "bits_a_byte_for_each_nat_a_token": bits,
    }


def rounded(values: torch.Tensor) -> list[float]:
    """To a thousandth of a nat a sequence."""
    return [round(value, 3) for value in values.tolist()]


def floor_of(row: Row, parts: Parts) -> dict[str, Any]:
    """The text's own entropy, where it is known."""
    sequences, window = TEXTS[row.text].test_sequences, configure("nano", parts.train, []).model
    found = evaluate_floor(parts.test, sequences=sequences, window=window.receptive_field)
    return {"nats": rounded(found.sequence_nats), "tokens": [int(count) for count in found.sequence_tokens]}


def writing(run: Run, data: TokenDataset) -> dict[str, float]:
    """Cost of an emitted token after a prompt, the fit of its thoughts included: operations and seconds."""
    given = data.batch([0]).inputs[0, 1 : 1 + PROMPT].tolist()
    prompt = run.tokenizer.decode(given)

    def write() -> int:
        longest = min(WRITTEN, run.config.model.max_length - 2 * PROMPT)
        texts = run.generate(prompt=prompt, num=TEXTS_WRITTEN, max_new_tokens=max(1, longest))
        return sum(one.tokens + one.ended for one in texts)

    counted: list[int] = []
    total = count_operations(lambda: counted.append(write()))
    began = time.process_time()
    tokens = write()
    return {"operations": total / counted[0], "seconds": (time.process_time() - began) / tokens}


def grid() -> list[Row]:
    """Both sides with each slow optimizer and rate."""
    return [Row("tinyshakespeare", 8, side, 0, slow=slow) for slow in GRID for side in (EQUAL_TOKENS, LTM)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = rows.parser(__doc__ or "")
    parser.add_argument("--grid", action="store_true", help="the rows of the slow learning rate")
    options = rows.chosen(parser, arguments)
    if options.table:
        found = rows.publish("claim", rows.known(options.table))
        pages.write(claim_tables.tables(found))
        claim_picture.draw(found)
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]

    def asked(done: rows.Rows) -> Iterator[Row]:
        plan = iter(grid()) if options.grid else planned(seeds, done)
        yield from (row for row in plan if options.only in row.name)

    rows.go_on(options, asked, measure, claim_tables.line)


if __name__ == "__main__":
    main()
