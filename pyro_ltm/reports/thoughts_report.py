"""A run's report: what its thoughts carry, as JSON, pictures and one page that opens from disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_ltm.config import dump_toml
from pyro_ltm.data import TokenDataset, World
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors, write_atomically, write_text
from pyro_ltm.inference import continuation, infer_thoughts
from pyro_ltm.locks import locked
from pyro_ltm.model import DecodingOptions, sample_tokens
from pyro_ltm.noise import fold
from pyro_ltm.reports.html import to_png, write_bytes
from pyro_ltm.reports.protocol_plots import CAPTIONS, draw_evaluation
from pyro_ltm.reports.thoughts_page import measured, render
from pyro_ltm.reports.thoughts_plots import plot_distortions, plot_layers, plot_map, plot_probes, plot_rates, sign
from pyro_ltm.runs.run import Run, dataset_batches
from pyro_ltm.scores.estimate import plain
from pyro_ltm.thoughts.diagnostics import Thoughts, diagnose
from pyro_ltm.thoughts.probes import between, far_apart, linear_probe, nearest, principal_components
from pyro_ltm.types import Batch

PAGE, FIGURES = "report.html", "report.json"
STEPS = 5
"""Texts on the way from one to another, ends included."""
SHOWN = 3
"""Texts that are written again, written from the prior, and named as the nearest."""
LIKELIEST = DecodingOptions(temperature=0)

Figures = dict[str, tuple[Figure, str]]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The texts of a report, tokenized.

    Attributes:
        name: what to call it. texts: of each sequence. labels: of each text, by the label's name.
        notes: what a reader should know of them.
    """

    name: str
    batches: list[Batch]
    texts: list[str]
    labels: Mapping[str, Sequence[str]]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_data(cls, run: Run, data: TokenDataset | None, *, sequences: int, batch_size: int, name: str = "") -> Corpus:
        """The first `sequences` of `data` (the run's validation split when None); of a world, with its true factors.

        Raises:
            UserError: the data are not there, or do not fit the model.
        """
        data, _ = run.scored(data)
        batches = list(dataset_batches(data, batch_size, run.parts.device, limit=sequences))
        texts = [_decoded(run, batch, row) for batch in batches for row in range(batch.size)]
        world = World.of(data.folder)
        factors = world.factors_of(data.folder, texts) if world else {}
        notes = [] if factors is not None else ["Factors are not known: the sequences are not whole documents."]
        name = name or f"{data.folder.path} ({data.split})"
        return cls(name=name, batches=batches, texts=texts, labels=factors or {}, notes=notes)

    @classmethod
    def of_texts(
        cls, run: Run, texts: Sequence[str], labels: Mapping[str, Sequence[str]], *, batch_size: int, name: str
    ) -> Corpus:
        """Texts with their labels, each cut at the model's length."""
        end, longest = run.tokenizer.end_of_text, run.config.model.max_length
        encoded = [[end, *run.tokenizer.encode(one), end][: longest + 1] for one in texts]
        batches = []
        for start in range(0, len(encoded), batch_size):
            batch = Batch.from_lists(encoded[start : start + batch_size], pad=end)
            # Noise is keyed by a text's place among all, so that batches change nothing.
            batches.append(dataclasses.replace(batch, ids=start + batch.ids).to(run.parts.device))
        return cls(name=name, batches=batches, texts=list(texts), labels=labels)


