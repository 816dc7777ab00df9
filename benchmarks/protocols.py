"""A latent-thought model and its twin under every protocol: on worlds, where the floor is known, and on real text.

    python -m benchmarks.protocols --out runs/protocols [--only worlds] [--seeds 0,1] [--protocol all]
        [--shared ../shared]

By the commands that a user would type, each printed: prepares, trains both on the same tokens, evaluates. Leaves
OUT/<corpus>.json and OUT/<corpus>.md (the tables of docs/results.md). A run that is there already goes on where it was.
Real text needs `--shared`, a folder with `data/tinyshakespeare/input.txt` and `data/wikitext-2/wiki.*.tokens`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.real_text import machine, run

LONG = [
    *("--preset", "nano", "--set", "model.window=8", "--set", "fast.steps=16", "--set", "slow.batch_size=4"),
    *("--set", "compile=true"),
]
WEAK = ["--set", "optimizer.eps=0.01", "--set", "slow.eval_every=0"]
"""A fast loop whose Adam follows weak gradients, too."""
STARTED = [
    *("--set", "guide.name=semi-amortized", "--set", "optimizer.lr=0.2", "--set", "optimizer.eps=0.1"),
    *("--set", "slow.eval_every=500", "--set", "slow.eval_sequences=32"),
]
"""An encoder that starts the fast loop."""
DECODER_FIRST = ["--preset", "nano-long", "--set", "slow.eval_every=0"]
"""The decoder first, then its thoughts."""
TENTH = [*DECODER_FIRST, "--set", "slow.alone=0.1"]
"""The same for a tenth of the slow steps in place of a half: a candidate for worlds and real text alike."""
THOUGHTS_FIRST = [*DECODER_FIRST, "--set", "slow.alone=0"]
"""Thoughts from the first slow step on."""
NATURAL = [
    *(*THOUGHTS_FIRST, "--set", "slow.lr_final=0.1", "--set", "optimizer.name=natural"),
    *("--set", "optimizer.lr=0.7", "--set", "fast.steps=16", "--set", "fast.subsample=1", "--set", "compile=true"),
]
"""Fast steps along natural gradients, each on the whole text."""
TIGHT = ["--fast-steps", "64", "--set", "optimizer.lr=0.1", "--set", "optimizer.eps=1"]
"""A longer, calmer fast loop than in training."""
CALM = ["--fast-steps", "64", "--set", "optimizer.name=natural", "--set", "optimizer.lr=0.3"]
"""As many steps along natural gradients, which come nearer to the posterior of a long text than Adam's."""
RECIPE = ["--preset", "nano", "--set", "model.window=8", "--set", "fast.steps=16", "--set", "slow.eval_every=500"]
JUDGED = ["--seed", "1", "--batch-size", "50"]
STRIDE = ["--stride", "16"]
WIKITEXT = ["{data}/wikitext-2/wiki.train.shuffled.tokens", "--validation", "{data}/wikitext-2/wiki.valid.tokens"]
WORLDS_LENGTH = ["--set", "model.max_length=1920"]
WORLDS_240 = {
    "prepare": ["worlds:length=240,documents=6000", "--sequence-length", "1920"],
    "evaluate": [
        *("--data", "worlds:length=240,documents=50", "--particles", "512", "--ais", "16", "--stride", "384", *CALM),
    ],
}
WIKITEXT_2048 = {
    "prepare": [*WIKITEXT, "--vocab-size", "1024", "--sequence-length", "2048"],
    "evaluate": [
        *("--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "100", "--particles", "64"),
        *("--stride", "512", *CALM),
    ],
}
TINYSHAKESPEARE_2048 = {
    "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "2048"],
    "evaluate": ["--sequences", "100", "--particles", "64", "--stride", "512", *CALM],
}

CORPORA: dict[str, dict[str, list[str]]] = {
    "worlds": {
        "prepare": ["worlds:documents=20000", "--sequence-length", "128"],
        "train": [*RECIPE, "--steps", "1000"],
        "evaluate": [
            *("--data", "worlds:documents=100", "--particles", "64", "--fast-steps", "32", "--ais", "8", *STRIDE),
        ],
    },
    "worlds-long": {
        "prepare": ["worlds:length=80,documents=10000", "--sequence-length", "640"],
        "train": [*LONG, *WEAK, "--set", "model.max_length=640", "--steps", "1500"],
        "evaluate": ["--data", "worlds:length=80,documents=50", "--particles", "128", "--stride", "128", *TIGHT],
    },
    "worlds-longer": {**WORLDS_240, "train": [*THOUGHTS_FIRST, *WORLDS_LENGTH, "--steps", "5000"]},
    "worlds-longer-decoder-first": {**WORLDS_240, "train": [*DECODER_FIRST, *WORLDS_LENGTH, "--steps", "5000"]},
    "worlds-longer-tenth": {**WORLDS_240, "train": [*TENTH, *WORLDS_LENGTH, "--steps", "5000"]},
    "worlds-longer-natural": {**WORLDS_240, "train": [*NATURAL, *WORLDS_LENGTH, "--steps", "3000"]},
    "wikitext-2-longer": {**WIKITEXT_2048, "train": [*DECODER_FIRST, "--steps", "2000"]},
    "wikitext-2-longer-tenth": {**WIKITEXT_2048, "train": [*TENTH, "--steps", "2000"]},
    "wikitext-2-longer-natural": {**WIKITEXT_2048, "train": [*NATURAL, "--steps", "2000"]},
    "tinyshakespeare-longer": {**TINYSHAKESPEARE_2048, "train": [*DECODER_FIRST, "--steps", "2000"]},
    "tinyshakespeare-longer-tenth": {**TINYSHAKESPEARE_2048, "train": [*TENTH, "--steps", "2000"]},
    "tinyshakespeare-longer-natural": {**TINYSHAKESPEARE_2048, "train": [*NATURAL, "--steps", "2000"]},
    "tinyshakespeare-long": {
        "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "512"],
        "train": [*LONG, *WEAK, "--set", "model.max_length=512", "--steps", "1000"],
        "evaluate": ["--sequences", "50", "--particles", "64", "--stride", "128", *TIGHT],
    },
    "wikitext-2-long": {
        "prepare": [*WIKITEXT, "--vocab-size", "1024", "--sequence-length", "512"],
        "train": [*LONG, *STARTED, "--set", "model.max_length=512", "--steps", "1500"],
        "evaluate": [
            *("--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "50", "--particles", "64"),
            *("--stride", "128", *TIGHT),
        ],
    },
    "tinyshakespeare": {
        "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "128"],
        "train": [*RECIPE, "--steps", "1000"],
        "evaluate": ["--sequences", "100", "--particles", "32", "--fast-steps", "32", *STRIDE],
    },
    "wikitext-2": {
        "prepare": [*WIKITEXT, "--vocab-size", "1024", "--sequence-length", "128"],
        "train": [*RECIPE, "--steps", "1000"],
        "evaluate": [
            *("--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "100"),
            *("--particles", "32", "--fast-steps", "32", *STRIDE),
        ],
    },
}


def measure(name: str, data: str, out: Path, seeds: list[int], protocol: str) -> dict[str, Any]:
    """All figures of one corpus, or those of one protocol."""
    plan = {key: [part.format(data=data) for part in parts] for key, parts in CORPORA[name].items()}
    tokens = str(out / name / "tokens")
    if not Path(tokens).exists():
        run("prepare", *plan["prepare"], "--out", tokens)
    rows = []
    for seed in seeds:
        ltm, twin = (str(out / name / f"{kind}-{seed}") for kind in ("ltm", "twin"))
        for folder, extra in ((twin, ["--set", "model.thoughts=0"]), (ltm, [])):
            train = ("train", "--data", tokens, "--out", folder, *plan["train"], *extra)
            run(*train, "--seed", str(seed), "--resume")
        judge = ("evaluate", ltm, "--twin", twin, *plan["evaluate"], "--protocol", protocol, *JUDGED)
        rows.append({"seed": seed, **run(*judge)})
    return {"corpus": name, "machine": machine(), "threads": os.environ.get("OMP_NUM_THREADS"), "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """A table a seed: each figure, its error, how far below the twin, how far above the floor."""
    lines = []
    for row in found["rows"]:
        lines += [
            f"Seed {row['seed']}:",
            "",
            "| figure | nats a token | below the twin | above the floor |",
            "|---|---|---|---|",
        ]
        twin, prefix = row["twin"], row.get("prefix")
        for key, (label, level, error) in _figures(row).items():
            below, above = row["below_twin"].get(key), row.get("above_floor", {}).get(key)
            lines.append(f"| {label} | {level:.4f} ± {error:.4f} | {_gap(below)} | {_gap(above)} |")
        if "floor" in row:
            floor, windowed = row["floor"], row["floor"]["windowed"]
            lines.append(f"| best predictor with {floor['window']} tokens in sight | {_level(windowed)} | | |")
            lines.append(f"| floor: the text's entropy, exact | {_level(floor)} | | 0 |")
        if "reference" in row:
            lines.append(f"| *reference protocol, NOT a bound* | *{_level(row['reference'])}* | | |")
        for after, its in zip(prefix["by_prefix"], twin["prefix"]["by_prefix"], strict=True) if prefix else ():
            gap = row["below_twin"][f"after {after['prefix']} tokens"]
            lines.append(
                f"| tokens after the first {after['prefix']} (twin {its['nats_per_token']:.4f}) | {_level(after)} "
                f"| {_gap(gap)} | |"
            )
        if bound := row.get("bound"):
            lines += [
                "",
                f"{bound['sequences']} sequences, {bound['tokens']} tokens; rate {bound['kl_nats_per_sequence']:.2f} "
                f"nats a sequence; {bound['effective_sample_size']:.1f} of {bound['particles']} draws count; bits a "
                f"byte {bound['bits_per_byte']:.4f}, twin {twin['bits_per_byte']:.4f}.",
            ]
        lines.append("")
    return "\n".join([*lines, f"Machine: {found['machine']}, {found['threads'] or 'all'} threads."]) + "\n"


def _figures(row: dict[str, Any]) -> dict[str, tuple[str, float, float]]:
    """Label, level and error of what can stand beside the twin, by the names of the differences."""
    figures: dict[str, tuple[str, float, float]] = {}

    def add(key: str, label: str, one: dict[str, Any], error: str = "nats_per_token_stderr") -> None:
        figures[key] = (label, one["nats_per_token"], one[error])

    if bound := row.get("bound"):
        last = bound["iwae_curve"][-1]
        add("bound", "bound (ELBO), at most", bound)
        add("importance-weighted", f"importance-weighted, {last['particles']} draws, at most", last, "stderr")
        for start, one in bound.get("ais", {}).items():
            add(f"AIS from {start}", f"annealed from {start}, {one['temperatures']} temperatures, at most", one)
    if prefix := row.get("prefix"):
        add("prefix", f"predictive, a fit every {prefix['stride']} tokens", prefix)
    add("twin", "twin, exact", row["twin"])
    return figures


def _level(one: dict[str, Any]) -> str:
    return f"{one['nats_per_token']:.4f} ± {one['nats_per_token_stderr']:.4f}"


def _gap(gap: dict[str, Any] | None) -> str:
    return f"{gap['nats_per_token']:.4f} ± {gap['stderr']:.4f}" if gap else ""


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=list(CORPORA))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--protocol", choices=("bound", "prefix", "reference", "all"), default="all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else CORPORA:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        found = measure(name, str(options.shared / "data"), options.out, seeds, options.protocol)
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        (options.out / f"{name}.md").write_text(markdown(found))
        print(markdown(found))


if __name__ == "__main__":
    main()
