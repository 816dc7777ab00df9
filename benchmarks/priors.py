"""What a prior saves: rate and bound of small models under each, on worlds of 240 sentences, at equal slow steps.

    python -m benchmarks.priors --out runs/priors [--seeds 0,1,2] [--steps 500] [--only mixture] [--hours 2]
    python -m benchmarks.priors --table runs/priors

Rows come one by one, as `benchmarks.rows` says. A row is one training of the preset `nano` (a window of 8, which hides
most of a document) under a prior, with a seed; or, `fitted ...`, a prior that `fit-prior` puts in the place of N(0, I)
under the decoder that was trained with it.

All train by `stl` and are scored alike: posteriors of independent Normals, 32 natural-gradient steps, 16 draws, fresh
noise, whole KL. Each also writes texts from its prior, the twin without one: their bits a byte under the twin of the
same seed, and MAUVE by its features, beside the beginnings of training documents. Seconds, of training or fitting, are
of one thread of the processor; a run that was kept from a call before has none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.interleave import machine
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import TEXTS, Parts, prepared
from benchmarks.trained import FIT_RATE, FIT_STEPS, TWIN, configure, train
from pyro_ltm.config import Component
from pyro_ltm.data import World
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.build import build_guide
from pyro_ltm.objectives import StickingTheLanding
from pyro_ltm.optimizers import Natural
from pyro_ltm.priors import PRIORS
from pyro_ltm.runs import Run
from pyro_ltm.runs.run import dataset_batches
from pyro_ltm.scores import Bound, evaluate_bound
from pyro_ltm.tasks.mauve import mauve
from pyro_ltm.tasks.written_texts import RunScorer, write_samples
from pyro_ltm.training.fit_prior import fit_prior

TEXT = "worlds-240"
"""Of each document the factors, which thoughts could tell, have log 768 = 6.64 nats."""
TRAINED = ("gaussian", "mixture:32", "transport", "flow", "layered", "vamp", "diffusion")
FITTED = ("gaussian:true", "mixture:32", "flow")
"""Priors that are fitted to the posteriors of the run under N(0, I)."""
KEPT = ("gaussian", "twin")
"""Runs that are kept: others are fitted under the decoder of the first, and the second scores what all write."""
SETTINGS = [
    *("model.window=8", "objective.name=stl", "objective.warmup=0.3", "slow.decoder_warmup=0.1"),
    *("fast.steps=16", "fast.subsample=4", "optimizer.name=adam", "optimizer.lr=0.3", "optimizer.eps=0.01"),
    *("slow_optimizer.name=muon", "slow.lr=0.06", "slow.warmup=20", "slow.lr_final=0.0"),
]
"""Those of benchmarks/claim.py for an LTM, but for the objective, which every prior has."""
STEPS = 500
"""Slow steps of each training, where not told otherwise."""
PARTICLES, SCORED, FITTED_TO = 16, 16, 64
"""Draws from each posterior, test documents, and training documents to whose posteriors a prior is fitted."""
WRITTEN, LONG = 64, 256
"""Texts from the prior, and tokens of each."""


@dataclass(frozen=True)
class Row:
    """One training, or with `fitted` one fit under the decoder of the run under N(0, I)."""

    prior: str
    seed: int
    fitted: bool = False
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Of its file."""
        how = "fitted" if self.fitted else "trained"
        return f"{how}-{self.prior.replace(':', '_')}-s{self.seed}-{self.steps}"


