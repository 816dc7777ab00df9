"""A graft against its base on long documents: does a language model gain by thoughts of its own text?

    python -m benchmarks.graft --shared ../shared --out runs/graft [--family gpt2] [--seeds 0] [--steps 150]
    python -m benchmarks.graft --table runs/graft

The first trains a small model of transformers (gpt2: full attention; mistral: a sliding window of 16 tokens) on
technical documents, saves it as Hugging Face has it, grafts it with the base frozen, trains the graft on the same
documents, and the base alone, all of it, for as many steps on as many tokens. Both are scored on held-out documents,
beside the base as it was. Each row is a file in OUT: the same call goes on where it was stopped. The second puts all
rows into benchmarks/graft-DATE.json and prints their table, that of benchmarks/notes/graft.md.

Nothing was tuned. `--shared` holds `data/proposals/train.jsonl` and `valid.jsonl` (benchmarks/notes/texts.md).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import pages
from benchmarks.interleave import machine
from pyro_ltm.config import apply_settings
from pyro_ltm.data import DataOrder, TokenDataset, Tokenizer, prepare
from pyro_ltm.files import write_text
from pyro_ltm.model.pretrained import quiet
from pyro_ltm.noise import fold
from pyro_ltm.runs import Run
from pyro_ltm.runs.graft import Graft, graft
from pyro_ltm.runs.protocols import evaluate_protocols
from pyro_ltm.runs.twin import base_of
from pyro_ltm.training import train

DOCUMENTS, HELD_OUT, EXCERPT = 200, 48, 600
"""Documents to learn from, and to score: of each of those so many characters from its middle on."""
VOCABULARY, LENGTH, WIDTH, LAYERS, WINDOW = 1024, 256, 64, 2, 16
BATCH, LR = 8, 3e-3
PREFIXES = (64, 128)
SHARED = [
    *("slow.warmup=20", "slow.lr_final=0.0", f"slow.batch_size={BATCH}", "slow.eval_every=0", "slow.eval_sequences=16"),
    *("optimizer.lr=0.3", "optimizer.eps=0.01", "fast.steps=8", "fast.subsample=4", "objective.warmup=0.3"),
]
OWN = {"graft": ["slow.lr=0.01"], "base, trained on": ["slow.lr=0.001"]}
"""New weights begin from nothing; those of the base were trained."""


def tokens(shared: Path, out: Path) -> Path:
    """The first documents to learn from, in sequences that hold no more than one."""
    how = {"sequence_length": LENGTH, "packing": "document", "validation_fraction": 0.0}
    place = out / "tokens"
    if not place.exists():
        write_text(out / "train.jsonl", "".join(_lines(shared, "train")[:DOCUMENTS]))
        prepare([str(out / "train.jsonl")], place, vocab_size=VOCABULARY, **how)
    if not (out / "held-out").exists():
        texts = [str(json.loads(line)["text"]) for line in _lines(shared, "valid")[:HELD_OUT]]
        rows = [{"text": text[len(text) // 2 :][:EXCERPT]} for text in texts]
        write_text(out / "held-out.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        prepare([str(out / "held-out.jsonl")], out / "held-out", tokenizer=Tokenizer.load(place), **how)
    return place


def _lines(shared: Path, name: str) -> list[str]:
    return (shared / "data" / "proposals" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(True)


def base_model(family: str) -> Any:
    """A new model of transformers."""
    import transformers

    if family == "gpt2":
        shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": LENGTH, "bos_token_id": 0}
        config = transformers.GPT2Config(vocab_size=VOCABULARY, eos_token_id=0, **shape)
        return transformers.GPT2LMHeadModel(config)
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            sliding_window=WINDOW,
            tie_word_embeddings=True,
        )
    )


def train_base(family: str, data: Path, folder: Path, *, steps: int, seed: int) -> None:
    """Trains the base as anyone would, and saves it with its tokenizer as Hugging Face has it."""
    import transformers

    torch.manual_seed(seed)
    model, read = base_model(family), TokenDataset(data)
    order = DataOrder(len(read), BATCH, fold(seed, "base"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        batch = read.batch(order.indices(step * BATCH))
        logits = model(input_ids=batch.inputs, use_cache=False).logits
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (nats * batch.mask.flatten()).sum() / batch.tokens()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with quiet(transformers.utils.logging):
        model.save_pretrained(folder)
    Tokenizer.load(data).save(folder / "tokenizer.json")


def trained(kind: str, model: Path, data: Path, out: Path, *, steps: int, seed: int) -> Run:
    """The graft, or the base that is trained on, as `pyro-ltm graft` and `train --init-from` make them."""
    name = kind.split(",")[0]
    how = Graft() if kind == "graft" else Graft(thoughts=0, train="all")
    first, folder = out / f"{name}-first", out / f"{name}-trained"
    if not first.exists():
        graft(model, first, how, seed=seed)
    if (folder / "trainer.safetensors").exists():
        return train(None, data=None, out=folder, resume=True)
    settings = [*SHARED, *OWN[kind], f"slow.steps={steps}", f"data.sequence_length={LENGTH}", "data.packing=document"]
    config = apply_settings(Run.load(first).config, settings)
    return train(config, data=data, out=folder, init_from=first, on_progress=lambda progress: None)


def figures(run: Run, twin: Run | None, held_out: Path) -> dict[str, Any]:
    """Bound and prefix of `run`, and of `twin` on the same tokens."""
    found = evaluate_protocols(
        run,
        TokenDataset(held_out),
        protocols=("bound", "prefix"),
        particles=8,
        prefixes=PREFIXES,
        stride=64,
        twin=twin,
        batch_size=16,
        seed=1,
    )
    return found.to_dict()


def measure(family: str, seed: int, data: Path, out: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One row: the graft beside its base, and beside the base that was trained on."""
    place = out / f"{family}-{seed}"
    model = place / "model"
    if not (model / "tokenizer.json").exists():
        train_base(family, data, model, steps=asked.base_steps, seed=seed)
    grafted, tuned = (trained(kind, model, data, place, steps=asked.steps, seed=seed) for kind in OWN)
    return {
        "family": family,
        "seed": seed,
        "base_steps": asked.base_steps,
        "steps": asked.steps,
        "base": figures(grafted, base_of(grafted), out / "held-out"),
        "base, trained on": figures(grafted, tuned, out / "held-out"),
        "machine": machine(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown: nats a token, lower is better."""

    def figure(found: Mapping[str, Any]) -> str:
        return f"{found['nats_per_token']:.4f} ± {found['nats_per_token_stderr']:.4f}"

    def gap(found: Mapping[str, Any], name: str) -> str:
        return f"{found['below_twin'][name]['nats_per_token']:+.4f} ± {found['below_twin'][name]['stderr']:.4f}"

    head = [
        *("base", "seed", "figure", "graft", "base as it was", "graft below it"),
        *("base trained on", "graft below it", "with another's thoughts"),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, (name, label) in itertools.product(rows, (("bound", "bound"), ("prefix", "prefix, a fit every 64"))):
        first, second = row["base"], row["base, trained on"]
        its = [found["twin"] if name == "bound" else found["twin"]["prefix"] for found in (first, second)]
        other = f"{first['bound']['distortion_shuffled'] - first['bound']['distortion_nats_per_token']:+.4f}"
        cells = [row["family"], str(row["seed"]), label, figure(first[name]), figure(its[0]), gap(first, name)]
        cells += [figure(its[1]), gap(second, name), other if name == "bound" else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/graft"))
    parser.add_argument("--table", type=Path, metavar="OUT")
    parser.add_argument("--family", default="gpt2", choices=["gpt2", "mistral"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--base-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=150)
    asked = parser.parse_args(arguments)
    if asked.table:
        rows = [json.loads(path.read_text()) for path in sorted(asked.table.glob("row-*.json"))]
        target = pages.ROOT / "benchmarks" / f"graft-{datetime.date.today()}.json"
        write_text(target, json.dumps({"rows": rows}, indent=1) + "\n")
        print(table(rows))
        return
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    data = tokens(asked.shared, asked.out)
    for seed in map(int, asked.seeds.split(",")):
        path = asked.out / f"row-{asked.family}-{seed}.json"
        if not path.exists():
            write_text(path, json.dumps(measure(asked.family, seed, data, asked.out, asked), indent=1) + "\n")
        print(table([json.loads(path.read_text())]), flush=True)


if __name__ == "__main__":
    main()
