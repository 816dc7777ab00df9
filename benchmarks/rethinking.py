"""Rethinking: do answers get better when thoughts are fitted again to what was written?

    python -m benchmarks.rethinking --out runs/rethinking [--seeds 0,1,2] [--hours 0.25]
    python -m benchmarks.rethinking --table runs/rethinking

Rows come one by one, as `benchmarks.rows` says: a latent-thought model or its twin, trained on four small tasks
(benchmarks/rethinking_tasks.py), and asked.

A nano decoder, 400 slow steps with Muon, of which the model has thoughts after the first fifth. Optimizer, heads and
the difficulty of the tasks come of two short trainings of the twin and one of the model on questions of these kinds.

The model writes an answer (temperature 1), fits its thoughts to question and answer, writes again, four times; of the
first R + 1 drafts the one with the highest bound a token is kept. The twin, as many slow steps, gets the operations of
this as samples: the best of n by its own nats a token, by the same rule. Operations are those of `count_operations`,
of all that is run. Questions stand in no training text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import pages
from benchmarks.interleave import machine
from benchmarks.rethinking_tasks import TASKS, Exercise, exercises, write_documents
from benchmarks.rows import Study, known, run
from benchmarks.trained import TWIN, configure, train
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.inference import Generated, Rethinking
from pyro_ltm.model import DecodingOptions
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.runs import Run
from pyro_ltm.types import Batch

ROUNDS = (0, 1, 2, 4)
DOCUMENTS, LENGTH, VOCABULARY = 24_000, 48, 350
ASKED, COUNTED = 96, 4
"""Questions of each task; so many of them for operations and seconds."""
MOST = 512
"""Samples of the twin for a question, at most."""
NEW = {"modulus": 2, "rule": 4, "lookup": 2, "words": 14}
"""Tokens of an answer, at most."""
SETTINGS = [
    "model.window=48",
    "model.heads=4",
    "slow.steps=400",
    "slow.batch_size=32",
    "slow_optimizer.name=muon",
    "slow.lr=0.03",
    "slow.lr_final=0.0",
]
FAST = [
    "fast.steps=8",
    "fast.subsample=4",
    "optimizer.name=adam",
    "optimizer.lr=0.3",
    "optimizer.eps=0.01",
    "objective.warmup=0.3",
    "slow.decoder_warmup=0.2",
]
LTM, OTHER = "ltm", "twin"


def prepared(out: Path) -> tuple[TokenDataset, frozenset[str]]:
    """The training texts as tokens, and their prompts; the same for all rows."""
    source = out / "documents.jsonl"
    prompts = write_documents(source, DOCUMENTS, seed=0)
    if not (out / "tokens").is_dir():
        how: dict[str, Any] = {"sequence_length": LENGTH, "vocab_size": VOCABULARY, "packing": "document"}
        prepare([str(source)], out / "tokens", **how, validation_fraction=0.0)
    return TokenDataset(out / "tokens"), prompts


@dataclass(frozen=True)
class Row:
    """One side, with a seed."""

    side: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"s{self.seed}-{self.side}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rows in order: the twin of a seed after the LTM, whose operations it gets."""
    yield from (Row(side, seed) for seed in seeds for side in (LTM, OTHER))


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Trains one side and asks it all questions."""
    (texts, seen), seed = prepared(out), row.seed
    config = configure("nano", texts, [*SETTINGS, f"seed={seed}", *(FAST if row.side == LTM else TWIN)])
    trained, theirs = train(config, texts), known(out).get(Row(LTM, seed).name, {"tasks": {}})["tasks"]
    ask = ask_ltm if row.side == LTM else ask_twin
    found: dict[str, Any] = {"side": row.side, "seed": seed, "training_seconds": round(trained.seconds, 1), "tasks": {}}
    began = time.process_time()
    for task in TASKS:
        questions = exercises(task, ASKED, seed=1000 + seed, without=seen)
        found["tasks"][task] = ask(trained.run, questions, theirs.get(task, {}), seed)
        greedy = write(trained.run, questions, seed, sampler=DecodingOptions(temperature=0))
        found["tasks"][task]["greedy"] = [one.is_right(text.text) for one, text in zip(questions, greedy, strict=True)]
    return found | {"asking_seconds": round(time.process_time() - began, 1), "machine": machine()}


def write(run: Run, questions: Sequence[Exercise], seed: int, **how: Any) -> list[Generated]:
    """Answers, in the order of the questions."""
    prompts = [one.prompt for one in questions]
    return run.generate(prompts=prompts, max_new_tokens=NEW[questions[0].task], seed=seed, batch_size=ASKED, **how)


def ask_ltm(run: Run, questions: Sequence[Exercise], given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Of each question which drafts are right and their bounds; and the cost of an answer by rounds."""
    texts = write(run, questions, seed, rethinking=Rethinking(rounds=max(ROUNDS)))
    cost = {
        rounds: cost_of(run, questions, seed, {"rethinking": Rethinking(rounds=rounds)} if rounds else {})
        for rounds in ROUNDS
    }
    return {
        "right": [[one.is_right(draft) for draft in text.drafts] for one, text in zip(questions, texts, strict=True)],
        "scores": [[round(score, 4) for score in text.scores] for text in texts],
        "rate": rate(run, questions),
        "operations": {str(rounds): operations for rounds, (operations, _) in cost.items()},
        "seconds": {str(rounds): seconds for rounds, (_, seconds) in cost.items()},
    }


