"""The parts that both notebooks share: a made language, a small model of it, and tables and figures in a notebook."""

from __future__ import annotations

import io
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import pyro_ltm as ltm
from pyro_ltm import FastLoop
from pyro_ltm.guides import MeanField

SHARE = float(os.environ.get("PYRO_LTM_NOTEBOOK_SHARE", "1"))  # of steps, draws and texts; below 1 for a quick look
# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PINK, SKY, RED, BLACK = "#CC79A7", "#56B4E9", "#D55E00", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)

SUBJECTS = """wave boat sail tide gull net | bread knife oven soup pan salt | song drum note choir harp flute
| rose seed tree bee leaf lawn"""
MANNERS = "rests waits sleeps dreams | roars shakes rings bursts | runs jumps flies turns | grows leans bends fades"
CLAUSES, VOCABULARY = 8, 390
EACH = CLAUSES * (math.log(6) + math.log(4))
BEST, WITHOUT = EACH + math.log(16), CLAUSES * math.log(24 * 16)

BASE = [
    "model.dim=32",
    "model.layers=1",
    "model.thoughts=1",
    "model.window=1",
    "model.max_length=40",
    "slow.lr=0.04",
    "slow.warmup=20",
    "slow.eval_every=0",
    "slow.eval_sequences=1",
    "fast.steps=8",
]


def write_texts(count, seed=0):
    """Each has a subject and a manner, and eight clauses of nouns of the one and verbs of the other."""
    subjects, manners = ([part.split() for part in text.split("|")] for text in (SUBJECTS, MANNERS))
    chance, texts = random.Random(seed), []
    for _ in range(count):
        nouns, verbs = chance.choice(subjects), chance.choice(manners)
        texts.append(" ".join(f"the {chance.choice(nouns)} {chance.choice(verbs)} ." for _ in range(CLAUSES)))
    return texts


def prepare(texts, folder):
    """The folder of their tokens, one text a sequence."""
    source = folder / "texts.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    shape = {"vocab_size": VOCABULARY, "sequence_length": 4 * CLAUSES + 1, "packing": "document"}
    return ltm.prepare([str(source)], folder / "data", **shape).path


def settings(steps, *more):
    """The small model's, with so many slow steps."""
    return ltm.apply_settings(ltm.preset("nano"), [*BASE, f"slow.steps={share_of(steps)}", *more])


def train(folder: Path, data: Path, name: str, steps: int, *more: str):
    """A decoder trained for so many slow steps, and the seconds that it took."""
    begun = time.perf_counter()
    run = ltm.train(settings(steps, *more), data=data, out=folder / name, on_note=print)  # what it notices on the way
    return run, time.perf_counter() - begun


def measure(model, batch, objective, guide=None, steps=24):
    """Scores of a fit of all texts on fresh noise: means over texts, and standard errors."""
    guide = guide or MeanField(1, 32)
    posterior = FastLoop(guide, objective, steps=share_of(steps)).fit(model, batch)
    terms = posterior.with_noise(3).score(model, batch, particles=16)
    result = {"rate": terms.rate, "distortion": terms.distortion, "elbo": -terms.distortion - terms.rate}
    figures = {name: float(value.mean()) for name, value in result.items()}
    figures |= {f"{name}_error": standard_error(value) for name, value in result.items()}
    return figures | {"history": posterior.history.mean(1), "elbos": result["elbo"], "state": posterior.state}


def share_of(count, least=2):
    return max(least, round(count * SHARE))


def standard_error(values):
    return float(values.std() / math.sqrt(len(values)))


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def show(figure):
    display(Image(png(figure)))


def say(text):
    display(Markdown(text))


def table(columns, rows):
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    say("\n".join("| " + " | ".join(line) + " |" for line in lines))


def compared(found, what):
    """The table of what `measure` found of each name, under the heading `what`."""
    parts = ("rate", "distortion", "elbo")
    rows = [[name, *(f"{one[part]:.2f} ± {one[part + '_error']:.2f}" for part in parts)] for name, one in found.items()]
    table([what, "rate (± s.e. over texts)", "distortion", "ELBO, on fresh noise"], rows)


def draw_slice(across, cells, paths, draws):
    """A panel for each posterior: contours of the true one on a grid, the path of q's mean, and draws from the last q.

    Each path is [steps, 2] and each set of draws [draws, 2], in the plane of the grid.
    """
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    panels = figure.subplots(1, 4, sharex=True, sharey=True)
    levels = (cells.max().item() * torch.tensor([0.01, 0.1, 0.37, 0.8])).tolist()
    for axes, (name, places) in zip(panels, paths.items(), strict=True):
        axes.contour(*across, cells.T, levels=levels, colors="0.55", linewidths=1)
        axes.scatter(*draws[name].T, s=5, color=SKY, alpha=0.5)
        moves = places[1:] - places[:-1]
        axes.quiver(*places[:-1].T, *moves.T, angles="xy", scale_units="xy", scale=1, color=BLUE, width=0.008)
        axes.plot(*places[0], "o", color=BLACK, markersize=5)
        axes.plot(*places[-1], "*", color=RED, markersize=11)
        axes.set(title=name, xlabel="z, towards the mean-field mean")
    panels[0].set_ylabel("z, at a right angle")
    handles = [
        Line2D([], [], color="0.55", label="true posterior, slice"),
        Line2D([], [], color=BLUE, label="mean of q, step by step"),
        Line2D([], [], color=BLACK, marker="o", linestyle="", label="start: the prior's mean"),
        Line2D([], [], color=RED, marker="*", linestyle="", markersize=10, label="after 32 steps"),
        Line2D([], [], color=SKY, marker=".", linestyle="", label="draws from q"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def say_time(started):
    """The last line: how long it took, and of how much."""
    part = "" if SHARE == 1 else f", with {SHARE:g} of the steps, draws and texts"
    print(f"run in {time.perf_counter() - started:.0f} s{part}")


torch.set_num_threads(1)  # models this small gain nothing from a second
