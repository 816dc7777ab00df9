"""What models write after real prompts, and from nothing, held against what people wrote.

    python -m benchmarks.continuations --out runs/continuations --shared ../shared [--seeds 0,1,2] [--hours 1]
    python -m benchmarks.continuations --table runs/continuations

Rows come one by one, as `benchmarks.rows` says. A row is one training on tinyshakespeare by the recipe of
`benchmarks.claim`: an LTM, or its twin, at equal slow steps. Each goes on from every other passage of the test text as
`pyro-ltm score-samples --prompts` does, the LTM once more with rethinking; and writes as many texts from nothing, which
are held against the same passages. The passages between them, which people wrote, too, stand beside those.

MAUVE, of prompt and continuation together, is by the features of a scorer, and so is what a byte costs after the
prompt. The scorer is a twin of another seed that sees a whole text, so that it is neither of those that write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import claim
from benchmarks.claim import EQUAL_TOKENS, LTM
from benchmarks.interleave import machine
from benchmarks.pages import table
from benchmarks.representations_tables import spread
from benchmarks.rows import Rows, Study, run
from benchmarks.texts import Parts, prepared
from benchmarks.trained import train
from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference import Rethinking
from pyro_ltm.runs import Run
from pyro_ltm.tasks.conditional import TRUTH, as_long, score_continuations, sides_of, write_continuations
from pyro_ltm.tasks.mauve import mauve
from pyro_ltm.tasks.prompts import Prompt
from pyro_ltm.tasks.text_metrics import text_metrics
from pyro_ltm.tasks.written_texts import RunScorer, write_samples

TEXT, LENGTH, BATCH = "tinyshakespeare", 128, 16
"""Tokens of a sequence and sequences of a slow step: as many tokens as `claim` has in a step."""
WINDOW, STEPS, SCORER_SEED = 8, 300, 1000
PROMPT, NEW, ROUNDS = 50, 50, 2
"""Tokens given and tokens written; rounds of rethinking."""
MOST = 400
"""Passages, at most; half of them are prompts."""
OTHERS = "other passages"


@dataclass(frozen=True)
class Row:
    """One training."""

    side: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.side}-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order: all of a seed before the next."""
    yield from (Row(side, seed) for seed in seeds for side in (LTM, EQUAL_TOKENS))


def config_of(row: Row, parts: Parts, window: int = WINDOW) -> Config:
    """How a row is trained."""
    config = claim.config_of(claim.Row(TEXT, window, row.side, row.seed), parts)
    return apply_settings(config, [f"slow.steps={STEPS}", f"slow.batch_size={BATCH}"])


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains, writes and scores."""
    parts = prepared(TEXT, data, out, length=LENGTH)
    judge = scorer(parts, out)
    found = train(config_of(row, parts), parts.train)
    prompts, others = passages(found.run, parts.test)
    written = {
        side.name: write_continuations(side, prompts, max_new_tokens=NEW, seed=row.seed)
        for side in sides_of({row.side: found.run}, Rethinking(rounds=ROUNDS if row.side == LTM else 0))
    }
    after = score_continuations(prompts, written, judge, seed=row.seed)
    texts, _ = write_samples(found.run, num=len(prompts), max_new_tokens=PROMPT + NEW, seed=row.seed)
    real = [one.text + (one.truth or "") for one in prompts]
    result = asdict(row) | {"texts": len(prompts), "seconds": round(found.seconds, 1), "machine": machine()}
    result["after"] = {
        name: {
            "bits": one.after_prompt and figure(one.after_prompt.bits_per_byte),
            "bits_stderr": one.after_prompt and figure(one.after_prompt.bits_per_byte_stderr),
            "mauve": one.mauve and figure(one.mauve.score),
            "mauve_spread": one.mauve and figure(one.mauve.spread),
            "distinct": one.metrics and {n: figure(value) for n, value in one.metrics.distinct.items()},
        }
        for name, one in after.items()
    }
    result["alone"] = {
        name: alone(judge, own, real, row.seed) for name, own in {row.side: texts, OTHERS: others}.items()
    }
    return result


def alone(judge: RunScorer, texts: Sequence[str], real: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of texts that go on from nothing."""
    cost = judge.score_after([""] * len(texts), texts)
    close = mauve(judge.features(texts), judge.features(real), seed=seed)
    return {
        "bits": figure(cost.bits_per_byte),
        "bits_stderr": figure(cost.bits_per_byte_stderr),
        "mauve": figure(close.score),
        "mauve_spread": figure(close.spread),
        "distinct": {n: figure(value) for n, value in text_metrics(texts).distinct.items()},
    }