def rate(run: Run, questions: Sequence[Exercise]) -> float:
    """Nats that thoughts carry of a question with its true answer, the mean."""
    batch, posterior = run.infer([one.prompt + one.answer for one in questions], seed=1)
    return float(posterior.with_noise(2).score(run.model, batch).rate.mean())


def ask_twin(run: Run, questions: Sequence[Exercise], given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Of each question which of the samples is best and whether it is right, with as many as each R pays for."""
    operations, seconds = cost_of(run, questions, seed, {})
    samples = {
        rounds: min(MOST, max(1, round(given["operations"][rounds] / operations))) for rounds in given["operations"]
    }
    num = max(samples.values())
    texts = write(run, questions, seed, num=num)
    right, scores = [], []
    for place, one in enumerate(questions):
        own = texts[place * num : (place + 1) * num]
        each = nats_a_token(run, own)
        right.append([one.is_right(text.text) for text in own])
        scores.append([-each[text.text, text.ended] for text in own])
    best = {
        rounds: [marks[max(range(n), key=lambda at: levels[at])] for marks, levels in zip(right, scores, strict=True)]
        for rounds, n in samples.items()
    }
    first = [marks[0] for marks in right]
    any_right = {rounds: [any(marks[:n]) for marks in right] for rounds, n in samples.items()}
    return {
        "samples": samples,
        "best": best,
        "first": first,
        "any": any_right,
        "operations": operations,
        "seconds": seconds,
    }


def nats_a_token(run: Run, texts: Sequence[Generated]) -> dict[tuple[str, bool], float]:
    """Exact nats a token of prompt and text under a twin, by text and whether it has an end."""
    kinds = list(dict.fromkeys((text.text, text.ended) for text in texts))
    end, prompt = run.tokenizer.end_of_text, texts[0].prompt
    lines = [[end, *run.tokenizer.encode(prompt + text), *([end] if ended else [])] for text, ended in kinds]
    batch = Batch.from_lists([line[: LENGTH + 1] for line in lines], pad=end)
    with torch.no_grad():
        nats = -run.model.log_prob_without_thoughts(batch) / batch.mask.sum(1)
    return dict(zip(kinds, nats.tolist(), strict=True))


def cost_of(run: Run, questions: Sequence[Exercise], seed: int, how: Mapping[str, Any]) -> tuple[float, float]:
    """Operations and processor seconds of an answer."""
    some = questions[:COUNTED]
    operations = count_operations(lambda: write(run, some, seed, **how))
    began = time.process_time()
    write(run, some, seed, **how)
    return operations / len(some), (time.process_time() - began) / len(some)


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The table of all rows: a line for each task and R."""
    seeds = sorted({row["seed"] for row in found.values()})
    both = [seed for seed in seeds if all(row.name in found for row in planned([seed]))]
    lines = []
    for task in TASKS:
        ltm = [found[Row(LTM, seed).name]["tasks"][task] for seed in both]
        twin = [found[Row(OTHER, seed).name]["tasks"][task] for seed in both]
        for rounds in ROUNDS:
            key = str(rounds)
            samples = sorted({one["samples"][key] for one in twin})
            count = f"{samples[0]}" if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
            lines.append(
                [
                    task if not rounds else "",
                    f"{sum(one['rate'] for one in ltm) / len(ltm):.2f}" if not rounds else "",
                    rounds,
                    share([kept(one, rounds) for one in ltm]),
                    share([[marks[rounds] for marks in one["right"]] for one in ltm]),
                    share([[any(marks[: rounds + 1]) for marks in one["right"]] for one in ltm]),
                    share([one["greedy"] for one in ltm]) if not rounds else "",
                    count,
                    share([one["best"][key] for one in twin]),
                    share([one["greedy"] for one in twin]) if not rounds else "",
                    f"{sum(one['operations'][key] for one in ltm) / len(ltm) / 1e6:.0f}",
                ]
            )
    columns = ["task", "rate, nats", "R", "kept by bound", "last draft", "any draft", "greedy", "n"]
    columns += ["twin, best of n", "twin, greedy", "million operations an answer"]
    return {"rethinking": pages.table(columns, lines)} if both else {}


def kept(one: Mapping[str, Any], rounds: int) -> list[bool]:
    """Whether the draft of the highest bound among the first R + 1 is right, by question."""
    return [
        marks[max(range(rounds + 1), key=lambda at: scores[at])]
        for marks, scores in zip(one["right"], one["scores"], strict=True)
    ]


def share(marks: Sequence[Sequence[bool]]) -> str:
    """Percent that are right, mean over seeds, ± a standard error over questions; the range of several seeds."""
    each = [100 * sum(some) / len(some) for some in marks]
    mean, size = sum(each) / len(each), sum(map(len, marks))
    error = 100 * math.sqrt(max(mean / 100 * (1 - mean / 100), 0.0) / size)
    seeds = f" ({min(each):.0f} to {max(each):.0f})" if len(each) > 1 else ""
    return f"{mean:.1f} ± {error:.1f}{seeds}"


def line(row: Any) -> str:
    """Printed when a row is done."""
    seconds = f"{row['training_seconds']} s of training, {row['asking_seconds']} s of asking"
    return f"{row['side']} seed {row['seed']}: {seconds}"


STUDY = Study("rethinking", __doc__ or "", planned, measure, tables, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    run(STUDY, arguments)


if __name__ == "__main__":
    main()
