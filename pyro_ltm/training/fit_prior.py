"""An empirical prior: fitted to the posteriors of a trained run, in the place of the one that it was trained under."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_ltm.config import Component, Config
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.errors import UserError
from pyro_ltm.files import new_folder
from pyro_ltm.inference import Posterior, build
from pyro_ltm.inference.build import build_prior
from pyro_ltm.locks import locks_out
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import fold
from pyro_ltm.optimizers import schedule
from pyro_ltm.runs.base import share_base
from pyro_ltm.runs.batches import check_fits, dataset_batches
from pyro_ltm.runs.folder import trainable
from pyro_ltm.runs.notes import note_data
from pyro_ltm.runs.run import Run
from pyro_ltm.scores import Bound
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.estimate import Difference, difference, mean_error
from pyro_ltm.training.origin import PRIOR
from pyro_ltm.types import Batch, frozen

ESTIMATED = "stl"
"""Objective in the place of one that needs a closed form of the KL, where the new prior has none."""

Progress = Callable[[int, float], None]
"""Called with the steps done and the nats of a sequence's thoughts under the prior."""


@dataclass(frozen=True, kw_only=True)
class FittedPrior:
    """A run under a prior that was fitted to its posteriors.

    Attributes:
        run: the new run: decoder and guide of the old one, and the new prior.
        sequences, steps: it was fitted to so many sequences of the training text, in so many steps.
        before, after: the bound on held-out text under the old prior and the new one, posteriors fitted under each;
            None where the run has no held-out text.
        gained: nats a token by which the bound fell, paired by sequence.
        foretold: of held-out text, for a prior that reads prompts, whose bound is that of N(0, I).
    """

    run: Run
    sequences: int
    steps: int
    before: Bound | None = None
    after: Bound | None = None
    gained: Difference | None = None
    foretold: Foretold | None = None


@dataclass(frozen=True)
class Foretold:
    """Nats of a sequence's thoughts that its beginning spares: log p(z | prompt) - log p(z), mean and standard error.

    The length of the beginning is drawn for each sequence, as in training.
    """

    nats_per_sequence: float
    stderr: float


@locks_out
def fit_prior(
    run: Run,
    prior: Component,
    *,
    out: str | Path,
    sequences: int = 1024,
    steps: int = 500,
    lr: float = 0.01,
    batch_size: int = 32,
    data: TokenDataset | None = None,
    progress: Progress | None = None,
    **scoring: Any,
) -> FittedPrior:
    """Fits a prior to the aggregate of a run's posteriors, by maximum likelihood of draws from them (arXiv:1711.05772).

    Posteriors are those of training text, under the run's own prior, and stay as they are; decoder and guide stay, too.
    Figures are of held-out text alone, with posteriors fitted anew under each prior.

    Args:
        prior: what to fit; not one whose map is a part of the decoder.
        out: a new folder for the run under the new prior. The old one stays as it is.
        sequences: of training text, drawn at random. steps: of Adam, each on one batch. lr: its first rate.
        batch_size: sequences at a time. progress: see `Progress`.
        data: training text; None: the run's own.
        scoring: of the figures, as in `Run.evaluate`: `particles`, `sequences_scored`, `seed`; none with `score=False`.

    Raises:
        UserError: the run has no thoughts, the prior learns nothing or does not fit the run's guide, the run's text is
            gone, or `out` is there already.
    """
    out, seed = Path(out), int(scoring.get("seed", 0))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already; a run under another prior needs a new folder")
    model, loop, config = _begin(run, prior)
    data = run.dataset("train") if data is None else data
    check_fits(run.config, data)
    pairs = _posteriors(run, data, sequences, batch_size, seed)
    with frozen(model.decoder), frozen(loop.guide), torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "prior"))
        learn(model, pairs, steps=steps, lr=lr, seed=seed, progress=progress)
    with new_folder(out) as folder:
        note_data(folder, data)
        Run.create(folder, share_base(config, folder), model, loop, run.tokenizer, step=run.step)
    fitted = Run.load(out, device=str(run.device), known=config)
    found = FittedPrior(run=fitted, sequences=sum(batch.size for batch, _ in pairs), steps=steps)
    return _scored(run, found, data, batch_size, scoring)


