"""Digests of what training, scores and generation give, to the bit: whether a change of the code changed a figure.

    python tests/helpers/golden.py --out digests.json            (at the commit before)
    python tests/helpers/golden.py --against digests.json        (at the commit after, on the same machine)

Ten small configurations that span guides, objectives, optimizers, noise and what else has a path of its own; of each
the weights after five slow steps, `evaluate --protocol all` and two texts written. Everything goes through the command
line, which outlives a change of the rooms behind it. Digests of two machines, or of two releases of torch, need not
agree: compare two commits on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import click.testing
import torch
from pyro_ltm_cli.main import cli
from safetensors.torch import load_file

TINY = {
    "model.dim": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.thoughts": 4,
    "model.max_length": 32,
    "model.window": 8,
    "data.sequence_length": 32,
    "data.vocab_size": 300,
    "fast.steps": 3,
    "slow.steps": 5,
    "slow.warmup": 1,
    "slow.batch_size": 4,
    "slow.eval_sequences": 4,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mean-field, analytic-elbo": {},
    "full-rank, stl, natural": {"guide.name": "full-rank", "objective.name": "stl", "optimizer.name": "natural"},
    "kronecker, iwae, antithetic": {"guide.name": "kronecker", "objective.name": "iwae", "fast.noise": "antithetic"},
    "flow, elbo": {"guide.name": "flow", "objective.name": "elbo"},
    "layered, free-bits, fixed, lbfgs": {
        "guide.name": "layered",
        "objective.name": "free-bits",
        "fast.noise": "fixed",
        "optimizer.name": "lbfgs",
    },
    "twin": {"model.thoughts": 0},
    "subsample, decoder first": {"fast.subsample": 4, "slow.alone": 0.4, "slow.accumulate": 2},
    "encoder": {"guide.name": "semi-amortized", "objective.name": "target-rate"},
    "sampler": {"guide.name": "langevin", "objective.name": "map"},
    "early stop, chi": {"objective.name": "chi:2:4", "fast.tolerance": 0.5, "fast.steps": 9, "fast.patience": 2},
}
VOLATILE = {"cost", "seconds", "tokens_per_second", "run", "data", "files", "out"}
"""Keys of JSON that name a time or a place."""


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the digests here")
    parser.add_argument("--against", type=Path, help="compare with digests written before")
    options = parser.parse_args()
    if (options.out is None) == (options.against is None):
        parser.error("give either --out or --against")
    torch.set_num_threads(1)
    found = {"machine": f"{platform.machine()}, torch {torch.__version__}", "digests": digests()}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found['digests'])} configurations: {options.out}")
        return
    before = json.loads(options.against.read_text(encoding="utf-8"))
    if before["machine"] != found["machine"]:
        sys.exit(f"{options.against}: of another machine or torch ({before['machine']}; here {found['machine']})")
    sys.exit(differences(before["digests"], found["digests"]))


def differences(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Prints what differs; 1 where anything does, else 0."""
    changed = [
        f"{name}: {part}"
        for name, parts in before.items()
        for part, digest in parts.items()
        if after.get(name, {}).get(part) != digest
    ]
    print("\n".join(changed) if changed else f"{len(before)} configurations, the same to the bit")
    return 1 if changed else 0


def digests(names: list[str] | None = None) -> dict[str, dict[str, str]]:
    """By configuration: the digests of weights, figures and texts."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = folder / "tokens"
        (folder / "text.txt").write_text(_text(), encoding="utf-8")
        sizes = ("--vocab-size", TINY["data.vocab_size"], "--sequence-length", TINY["data.sequence_length"])
        _call("prepare", folder / "text.txt", "--out", tokens, *sizes)
        return {name: _digests(folder / f"run-{i}", tokens, name) for i, name in enumerate(names or CONFIGURATIONS)}


def _digests(run: Path, tokens: Path, name: str) -> dict[str, str]:
    settings = {**TINY, **CONFIGURATIONS[name]}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    _call("train", "--data", tokens, "--out", run, "--preset", "nano", *words)
    draws = ("--sequences", 4, "--particles", 2, "--batch-size", 2)
    figures = json.loads(_call("evaluate", run, "--protocol", "all", *draws, "--json"))
    texts = json.loads(_call("generate", run, "--num", 2, "--max-new-tokens", 12, "--json"))
    weights = hashlib.sha256()
    for key, tensor in sorted(load_file(run / "model.safetensors").items()):
        weights.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    parts = {"weights": weights.hexdigest(), "evaluate": _digest(figures), "generate": _digest(texts)}
    return {part: digest[:16] for part, digest in parts.items()}


def _digest(answer: Any) -> str:
    return hashlib.sha256(json.dumps(_lasting(answer), sort_keys=True).encode()).hexdigest()


def _lasting(answer: Any) -> Any:
    """Without what names a time or a place; numbers as they are, to the last bit."""
    if isinstance(answer, dict):
        return {key: _lasting(value) for key, value in answer.items() if key not in VOLATILE}
    return [_lasting(value) for value in answer] if isinstance(answer, list) else answer


def _call(*words: object) -> str:
    result = click.testing.CliRunner().invoke(cli, [str(word) for word in words])
    if result.exit_code:
        raise SystemExit(f"pyro-ltm {' '.join(map(str, words))}: {result.stderr}{result.exception}")
    return result.stdout


def _text() -> str:
    """Lines of words that a tokenizer of 300 tokens finds merges in."""
    draw = random.Random(0)
    known = [
        "".join(draw.choice(("ka", "lo", "mi", "ter", "son")) for _ in range(draw.randint(1, 3))) for _ in range(60)
    ]
    return "".join(" ".join(draw.choices(known, k=8)) + ".\n" for _ in range(500))


if __name__ == "__main__":
    main()