def write_report(
    run: Run,
    corpus: Corpus | None,
    *,
    particles: int = 4,
    fast_steps: int | None = None,
    settings: Sequence[str] = (),
    between_texts: Sequence[str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Writes `report.html`, `report.json` and the pictures into `out` (RUN/report): the page, and what the JSON says.

    Args:
        fast_steps, settings: of the fits; default: as in training (see `Run.with_fast_loop`).
        corpus: whose thoughts to look at; None will do for a run without thoughts.
        between_texts: three texts to interpolate (the first two) and to reckon with; None: three of the corpus whose
            thoughts lie far apart.
        evaluation: the likelihoods to show, of `read_evaluation`.

    Raises:
        UserError: a text is too long, there are no sequences, or the folder cannot be written.
    """
    out = out or run.folder / "report"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder")
    _check_ours(out)
    fitting = run.with_fast_loop(settings)
    result: dict[str, Any] = {"run": str(run.folder), "step": run.step, "seed": seed}
    result |= {"settings": list(settings)} if settings and run.config.model.thoughts else {}
    result |= {"data": corpus.name if corpus else "none", "notes": list(corpus.notes) if corpus else []}
    figures: Figures = {}
    if run.config.model.thoughts:
        assert corpus is not None
        ends = None if between_texts is None else _ends(fitting, between_texts, fast_steps, seed)
        thoughts = Thoughts.fit(fitting.parts, corpus.batches, fast_steps=fast_steps, seed=seed, progress=progress)
        if thoughts.parts is not fitting.parts:
            result["notes"].append(
                f"The guide '{run.config.guide.name}' has no density, so nothing judges it: these are the thoughts of "
                "a mean-field posterior, fitted in its place."
            )
        result["thoughts"] = diagnose(thoughts, particles=particles).to_dict()
        result["probes"] = _probes(thoughts.means, corpus.labels, seed)
        result["reconstructions"] = _reconstructions(run, thoughts)
        result |= _between(run, thoughts.means, corpus.texts, ends)
        figures = _figures(result, thoughts.means, corpus.labels)
    elif between_texts or (corpus and corpus.labels):
        raise UserError(f"{run.folder}: this model has no thoughts (it is an autoregressive twin): nothing to probe")
    if evaluation:
        figures |= {name: (figure, CAPTIONS[name]) for name, figure in draw_evaluation(evaluation).items()}
    samples = run.generate(num=SHOWN, max_new_tokens=_length(run), seed=seed)
    result["samples"] = [sample.text for sample in samples]
    with locked(out):
        return _write(run, out, result, figures, evaluation), result


def _check_ours(out: Path) -> None:
    """Raises UserError when a page, figures or pictures lie in `out` that no report has left there."""
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if FIGURES in names:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((out / FIGURES).read_text(encoding="utf-8"))
            if isinstance(found, dict) and {"run", "step", "notes"} <= found.keys():
                return
    if strangers := [name for name in names if name in (PAGE, FIGURES) or name.endswith(".png")]:
        raise UserError(f"{out}: has a {strangers[0]} that is of no report, so it is left alone; choose another --out")


def _decoded(run: Run, batch: Batch, row: int) -> str:
    assert batch.targets is not None  # data have targets
    return continuation(run.tokenizer, batch.inputs[row, :1].tolist(), batch.targets[row][batch.mask[row]].tolist())


def _length(run: Run) -> int:
    """Tokens of the texts that are written."""
    return min(80, run.config.model.max_length - 1)


def _probes(means: Tensor, labels: Mapping[str, Sequence[str]], seed: int) -> list[dict[str, Any]]:
    found = []
    for name, values in labels.items():
        try:
            found.append(plain(linear_probe(means, values, name=name, seed=fold(seed, name))))
        except UserError as error:
            found.append({"label": name, "problem": str(error)})
    return found


@torch.no_grad()
def _reconstructions(run: Run, thoughts: Thoughts) -> list[dict[str, Any]]:
    """The first texts and what is written from a draw of their thoughts, the likeliest token each time."""
    batch, z = thoughts.batches[0], thoughts.draws("reconstruction")[0][:SHOWN]
    assert batch.targets is not None
    written = sample_tokens(run.parts.model.decoder, z, batch.inputs[: len(z), :1], batch.length, sampler=LIKELIEST)
    found = []
    for row, tokens in enumerate(written[:, 1:]):
        counts = batch.mask[row]
        original, again = batch.targets[row][counts], tokens[counts]
        before = batch.inputs[row, :1].tolist()  # both are written after the same token
        found.append(
            {
                "original": continuation(run.tokenizer, before, original.tolist()),
                "text": continuation(run.tokenizer, before, again.tolist()),
                "tokens": len(original),
                "token_accuracy": float((original == again).double().mean()),
            }
        )
    return found


def _ends(run: Run, texts: Sequence[str], fast_steps: int | None, seed: int) -> tuple[Sequence[str], Tensor]:
    """Three texts and the means of their thoughts [3, N, D]."""
    _, posterior = infer_thoughts(run.parts.judge(), run.tokenizer, texts, fast_steps=fast_steps, seed=seed)
    return texts, posterior.with_noise(fold(seed, "mean")).mean().cpu()


def _between(
    run: Run, means: Tensor, texts: Sequence[str], ends: tuple[Sequence[str], Tensor] | None
) -> dict[str, Any]:
    """Texts on the way from the first to the second, and what lies nearest to first - second + third."""
    rows: list[int] = []
    if ends is None:
        rows = far_apart(means, 3)
        ends = [texts[row] for row in rows], means[rows]
    named, z = ends
    found: dict[str, Any] = {"interpolation": None, "arithmetic": None}

    def write(thoughts: Tensor) -> list[str]:
        written = run.generate(thoughts=thoughts.to(run.parts.device), max_new_tokens=_length(run), sampler=LIKELIEST)
        return [one.text for one in written]

    if len(z) > 1:
        ways = {way: between(z[0], z[1], STEPS, spherical=way == "spherical") for way in ("linear", "spherical")}
        found["interpolation"] = {"texts": list(named[:2]), "shares": [step / (STEPS - 1) for step in range(STEPS)]}
        found["interpolation"] |= {way: write(path) for way, path in ways.items()}
    if len(z) > 2:
        query = z[0] - z[1] + z[2]
        # The three themselves lie near it, and say nothing.
        others = [row for row in nearest(query, means, SHOWN + len(rows)) if row not in rows][:SHOWN]
        near = [{"text": texts[row], "distance": float((means[row] - query).norm())} for row in others]
        found["arithmetic"] = {"texts": list(named), "written": write(query[None])[0], "nearest": near}
    return found


def _figures(result: dict[str, Any], means: Tensor, labels: Mapping[str, Sequence[str]]) -> Figures:
    found = result["thoughts"]
    drawn: dict[str, tuple[Figure | None, str]] = {
        "rates": (plot_rates(found), "What each thought carries."),
        "distortion": (plot_distortions(found), "Distortion with whose thoughts: alike, if the decoder ignores them."),
        "layers": (plot_layers(found), "Progressive reconstruction: the other layers' thoughts are the prior's."),
    }
    told = [probe for probe in result["probes"] if "accuracy" in probe]
    if told:
        drawn["probes"] = plot_probes(told), "Labels read off the thoughts by a linear classifier."
    points, shares = principal_components(means)
    if points.shape[1] == 2:
        for number, (name, values) in enumerate((labels or {"": []}).items(), 1):
            file = "-".join(filter(None, ["map", *re.findall(r"\w+", name)])) if name else "map"
            file = file if file not in drawn else f"{file}-{number}"
            figure = plot_map(points.tolist(), values if name else None, name, shares.tolist())
            drawn[file] = figure, f"A map of the thoughts{', by ' + name if name else ''}."
    line = measured(found)  # in the picture itself, which may be looked at without the page
    return {name: (sign(figure, line), caption) for name, (figure, caption) in drawn.items() if figure is not None}


def _write(run: Run, out: Path, result: dict[str, Any], figures: Figures, evaluation: Mapping[str, Any] | None) -> Path:
    """The figures, by which the folder is known as a report's, the pictures, and last the page that shows both."""
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / FIGURES, json.dumps(result, indent=2, allow_nan=False) + "\n")
    pictures = {}
    for name, (figure, caption) in figures.items():
        pictures[name] = to_png(figure), caption
        write_atomically(out / f"{name}.png", partial(write_bytes, pictures[name][0]))
    training = run.folder / "plots" / "training.png"
    page = render(
        result,
        pictures,
        settings=dump_toml(run.config),
        training=training.read_bytes() if training.is_file() else None,
        evaluation=evaluation,
    )
    write_text(out / PAGE, page)
    return out / PAGE