def figure(value: float) -> float:
    """To four digits."""
    return round(value, 4)


def passages(run: Run, test: TokenDataset) -> tuple[list[Prompt], list[str]]:
    """Every other passage of the test text as a prompt with its truth; those between, as long as both together."""
    batch = test.batch(range(min(len(test), MOST)))
    assert batch.targets is not None  # texts have them
    rows = batch.targets[batch.mask.sum(1) >= PROMPT + NEW, : PROMPT + NEW].tolist()
    decode = test.tokenizer.decode
    prompts = [
        Prompt(decode(row[:PROMPT]), place, f"passage {place}", decode(row[PROMPT:]))
        for place, row in enumerate(rows[::2])
    ]
    prompts = as_long(run, prompts, NEW)
    return prompts, [decode(row) for row in rows[1::2]]


def scorer(parts: Parts, out: Path) -> RunScorer:
    """A twin that sees a whole text, trained once and kept."""
    place = out / "scorer"
    if not place.exists():
        run = train(config_of(Row(EQUAL_TOKENS, SCORER_SEED), parts, window=LENGTH), parts.train).run
        Run.create(place, run.config, run.model, run.loop, run.tokenizer, step=run.step)
    return RunScorer(Run.load(place))


def tables(found: Rows) -> dict[str, str]:
    """Of what is written after prompts, and of what is written from nothing."""
    return {"continuations": _table(found, "after"), "written from nothing": _table(found, "alone")}


def _table(found: Rows, kind: str) -> str:
    """A row for each that writes, people last: means over seeds, ± of one of them, and the lowest and the highest."""
    sides: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(found.values(), key=lambda row: (row["side"], row["seed"])):
        for name, figures in row[kind].items():
            sides.setdefault(name, []).append(figures)
    people = [name for name in (TRUTH, OTHERS) if name in sides]
    lines = []
    for name in [*(name for name in sides if name not in people), *people]:
        each = sides[name]
        if name in people:  # the same for every model of a seed
            each = list({str(one): one for one in each}.values())
        cells = [_shown(each, key) for key in ("mauve", "bits")]
        lines.append([name, "" if name in people else len(each), *cells, *(_shown(each, n) for n in ("1", "2", "4"))])
    return table(["written by", "seeds", "MAUVE", "bits a byte", "distinct-1", "distinct-2", "distinct-4"], lines)


def _shown(each: Sequence[Mapping[str, Any]], key: str) -> str:
    """A figure of each seed, of distinct n-grams where `key` is n; what there is none of is '-'."""
    found = [one["distinct"][key] if key.isdigit() else one[key] for one in each]
    if None in found:
        return "-"
    first, *range_of_seeds = spread(found).split(" ", 1)
    errors = [one[{"mauve": "mauve_spread", "bits": "bits_stderr"}[key]] for one in each] if not key.isdigit() else []
    return " ".join([first, *([f"± {sum(errors) / len(errors):.3f}"] if errors else []), *range_of_seeds])


def line(row: Any) -> str:
    """Printed when a row is done."""
    shown = [f"{name}: {one['bits']} bits, MAUVE {one['mauve']}" for name, one in row["after"].items()]
    return f"{row['side']} seed {row['seed']}: {'; '.join(shown)}"


STUDY = Study("continuations", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
