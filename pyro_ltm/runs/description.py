"""A run described in one dictionary for JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pyro_ltm.errors import UserError
from pyro_ltm.runs.metrics import summarize
from pyro_ltm.runs.notes import DATA, origin_note
from pyro_ltm.runs.run import Run

PARTS = {
    "body": "base",  # of a graft
    "head": "base",
    "tok_embeddings": "embedding",
    "value_embeddings": "embedding",
    "output": "head",
    "attention": "self_attention",
    "cross_attention": "cross_attention",
    "feed_forward": "feed_forward",
}


def describe(run: Run) -> dict[str, Any]:
    """A run's settings, its size, how far it was trained, its last validation, its data, its origin, its files."""
    origin, config = origin_note(run.folder), dataclasses.asdict(run.config)
    if not run.config.graft.base:
        del config["graft"]
    return {
        "run": str(run.folder),
        "step": run.step,
        "steps": run.config.slow.steps,
        "config": config,
        "parameters": count_parameters(run),
        **summarize(run.folder),
        "data": _data(run),
        "origin": {"run": origin.run, "step": origin.step, "parts": origin.parts} if origin else None,
        "files": file_sizes(run.folder),
    }


def count_parameters(run: Run) -> dict[str, int]:
    """Learned numbers by part, and in all."""
    counts = dict.fromkeys([*PARTS.values(), "norms", "guide"], 0)
    for name, parameter in run.model.named_parameters():
        part = next((part for word, part in PARTS.items() if f".{word}." in f".{name}"), "norms")
        counts[part] += parameter.numel()
    counts["guide"] = sum(parameter.numel() for parameter in run.loop.guide.parameters())
    if not run.config.graft.base:
        del counts["base"]
    if run.config.model.tied:
        del counts["head"]  # it is the embedding's transpose
    return {**counts, "total": sum(counts.values())}


def file_sizes(folder: Path) -> dict[str, int]:
    """Files below a run folder and their sizes in bytes; hidden ones left out, `data` as one."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            name = "data/" if relative.parts[0] == "data" else relative.as_posix()
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sizes


def _data(run: Run) -> dict[str, Any] | None:
    """The data that the run was trained on, and whether they are still there; None when it does not say."""
    try:
        folder = run.dataset("train").folder
    except UserError as error:
        return {"folder": None, "problem": str(error)} if (run.folder / DATA).exists() else None
    keys = ("sources", "packing", "sequence_length", "vocab_size", "splits")
    return {"folder": str(folder.path), **{key: folder.meta[key] for key in keys}}
