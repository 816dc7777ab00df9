"""The field's benchmarks on a small run and its twin, trained here: GSM8K, the evaluation harness, zero-shot, samples.

    python -m benchmarks.field --shared ../shared --out runs/field

Trains the nano preset on GSM8K's training problems in the few-shot format, then asks its test problems (pass@5), runs
the evaluation harness on local tasks made from them, scores WikiText-2 zero-shot, and scores written texts. Prints each
command and leaves OUT/field.json. These models are far too small to calculate: the figures show that the commands work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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


def measure(data: Path, out: Path, steps: int, problems: int) -> dict[str, Any]:
    """All figures."""
    gsm8k = data / "gsm8k"
    write_text(gsm8k / "train.jsonl", out / "train.jsonl")
    tokens = str(out / "tokens")
    if not Path(tokens).exists():
        shape = ("--vocab-size", "1024", "--sequence-length", "256", "--packing", "document")
        run("prepare", str(out / "train.jsonl"), *shape, "--out", tokens)
    ltm, twin = str(out / "ltm"), str(out / "twin")
    shape = ("--set", "model.max_length=1024", "--set", "slow.eval_every=0", "--steps", str(steps), "--resume")
    for folder, extra in ((ltm, []), (twin, ["--set", "model.thoughts=0"])):
        run("train", "--data", tokens, "--out", folder, "--preset", "nano", *shape, *extra)
    asked = ("--test", str(gsm8k / "test.jsonl"), "--train", str(gsm8k / "train.jsonl"), "--limit", str(problems))
    few_shot = ("--shots", "10", "--k", "5", "--max-new-tokens", "160")
    write_tasks(gsm8k / "test.jsonl", out / "tasks", problems)
    harness = ("--tasks", "gsm8k-choice,gsm8k-text", "--include-path", str(out / "tasks"), "--particles", "16")
    tasks = out / "tasks.toml"
    source = (data / "wikitext-2" / "wiki.test.tokens").resolve()
    tasks.write_text(f'[tasks.wikitext-2]\nsource = "{source}"\nwords = "with-line-ends"\nsequences = 100\n')
    (out / "some-of-train.jsonl").write_text("".join((out / "train.jsonl").open().readlines()[-50:]))
    return {
        "machine": machine(),
        "gsm8k": {name: run("gsm8k", folder, *asked, *few_shot) for name, folder in (("ltm", ltm), ("twin", twin))},
        "harness": {name: run("lm-eval", folder, *harness) for name, folder in (("ltm", ltm), ("twin", twin))},
        "zero-shot": run("zero-shot", ltm, str(tasks), "--twin", twin, "--particles", "16"),
        "samples": run(
            *("score-samples", "--run", ltm, "--num", "50", "--max-new-tokens", "120"),
            *("--scorer", twin, "--reference", str(out / "some-of-train.jsonl")),
        ),
    }


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--problems", type=int, default=50)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options.shared / "data", options.out, options.steps, options.problems)
    (options.out / "field.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
