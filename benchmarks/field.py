"""The field's benchmarks on small runs and their twins: GSM8K, the evaluation harness, zero-shot, written texts.

    python -m benchmarks.field --out runs/field [--only gsm8k] [--seeds 0,1] [--shared ../shared]
    python -m benchmarks.field --out runs/field --only wikitext-2 --runs runs/protocols
    python -m benchmarks.field --table runs/field/field.json

`gsm8k` trains the nano preset on GSM8K's training problems in the few-shot format, then asks its test problems
(pass@5), runs the evaluation harness on local tasks made from them, scores WikiText-2 zero-shot, and scores what it
writes. These models are far too small to calculate: the figures show that the commands work. `wikitext-2` scores the
whole test file, and written texts, with the runs that `python -m benchmarks.protocols --only wikitext-2-longer` left in
`--runs`. Prints each command and leaves OUT/field.json; the last form publishes it: its tables go to
benchmarks/notes/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks import field_tables, pages
from benchmarks.protocols import CALM, JUDGED
from benchmarks.real_text import machine, run


def write_text(problems: Path, out: Path) -> None:
    """The problems as documents, each as the few-shot prompt has it."""
    rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()]
    texts = [{"text": f"Question: {row['question']}\nAnswer: {row['answer']}"} for row in rows]
    out.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")


def write_tasks(problems: Path, folder: Path, count: int) -> None:
    """Two tasks for the harness: the text of test problems, and a choice between the right number and another."""
    folder.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()[:count]]
    numbers = [row["answer"].split("####")[1].strip() for row in rows]
    choices = [
        {"q": f"Question: {row['question']}\nAnswer: ####", "options": [numbers[i], numbers[i - 1]], "a": 0}
        for i, row in enumerate(rows)
        if numbers[i] != numbers[i - 1]
    ]
    texts = [{"text": f"Question: {row['question']}\nAnswer: {row['answer']}"} for row in rows]
    tasks: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "gsm8k-choice": (
            choices,
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{q}}",
                "doc_to_target": "a",
                "doc_to_choice": "{{options}}",
                "metric_list": [{"metric": "acc"}],
            },
        ),
        "gsm8k-text": (
            texts,
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
            },
        ),
    }
    for name, (data, keys) in tasks.items():
        path = folder.resolve() / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **keys}), encoding="utf-8")


def gsm8k(data: Path, out: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of an LTM and its twin, trained here on GSM8K."""
    problems = data / "gsm8k"
    write_text(problems / "train.jsonl", out / "train.jsonl")
    tokens = str(out / "tokens")
    if not Path(tokens).exists():
        shape = ("--vocab-size", "1024", "--sequence-length", "256", "--packing", "document")
        run("prepare", str(out / "train.jsonl"), *shape, "--out", tokens)
    ltm, twin = str(out / f"ltm-{seed}"), str(out / f"twin-{seed}")
    model = ("--set", "model.max_length=1024", "--set", "slow.eval_every=0", "--steps", str(options.steps))
    for folder, extra in ((ltm, []), (twin, ["--set", "model.thoughts=0"])):
        train = ("train", "--data", tokens, "--out", folder, "--preset", "nano", *model, *extra)
        run(*train, "--seed", str(seed), "--resume")
    test = ("--test", str(problems / "test.jsonl"), "--train", str(problems / "train.jsonl"))
    asked = (*test, "--limit", str(options.problems), "--shots", "10", "--k", "5", "--max-new-tokens", "160")
    write_tasks(problems / "test.jsonl", out / "tasks", options.problems)
    harness = ("--tasks", "gsm8k-choice,gsm8k-text", "--include-path", str(out / "tasks"), "--particles", "16")
    (out / "some-of-train.jsonl").write_text("".join((out / "train.jsonl").open().readlines()[-50:]))
    both = {"ltm": ltm, "twin": twin}
    scored = (_whole(data, out), "--sequences", "100", "--twin", twin, "--particles", "16")
    return {
        "gsm8k": {name: run("gsm8k", folder, *asked) for name, folder in both.items()},
        "harness": {name: run("lm-eval", folder, *harness) for name, folder in both.items()},
        "zero-shot": run("zero-shot", ltm, *scored),
        "samples": run(
            *("score-samples", "--run", ltm, "--num", "50", "--max-new-tokens", "120"),
            *("--scorer", twin, "--reference", str(out / "some-of-train.jsonl")),
        ),
    }


def wikitext_2(data: Path, out: Path, seed: int, runs: Path) -> dict[str, Any]:
    """The whole test file, and texts from the prior, by runs that were trained on WikiText-2."""
    both = {name: str(runs / "wikitext-2-longer" / f"{name}-{seed}") for name in ("ltm", "twin")}
    scored = (_whole(data, out), "--twin", both["twin"], "--particles", "16", *CALM, *JUDGED)
    texts = ("--num", "64", "--max-new-tokens", "512", "--scorer", both["twin"], "--seed", "0")
    return {
        "zero-shot": run("zero-shot", both["ltm"], *scored),
        "samples": {name: run("score-samples", "--run", folder, *texts) for name, folder in both.items()},
    }


def _whole(data: Path, out: Path) -> str:
    """A file of one task: WikiText-2's test file."""
    tasks = out / "tasks.toml"
    source = (data / "wikitext-2" / "wiki.test.tokens").resolve()
    tasks.write_text(f'[tasks.wikitext-2]\nsource = "{source}"\nwords = "with-line-ends"\n')
    return str(tasks)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="publish such a file, and measure nothing")
    parser.add_argument("--only", choices=("gsm8k", "wikitext-2"))
    parser.add_argument("--runs", type=Path, default=Path("runs/protocols"))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--problems", type=int, default=50)
    options = parser.parse_args()
    if (options.out is None) == (options.table is None):
        parser.error("give either --out or --table")
    if options.table:
        named = {options.runs: "runs/protocols", options.shared: "../shared"}
        pages.publish("field", options.table, field_tables.tables, named)
        return
    names = [options.only] if options.only else ["gsm8k", "wikitext-2"]
    if "wikitext-2" in names and not (options.runs / "wikitext-2-longer").is_dir():
        parser.error(
            f"{options.runs}: no runs of wikitext-2-longer, which benchmarks.protocols trains; or --only gsm8k"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "field.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in names:
        rows = known.setdefault(name, {"rows": []})["rows"]
        for seed in map(int, options.seeds.split(",")):
            where = (options.shared / "data", options.out, seed)
            found = gsm8k(*where, options) if name == "gsm8k" else wikitext_2(*where, options.runs)
            rows[:] = [*(row for row in rows if row["seed"] != seed), {"seed": seed, **found}]
            rows.sort(key=lambda row: int(row["seed"]))
            known[name] |= {"machine": machine(), "threads": os.environ.get("OMP_NUM_THREADS")}
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    for table in field_tables.tables(known).values():
        print(table)


if __name__ == "__main__":
    main()
