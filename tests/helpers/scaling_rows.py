"""Cells of a scaling study whose nats follow a known law, with all that a page shows of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pyro_ltm.comparison.scaling.analysis import laws
from pyro_ltm.comparison.scaling.result import Level, Look, Row, Study, read_rows, to_csv
from pyro_ltm.reports.plots import to_png
from pyro_ltm.reports.scaling_page import render
from pyro_ltm.reports.scaling_plots import draw

FLOOR, COEFFICIENTS, EXPONENTS = 2.0, {"P": 60.0, "T": 0.8}, {"P": 0.35, "T": 0.7}


def row(parameters: int, fast_steps: int, *, noise: float = 0.0, seed: int = 0, **more: Any) -> Row:
    """One of a latent-thought model, or with `family` of a rival."""
    powers = COEFFICIENTS["P"] * parameters ** -EXPONENTS["P"]
    powers += COEFFICIENTS["T"] * fast_steps ** -EXPONENTS["T"] if fast_steps else 1.0
    family = more.get("family", "ltm")
    settings = f"{family}--P={parameters}--T={fast_steps}"
    known = {"name": f"{settings}--seed={seed}", "settings": settings, "family": "ltm", "seed": seed}
    shape = {"layers": 2, "dim": 64, "thoughts": 4, "steps": 10, "tokens": 1000, "corpus_tokens": 400}
    costs = {"score_token_operations": 2.0, "write_token_operations": float(1 + fast_steps)}
    costs["training_operations"] = float(parameters * (1 + fast_steps))
    nats = (FLOOR + powers) * math.exp(noise)
    scored = {"bound": Level(nats, 0.01), "iwae": Level(nats - 0.1, None), "rate": 3.5, "active": 5, "latent": 256}
    scored |= {"sequence_nats": [10 * nats] * 3, "sequence_tokens": [10] * 3}
    scored |= {"places": {"ids": [0, 1, 2], "documents": None}, "machine": {"processor": "one"}}
    scored |= {"curve": [Look(0, 0, 6.0), Look(5, 500, nats + 0.5), Look(10, 1000, nats)]}
    axes = {"fast.steps": fast_steps, "model.thoughts": more.get("thoughts", 4)}
    known |= {"axes": {"model.dim": parameters, **(axes if family == "ltm" else {})}}
    return Row(**{**shape, **costs, **scored, **known, "parameters": parameters, "fast_steps": fast_steps, **more})


def show_cells(folder: Path, paints: bool) -> None:
    """Reads the cells of a study and makes all that a page shows of them beside two others."""
    others = [row(40, 1, seed=1, reference=Level(1.0, None)), row(40, 0, family="twin", axes={"model.dim": 40})]
    study = Study({}, [*read_rows(folder), *others])
    study.laws = laws(study, resamplings=2)
    found = render(study, {}) + to_csv(study.rows)
    assert found.encode()
    if paints:
        for figure, _ in draw(study).values():
            to_png(figure)


def rows(
    noise: float = 0.0,
    seed: int = 0,
    sizes: tuple[int, ...] = (10_000, 40_000, 160_000, 640_000),
    steps: tuple[int, ...] = (1, 4, 16, 64),
    seeds: int = 2,
) -> list[Row]:
    """A grid of them."""
    generator = torch.Generator().manual_seed(seed)
    places = [(size, count, one) for size in sizes for count in steps for one in range(seeds)]
    errors = noise * torch.randn(len(places), generator=generator, dtype=torch.float64)
    return [row(size, count, noise=float(e), seed=s) for (size, count, s), e in zip(places, errors, strict=True)]