def _begin(run: Run, prior: Component) -> tuple[LatentThoughtModel, Any, Config]:
    """The run's decoder and guide with a new prior, their fast loop, and the configuration of both."""
    if not run.config.model.thoughts:
        raise UserError(f"{run.folder}: has no thoughts ({run.config.model.no_thoughts}): there is no prior to fit")
    if getattr(run.model.prior, "transport", None) is not None:
        raise UserError(f"{run.folder}: its prior's map is a part of its decoder, which no other prior can replace")
    config = dataclasses.replace(run.config, prior=prior, compile=False)
    objective = run.loop.objective
    if objective.needs_closed_form and not build_prior(config).has_analytic_kl:
        count = min(objective.num_particles, 64)
        config = dataclasses.replace(config, objective=Component(name=ESTIMATED, options={"particles": count}))
    model, loop = build(config, device=run.device)
    if model.prior.transport is not None or not list(model.prior.parameters()):
        why = "has nothing to learn" if model.prior.transport is None else "is a map that the decoder learns with"
        raise UserError(f"prior '{prior.name}' {why}: fit gaussian:true, mixture, layered, vamp, flow or diffusion")
    own, given = trainable(model, loop.guide, loop.objective), run.trainable.state_dict()
    left = PRIOR if config.objective == run.config.objective else (*PRIOR, "objective.")
    kept = {name: value for name, value in given.items() if not name.startswith(left)}
    own.load_state_dict({**own.state_dict(), **kept})
    model.eval()
    return model, loop, config


def _posteriors(
    run: Run, data: TokenDataset, sequences: int, batch_size: int, seed: int
) -> list[tuple[Batch, Posterior]]:
    """The posteriors of so many training sequences, each once, in batches."""
    count = min(sequences, len(data))
    size = min(batch_size, count)
    order = DataOrder(len(data), size, fold(seed, "fit prior"))
    pairs = []
    for start in range(0, count - size + 1, size):
        batch = data.batch(order.indices(start)).to(run.device)
        pairs.append((batch, run.loop.fit_to_score(run.model, batch, seed=fold(seed, "fit"))))
    return pairs


def learn(
    model: LatentThoughtModel,
    pairs: list[tuple[Batch, Posterior]],
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Moves the parameters of the model's prior along the slope of log p(z), of draws z from the posteriors."""
    first = [posterior.with_noise(fold(seed, "begin")).sample()[0] for _, posterior in pairs]
    model.prior.begin_at(torch.cat(first))
    optimizer = torch.optim.Adam(model.prior.parameters(), lr=lr)
    for step in range(steps):
        batch, posterior = pairs[step % len(pairs)]
        z = posterior.with_noise(fold(seed, "draw", step)).sample()[0]
        with pyro.validation_enabled(False):
            loss = -model.prior().log_prob(z)
            if model.prior.reads_prompt:
                loss = loss + model.prompt_loss(batch, z, seed=fold(seed, "prompt", step))
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule("cosine", step, steps, 0.0)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        if progress:
            progress(step + 1, float(loss.detach().mean()))


def _scored(run: Run, found: FittedPrior, data: TokenDataset, batch_size: int, scoring: dict[str, Any]) -> FittedPrior:
    """`found` with its figures on held-out text, where there is some."""
    if "validation" not in data.folder.splits or not scoring.get("score", True):
        return found
    how = {"particles": scoring.get("particles", 4), "sequences": scoring.get("sequences_scored")}
    how |= {"seed": int(scoring.get("seed", 0)), "batch_size": batch_size}
    held_out = TokenDataset(data.folder, "validation")
    before, after = (one.evaluate(held_out, **how) for one in (run, found.run))
    gained = difference(before.sequence_nats, after.sequence_nats, before.sequence_tokens, before.places)
    foretold = None
    if found.run.model.prior.reads_prompt:
        foretold = foretell(found.run, held_out, how["sequences"], batch_size, how["seed"])
    return dataclasses.replace(found, before=before, after=after, gained=gained, foretold=foretold)


@torch.no_grad()
def foretell(run: Run, data: TokenDataset, sequences: int | None, batch_size: int, seed: int) -> Foretold:
    """How much beginnings tell the run's prior of the thoughts of the first `sequences` of `data`; None: of all."""
    model, spared, places = run.model, [], []
    for batch in dataset_batches(data, batch_size, run.device, limit=sequences):
        posterior = run.loop.fit_to_score(model, batch, seed=fold(seed, "fit"))
        z = posterior.with_noise(fold(seed, "score")).sample()[0]
        spared.append(-model.prior().log_prob(z) - model.prompt_loss(batch, z, seed=fold(seed, "prompt")))
        places.append(Places.of(batch))
    nats = torch.cat(spared).double().cpu()
    return Foretold(float(nats.mean()), mean_error(nats, Places.joined(places)).stderr)