def planned(seeds: Sequence[int], steps: int = STEPS) -> Iterator[Row]:
    """The rows, in order: all of a seed before the next, the twin first, which scores what the others write."""
    for seed in seeds:
        yield Row("twin", seed, steps=steps)
        yield Row("gaussian", seed, steps=steps)
        yield from (Row(prior, seed, fitted=True, steps=steps) for prior in FITTED)
        yield from (Row(prior, seed, steps=steps) for prior in TRAINED[1:])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains or fits, and scores."""
    parts = prepared(TEXT, data, out)
    began, kept = time.process_time(), not row.fitted and row.prior in KEPT and _kept(row, out).exists()
    run = Run.load(_kept(row, out)) if kept else _fitted(row, parts, out) if row.fitted else _trained(row, parts, out)
    seconds = None if kept else time.process_time() - began
    bound = score(run, parts)
    return {
        **asdict(row),
        "nats": bound.nats_per_token,
        "nats_stderr": bound.nats_per_token_stderr,
        "iwae": bound.iwae_nats_per_token,
        "rate": bound.kl_nats_per_sequence,
        "rate_stderr": bound.kl_nats_per_sequence_stderr,
        "distortion": bound.distortion_nats_per_token,
        "from_prior": bound.distortion_from_prior,
        "floor": floor(parts),
        "tokens": bound.tokens,
        "sequences": bound.sequences,
        "written": written(run, Row("twin", row.seed, steps=row.steps), parts, out),
        "seconds": seconds,
        "machine": machine(),
    }


def _trained(row: Row, parts: Parts, out: Path) -> Run:
    """A run under the prior; of `KEPT` it is kept."""
    own = list(TWIN) if row.prior == "twin" else [f"prior.name={row.prior}"]
    own += [f"slow.steps={row.steps}", f"seed={row.seed}", f"slow.batch_size={TEXTS[TEXT].batch_size}"]
    run = train(configure("nano", parts.train, [*SETTINGS, *own]), parts.train).run
    if row.prior in KEPT:
        run = Run.create(_kept(row, out), run.config, run.model, run.loop, run.tokenizer, step=run.step)
    return run


def _fitted(row: Row, parts: Parts, out: Path) -> Run:
    """The kept run under another prior."""
    run = Run.load(_kept(Row("gaussian", row.seed, steps=row.steps), out))
    prior, place = PRIORS.parse(row.prior), out / "fitted" / row.name
    how: dict[str, Any] = {"sequences": FITTED_TO, "batch_size": 8, "data": parts.train, "score": False}
    return fit_prior(run, prior, out=place, seed=row.seed, **how).run


def _kept(row: Row, out: Path) -> Path:
    return out / "kept" / f"{row.prior}-s{row.seed}-{row.steps}"


def score(run: Run, parts: Parts) -> Bound:
    """The bound of test documents, by the same fits for all."""
    guide = build_guide(Component(name="mean-field"), run.config.model)
    twin = not run.config.model.thoughts
    loop = FastLoop(guide, StickingTheLanding(), Natural(lr=FIT_RATE), steps=0 if twin else FIT_STEPS)
    batches = dataset_batches(parts.test, 8, run.device, limit=SCORED)
    return evaluate_bound(run.model, batches, loop, particles=1 if twin else PARTICLES, seed=1)


def written(run: Run, twin: Row, parts: Parts, out: Path) -> dict[str, float] | None:
    """Scores of texts from the prior, under the twin; None where that is not there."""
    if not _kept(twin, out).exists():
        return None
    judge = RunScorer(Run.load(_kept(twin, out)))
    texts, _ = write_samples(run, num=WRITTEN, max_new_tokens=LONG, seed=twin.seed)
    beginnings = parts.train.batch(range(WRITTEN)).inputs[:, 1 : LONG + 1].tolist()
    real = [parts.train.tokenizer.decode(row) for row in beginnings]
    cost, close = judge.score_after([""] * len(texts), texts), mauve(judge.features(texts), judge.features(real))
    return {
        "bits": cost.bits_per_byte,
        "bits_stderr": cost.bits_per_byte_stderr,
        "mauve": close.score,
        "mauve_spread": close.spread,
        "real_bits": judge.score_after([""] * len(real), real).bits_per_byte,
    }


def floor(parts: Parts) -> float:
    """The entropy of the test documents themselves, nats a token."""
    world, batch = World.of(parts.test.folder), parts.test.batch(range(SCORED))
    assert world is not None
    assert batch.targets is not None
    rows = [row[mask].tolist() for row, mask in zip(batch.targets, batch.mask, strict=True)]
    return -sum(world.log_prob(parts.test.tokenizer.decode(row)) for row in rows) / int(batch.mask.sum())


def tables(found: Rows) -> dict[str, str]:
    """The rows as a table, in the order of the plan."""
    columns = ["prior", "seed", "slow steps", "rate, nats a document", "bound", "importance-weighted", "distortion"]
    seeds, lengths = ({row[key] for row in found.values()} for key in ("seed", "steps"))
    plan = [row for steps in sorted(lengths) for row in planned(sorted(seeds), steps)]
    lines = []
    for row in sorted(found.values(), key=lambda row: plan.index(_row(row))):
        name = f"fitted {row['prior']}" if row["fitted"] else row["prior"]
        figures = [f"{row['rate']:.2f} ± {row['rate_stderr']:.2f}", f"{row['nats']:.4f} ± {row['nats_stderr']:.4f}"]
        figures += [f"{row[key]:.4f}" for key in ("iwae", "distortion", "from_prior")]
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append([name, row["seed"], row["steps"], *figures, *_of_texts(row.get("written")), seconds])
    columns += ["from the prior", "bits a byte of its texts", "their MAUVE", "processor seconds"]
    return {"priors": pages.table(columns, lines)}


def _of_texts(found: dict[str, float] | None) -> list[str]:
    """Cells of the texts from a prior."""
    if found is None:
        return ["-", "-"]
    pairs = (("bits", "bits_stderr"), ("mauve", "mauve_spread"))
    return [f"{found[key]:.3f} ± {found[error]:.3f}" for key, error in pairs]


def line(row: Any) -> str:
    """Printed when a row is done."""
    return f"{_row(row).name}: rate {row['rate']:.2f}, bound {row['nats']:.4f}"


def _row(row: dict[str, Any]) -> Row:
    return Row(**{key: row[key] for key in ("prior", "seed", "fitted", "steps")})


def study(steps: int = STEPS) -> Study:
    """Trainings of so many slow steps."""
    return Study("priors", __doc__ or "", lambda seeds: planned(seeds, steps), measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--steps", type=int, default=STEPS)
    options, others = own.parse_known_args(arguments)
    run(study(options.steps), others)


if __name__ == "__main__":
    main()
