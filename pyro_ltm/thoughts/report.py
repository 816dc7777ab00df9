"""The figures of a run's report: what its thoughts carry, what is read off them, and what is written from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.data import TokenDataset, World
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop, continuation, infer_thoughts
from pyro_ltm.model import DecodingOptions, sample_tokens
from pyro_ltm.noise import fold
from pyro_ltm.runs.batches import dataset_batches, longer_than_read, text_batches
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.estimate import plain
from pyro_ltm.thoughts.baselines import baselines
from pyro_ltm.thoughts.diagnostics import Thoughts, diagnose
from pyro_ltm.thoughts.probes import between, far_apart, linear_probe, nearest, principal_components, verdict
from pyro_ltm.types import Batch

STEPS = 5
"""Texts on the way from one to another, ends included."""
SHOWN = 3
"""Texts that are written again, written from the prior, and named as the nearest."""
LIKELIEST = DecodingOptions(temperature=0)


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
        data = run.scored(data)
        batches = list(dataset_batches(data, batch_size, run.device, limit=sequences))
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
        """Texts with their labels, each cut at the model's length, which the notes say."""
        cut = longer_than_read(run, texts)
        notes = (
            [f"Of {cut:,} texts the beginning alone is looked at: they are longer than the model reads."] if cut else []
        )
        batches = text_batches(run, texts, batch_size)
        return cls(name=name, batches=batches, texts=list(texts), labels=labels, notes=notes)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a report's posteriors are fitted and read.

    Attributes:
        particles: draws from each posterior.
        fast_steps, settings: of the fits; by default those of training (see `Run.with_fast_loop`).
        between_texts: three texts to interpolate (the first two) and to do arithmetic with; None: three of the corpus
            whose thoughts lie far apart.
        seed: of all noise, and of the probes' folds.
    """

    particles: int = 4
    fast_steps: int | None = None
    settings: Sequence[str] = ()
    between_texts: Sequence[str] | None = None
    seed: int = 0


@dataclass(frozen=True)
class ThoughtsMap:
    """Posterior means on their two principal axes: points [S][2], each axis's share of the variance, and labels."""

    points: list[list[float]]
    shares: list[float]
    labels: Mapping[str, Sequence[str]]


def report_figures(
    run: Run, corpus: Corpus | None, options: ReportOptions, *, progress: Callable[[int], None] | None = None
) -> tuple[dict[str, Any], ThoughtsMap | None]:
    """All figures of a report, for JSON, and a map of the thoughts; None where there are no two axes.

    Args:
        corpus: whose thoughts to look at; None will do for a run without thoughts.

    Raises:
        UserError: a text is too long, or there are no sequences.
    """
    fitting, has_thoughts = run.with_fast_loop(options.settings), bool(run.config.model.thoughts)
    found: dict[str, Any] = {**run.about, "seed": options.seed}
    found |= {"settings": list(options.settings)} if options.settings and has_thoughts else {}
    found |= {"data": corpus.name if corpus else "none", "notes": list(corpus.notes) if corpus else []}
    drawn = None
    if has_thoughts:
        assert corpus is not None
        drawn = _describe_thoughts(fitting, corpus, options, found, progress)
    elif options.between_texts or (corpus and corpus.labels):
        raise UserError(f"{run.folder}: this model has no thoughts ({run.config.model.no_thoughts}): nothing to probe")
    samples = run.generate(num=SHOWN, max_new_tokens=_length(run), seed=options.seed)
    return found | {"samples": [sample.text for sample in samples]}, drawn


def _describe_thoughts(
    run: Run, corpus: Corpus, options: ReportOptions, found: dict[str, Any], progress: Callable[[int], None] | None
) -> ThoughtsMap | None:
    """Adds to `found` what the thoughts of a corpus carry; gives their map."""
    named, loop, seed = options.between_texts, run.loop.with_steps(options.fast_steps), options.seed
    ends = None if named is None else (named, _means(run, loop, named, seed))
    thoughts = Thoughts.fit(run.model, corpus.batches, loop, seed=seed, progress=progress)
    if thoughts.loop is not loop:
        found["notes"].append(
            f"The guide '{run.config.guide.name}' has no density to score it by: these are the thoughts of "
            "a mean-field posterior, fitted in its place."
        )
    means = thoughts.means
    found["thoughts"] = diagnose(thoughts, particles=options.particles).to_dict()
    found["probes"] = _probes(run, thoughts, corpus.labels, seed, progress)
    found["reconstructions"] = _reconstructions(run, thoughts)
    found |= _between(run, means, corpus.texts, ends)
    points, shares = principal_components(means)
    return ThoughtsMap(points.tolist(), shares.tolist(), corpus.labels) if points.shape[1] == 2 else None


def _decoded(run: Run, batch: Batch, row: int) -> str:
    assert batch.targets is not None  # data have targets
    return continuation(run.tokenizer, batch.inputs[row, :1].tolist(), batch.targets[row][batch.mask[row]].tolist())


def _length(run: Run) -> int:
    """Tokens of the texts that are written."""
    return min(80, run.config.model.max_length - 1)


def _probes(
    run: Run,
    thoughts: Thoughts,
    labels: Mapping[str, Sequence[str]],
    seed: int,
    progress: Callable[[int], None] | None,
) -> list[dict[str, Any]]:
    """A linear probe of each label, beside the same probe of features that cost less."""
    found = []
    fitted = len(thoughts.counts)
    count = (lambda done: progress(fitted + done)) if progress else None
    others = baselines(run, thoughts, progress=count) if labels else {}
    for name, values in labels.items():
        fold_seed = fold(seed, name)
        try:
            probe = linear_probe(thoughts.means, values, name=name, seed=fold_seed)
        except UserError as error:
            found.append({"label": name, "problem": str(error)})
            continue
        beside = {kind: linear_probe(each, values, name=name, seed=fold_seed) for kind, each in others.items()}
        found.append(plain(probe) | {"baselines": {kind: plain(one) for kind, one in beside.items()}})
        found[-1]["verdict"] = verdict(probe, beside)
    return found


@torch.no_grad()
def _reconstructions(run: Run, thoughts: Thoughts) -> list[dict[str, Any]]:
    """The first texts and what is written from a draw of their thoughts, the likeliest token each time."""
    batch, z = thoughts.batches[0], thoughts.draws("reconstruction")[0][:SHOWN]
    assert batch.targets is not None
    written = sample_tokens(run.model.decoder, z, batch.inputs[: len(z), :1], batch.length, sampler=LIKELIEST)
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


def _means(run: Run, loop: FastLoop, texts: Sequence[str], seed: int) -> Tensor:
    """The posterior means [S, N, D] of texts."""
    _, posterior = infer_thoughts(run.model, loop.with_density(), run.tokenizer, texts, seed=seed)
    return posterior.with_noise(fold(seed, "mean")).mean().cpu()


def _between(
    run: Run, means: Tensor, texts: Sequence[str], ends: tuple[Sequence[str], Tensor] | None
) -> dict[str, Any]:
    """Texts on the way from the first of `ends` to the second, and what lies nearest to first - second + third."""
    rows: list[int] = []
    if ends is None:
        rows = far_apart(means, 3)
        ends = [texts[row] for row in rows], means[rows]
    named, z = ends
    found: dict[str, Any] = {"interpolation": None, "arithmetic": None}

    def write(thoughts: Tensor) -> list[str]:
        written = run.generate(thoughts=thoughts.to(run.device), max_new_tokens=_length(run), sampler=LIKELIEST)
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
