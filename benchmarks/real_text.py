"""From text to samples on tinyshakespeare and WikiText-2, by the commands that a user would type.

    python -m benchmarks.real_text --shared ../shared --out runs/real [--only tinyshakespeare] [--seeds 0,1,2]

Prepares the text, trains the nano preset and its autoregressive twin on the same tokens, evaluates both on held-out
text and writes two samples. Prints every command, and leaves OUT/<corpus>.json and OUT/<corpus>.md (the table of
benchmarks/notes/trials.md). The folder `--shared` holds `data/tinyshakespeare/input.txt` and
`data/wikitext-2/wiki.*.tokens`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import explained, pm

CORPORA: dict[str, dict[str, Any]] = {
    "tinyshakespeare": {
        "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "128"],
        "train": ["--preset", "nano", "--steps", "1000", "--set", "slow.eval_every=250"],
        "evaluate": [],
        "prompt": "ROMEO:",
    },
    "wikitext-2": {
        "prepare": [
            "{data}/wikitext-2/wiki.train.shuffled.tokens",
            *(
                "--validation",
                "{data}/wikitext-2/wiki.valid.tokens",
                "--vocab-size",
                "2048",
                "--sequence-length",
                "128",
            ),
        ],
        "train": ["--preset", "nano", "--steps", "1500", "--set", "slow.eval_every=250"],
        "evaluate": ["--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "1000"],
        "prompt": " The game was",
    },
}


def run(*arguments: str) -> dict[str, Any]:
    """One command as its own process, and the object that it prints."""
    print(f"$ pyro-ltm {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "pyro_ltm_cli.main", *arguments, "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def measure(name: str, data: str, out: Path, seeds: list[int]) -> dict[str, Any]:
    """All figures of one corpus."""
    plan = {
        key: [part.format(data=data) for part in value] if isinstance(value, list) else value
        for key, value in CORPORA[name].items()
    }
    tokens = str(out / name / "tokens")
    if not Path(tokens).exists():
        run("prepare", *plan["prepare"], "--out", tokens)
    rows = []
    for seed in seeds:
        ltm, twin = (str(out / name / f"{kind}-{seed}") for kind in ("ltm", "twin"))
        trained = {}
        for folder, extra in ((ltm, []), (twin, ["--set", "model.thoughts=0"])):
            trained[folder] = run(
                *("train", "--data", tokens, "--out", folder, *plan["train"], *extra, "--seed", str(seed), "--resume")
            )
        figures = run("evaluate", ltm, "--twin", twin, *plan["evaluate"], "--particles", "8", "--seed", "1")
        longer = run("evaluate", ltm, *plan["evaluate"], "--particles", "8", "--fast-steps", "16", "--seed", "1")
        rows.append({"seed": seed, **figures, "longer": longer["bound"], "trained": trained[ltm]})
    first = str(out / name / f"ltm-{seeds[0]}")
    samples = [
        run("generate", first, "--max-new-tokens", "80", "--temperature", "0.8"),
        run("generate", first, "--prompt", plan["prompt"], "--max-new-tokens", "80", "--temperature", "0.8"),
    ]
    return {"corpus": name, "machine": machine(), "rows": rows, "samples": samples}


def machine() -> str:
    """Processor, cores and versions."""
    import torch

    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )


def markdown(found: dict[str, Any]) -> str:
    """The table and the samples."""
    lines = [
        "| model | seed | nats a token | bits a byte | perplexity | KL nats a sequence | distortion | "
        "... of another's thoughts | IWAE-8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        kinds = {"LTM, at most": "bound", "LTM, 16 fast steps, at most": "longer", "twin, exact": "twin"}
        for label, key in kinds.items():
            b = row[key]
            lines.append(
                f"| {label} | {row['seed']} | {pm(b['nats_per_token'], b['nats_per_token_stderr'], over=b)} | "
                f"{b['bits_per_byte']:.4f} | {b['perplexity']:.2f} | {b['kl_nats_per_sequence']:.2f} | "
                f"{b['distortion_nats_per_token']:.4f} | {b['distortion_shuffled']:.4f} | "
                f"{b['iwae_nats_per_token']:.4f} |"
            )
    trained = found["rows"][0]["trained"]
    levels = [
        f"unigram {trained['unigram_nats_per_token']:.3f}",
        f"untrained {trained['untrained_nats_per_token']:.3f}",
    ]
    lines += ["", f"Validation levels: {', '.join(levels)} nats a token. Machine: {found['machine']}."]
    for sample in found["samples"]:
        text = (sample.get("prompt") or "") + sample["texts"][0]["text"]
        prompt = sample.get("prompt")
        source = f"Prompt {prompt!r}, thoughts fitted to it" if prompt else "Thoughts from the prior"
        lines += ["", f"{source}:", "", *(f"    {line}" for line in text.splitlines())]
    return explained("\n".join(lines) + "\n")


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=list(CORPORA))
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else CORPORA:
        found = measure(name, str(options.shared / "data"), options.out, [int(s) for s in options.seeds.split(",")])
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        (options.out / f"{name}.md").write_text(markdown(found))
        print(markdown(found))


if __name__ == "__main__":
    main()
