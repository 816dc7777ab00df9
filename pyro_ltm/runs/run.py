"""A run folder: all that training leaves behind, and all that is needed to go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_ltm.config import (
    ADAMW,
    GAUSSIAN,
    Config,
    ModelConfig,
    SlowConfig,
    apply_settings,
    suggest,
    without_code,
)
from pyro_ltm.data import TokenDataset, Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors
from pyro_ltm.inference import FastLoop, Generated, Posterior, Reconstruction, generate, infer_thoughts, reconstruct
from pyro_ltm.inference.build import build, build_loop, build_objective, new_guide
from pyro_ltm.inference.parts import AXES, with_known, with_parts
from pyro_ltm.locks import locked
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.precision import resolve_dtype
from pyro_ltm.runs.base import load_config, save_config
from pyro_ltm.runs.batches import check_fits, dataset_batches
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.embedding import embed_texts
from pyro_ltm.runs.folder import (
    CONFIG,
    MODEL,
    TOKENIZER,
    WEIGHTS,
    check_weights,
    fingerprint,
    load_weights,
    read_tensors,
    trainable,
    write_tensors,
)
from pyro_ltm.runs.notes import data_note
from pyro_ltm.runs.own_texts import calibrate, sandwich
from pyro_ltm.runs.provenance import WeightsMeta, check_weights_meta, weights_meta
from pyro_ltm.scores import (
    AnnealedBound,
    Bound,
    Calibration,
    Prefix,
    Reference,
    Sandwich,
    evaluate_annealed,
    evaluate_bound,
    evaluate_prefix,
    evaluate_reference,
)
from pyro_ltm.types import Batch

S = TypeVar("S")

LATER = ("planned", "changed_at", "rewarm", "decay_steps", "schedule", "decay")
"""Settings of `slow` that came after the first fingerprints: at their defaults, they are no part of one."""


@dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer and the fast loop that fits its posteriors.

    Attributes:
        folder: where it lies. step: slow steps that the weights have seen.
        weights: which of its weights these are: last, average or best.
    """

    folder: Path
    config: Config
    model: LatentThoughtModel
    loop: FastLoop
    tokenizer: Tokenizer
    step: int
    weights: str = "last"

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        weights: str = "last",
        allow_code: bool = False,
        known: Config | None = None,
        **parts: Any,
    ) -> Run:
        """The run in `folder`.

        Args:
            dtype: the precision, in place of that which it was trained in.
            weights: last; average, their moving average (of a run with `slow.average`); best, those of the best
                validation (with `slow.keep_best`).
            allow_code: it may name classes outside of the library, `module:Class`, whose code is then run: a run folder
                from a stranger must not do that unasked.
            known: a configuration whose components are trusted; objects among them stand for their descriptions.
            parts: `guide`, `objective` and so on, each a name, a class or an object, in place of the run's own: for
                those that came from Python.

        Raises:
            UserError: the folder is no run, it has no such weights, a file of it is missing, damaged or another run's,
                or it names code without leave.
        """
        folder = Path(folder)
        if not os.path.isfile(folder / CONFIG):  # which says no, too, of what can be no name
            raise UserError(f"{folder}: not a run folder (it has no {CONFIG}); give a folder that 'train --out' wrote")
        saved = load_config(folder)
        config = with_parts(saved, **parts)
        config = with_known(config, known) if known else config
        config = config if allow_code else without_code(config, folder / CONFIG, known)
        path = _weights_of(folder, config, weights)
        if dtype:
            config = resolve_dtype(replace(config, dtype=dtype), device)
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        if tokenizer.vocab_size > config.model.vocab_size:
            raise UserError(
                f"{folder / TOKENIZER}: has {tokenizer.vocab_size} tokens but the model knows "
                f"{config.model.vocab_size}: this is not the run's own tokenizer"
            )
        tensors, meta = read_tensors(path, WeightsMeta)
        with torch.device("meta"):  # a configuration of another shape is refused before it takes memory
            model, loop = build(replace(config, compile=False), device="meta")
            check_weights(trainable(model, loop.guide, loop.objective), tensors, path)
        check_weights_meta(path, meta, saved)
        # Compiling pays over many steps of one shape, which are training's.
        model, loop = build(replace(config, compile=False), device=device)
        load_weights(trainable(model, loop.guide, loop.objective), tensors, path)
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise UserError(f"{path}: its weights are not finite; train again with a lower slow.lr")
        model.eval()
        return cls(folder, config, model, loop, tokenizer, meta.step, weights)

    @classmethod
    def create(
        cls,
        folder: Path,
        config: Config,
        model: LatentThoughtModel,
        loop: FastLoop,
        tokenizer: Tokenizer,
        *,
        step: int = 0,
    ) -> Run:
        """Writes a run folder that `load` reads: configuration, tokenizer, weights."""
        if config.dtype == "auto":  # decided once for all, as for this model, so that the run gives its figures again
            config = replace(config, dtype=str(model.decoder.compute_dtype).removeprefix("torch."))
        with locked(folder):
            with clear_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            save_config(folder, config)
            tokenizer.save(folder / TOKENIZER)
            run = cls(folder, config, model, loop, tokenizer, step)
            run.save_weights(step)
        return run

    def save_weights(self, step: int) -> None:
        """Writes the weights as they stand at slow step `step`."""
        meta = weights_meta(self.folder, self.config, step)
        write_tensors(self.folder / MODEL, self.trainable.state_dict(), meta)

    def __repr__(self) -> str:
        config, written = self.config, self.precision
        shape, size = config.model, sum(parameter.numel() for parameter in self.trainable.parameters())
        what = "masked diffusion" if shape.is_diffusion else f"{shape.thoughts} thoughts"
        names = {axis: one.name for axis, one in config.components.items()}
        lines = [
            f"Run {self.folder}: step {self.step:,} of {config.slow.steps:,}, {self.weights} weights",
            f"  model      {size:,} parameters: D {shape.dim}, {shape.layers} layers, {what}, up to "
            f"{shape.max_length:,} tokens of {shape.vocab_size:,}; {written} on {self.device}",
            f"  prior      {names['prior']}",
            f"  guide      {names['guide']} by {names['objective']}, {self.loop.steps} steps of {names['optimizer']}",
            f"  trained    by {names['slow_optimizer']}, {config.slow.sequences} sequences a step, seed {config.seed}",
        ]
        return "\n".join(lines if shape.thoughts else [*lines[:2], lines[-1]])

    @property
    def about(self) -> dict[str, Any]:
        """Which run, at which step, a result is of; and which of its weights, where they are not the last."""
        which = {} if self.weights == "last" else {"weights": self.weights}
        return {"run": str(self.folder), "step": self.step, **which}

    @property
    def precision(self) -> str:
        """Of the decoder's products, such as float32."""
        return str(self.model.decoder.compute_dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def trainable(self) -> nn.ModuleDict:
        """All that the run learns (see `folder.trainable`)."""
        return trainable(self.model, self.loop.guide, self.loop.objective)

    @property
    def fingerprint(self) -> str:
        """Tells this run at this step from every other: a digest of its weights and settings.

        Not of its precision, nor of what changes no figure.
        """
        settings = asdict(replace(self.config, dtype="auto"))
        del settings["fast"]["record"], settings["distributed"]
        for key in ("save_minutes", "keep_checkpoints", "average", "keep_best"):
            del settings["slow"][key]
        settings["slow"]["alone"] = settings["slow"].pop("decoder_warmup")  # as release 0.1.0 called it
        for entry in fields(SlowConfig):
            if entry.name in LATER and settings["slow"][entry.name] == entry.default:
                del settings["slow"][entry.name]
        for entry in fields(ModelConfig):
            if entry.metadata["added"] and settings["model"][entry.name] == entry.default:
                del settings["model"][entry.name]
        if self.config.slow_optimizer == ADAMW:
            del settings["slow_optimizer"]
        if self.config.prior == GAUSSIAN:
            del settings["prior"]
        del settings["graft"]["base"]  # where it lies
        if not self.config.graft.base:
            del settings["graft"]
        digests = [fingerprint(module) for module in self.trainable.values()]
        text = "\n".join([json.dumps(settings, sort_keys=True), *digests])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def data_fingerprint(self) -> str | None:
        """Tells the data that the run was trained on from others; None where the run does not say."""
        note = data_note(self.folder)
        return note.fingerprint if note else None

    def dataset(self, split: str = "validation") -> TokenDataset:
        """The data that the run was trained on. Raises UserError when it is not there any more."""
        return open_data(self.folder, split)

    @property
    def sequence_length(self) -> int:
        """Tokens in a sequence of the run's data: as prepared, else as its configuration says."""
        try:
            return self.dataset("train").sequence_length
        except UserError:
            return min(self.config.data.sequence_length, self.config.model.max_length)

    def evaluate(self, data: TokenDataset | None = None, *, particles: int = 4, **how: Any) -> Bound:
        """The honest bound on `data` (by default the run's own validation split): see `evaluate_bound`.

        A guide without a density (a point, draws) has none: then a mean-field posterior is fitted in its place.

        Args:
            how: `fast_steps` of each fit, by default as many as the run was trained with; how many of the data's
                `sequences`, from the first, by default all; `batch_size`, `seed`, `progress`; and `guide`, `objective`
                and `optimizer`, as in `with_parts`.

        Raises:
            UserError: the data do not fit the model.
        """
        data = self.scored(data)
        count_bytes = data.count_bytes if data.bytes_are_exact else None
        loop = self.with_parts(**{axis: how.pop(axis) for axis in AXES if axis in how}).loop.with_density()
        return self._score(evaluate_bound, data, loop, particles=particles, count_bytes=count_bytes, **how)

    def evaluate_prefix(self, data: TokenDataset | None = None, **how: Any) -> Prefix:
        """The predictive score of texts whose beginnings were read: see the function of this name, and `evaluate`."""
        data = self.scored(data)
        # Documents may leave the end of every sequence empty. But a masked diffusion would be told that none is longer.
        longest = int(data.lengths[: how.get("sequences")].max(initial=0))
        length = None if self.config.model.is_diffusion else longest
        return self._score(evaluate_prefix, data, self.loop, length=length, **how)

    def evaluate_annealed(self, data: TokenDataset | None = None, **how: Any) -> AnnealedBound:
        """A bound by annealed importance sampling: see the function of this name, and `evaluate`."""
        return self._score(evaluate_annealed, self.scored(data), self.loop.with_density(), **how)

    def evaluate_reference(self, data: TokenDataset | None = None, **how: Any) -> Reference:
        """The reference implementation's figure, which is no bound: see the function of this name, and `evaluate`."""

        def score(model: LatentThoughtModel, batches: Iterable[Batch], loop: FastLoop, **options: Any) -> Reference:
            return evaluate_reference(model, batches, fast_steps=loop.steps, **options)

        return self._score(score, self.scored(data), self.loop, **how)

    def calibrate(self, texts: int = 200, **how: Any) -> Calibration:
        """Where the truth lies under q, in texts that the model writes itself: see `own_texts.calibrate`."""
        return calibrate(self, texts, **how)

    def sandwich(self, texts: int = 50, **how: Any) -> Sandwich:
        """The evidence of texts that the model writes itself, from both sides: see `own_texts.sandwich`."""
        return sandwich(self, texts, **how)

    def _score(
        self,
        score: Callable[..., S],
        data: TokenDataset,
        loop: FastLoop,
        *,
        fast_steps: int | None = None,
        sequences: int | None = None,
        batch_size: int = 32,
        length: int | None = None,
        **options: Any,
    ) -> S:
        """A score of the first `sequences` of `data`, cut to `length` tokens."""
        batches = dataset_batches(data, batch_size, self.device, limit=sequences)
        read = batches if length is None else (batch.beginning(length) for batch in batches)
        return score(self.model, read, loop.with_steps(fast_steps), **options)

    def with_fast_loop(self, settings: Sequence[str]) -> Run:
        """The same weights, whose posteriors are fitted as `settings` say (`key=value`, as in `apply_settings`).

        A bound holds however q was found; a better loop makes it tighter.

        Raises:
            UserError: a setting is wrong, or is not one of `fast` or `optimizer`.
        """
        config = apply_settings(self.config, settings)
        if replace(self.config, fast=config.fast, optimizer=config.optimizer) != config:
            raise UserError("--set: under a trained decoder only the fast loop can change: fast.* and optimizer.*")
        if not config.model.thoughts:
            return replace(self, config=config)
        loop = self.loop
        return replace(
            self, config=config, loop=build_loop(config, loop.guide, loop.objective, self.device, loop.recorder)
        )

    def with_parts(self, **parts: Any) -> Run:
        """The same weights, whose posteriors are fitted by another `guide`, `objective` or (fast) `optimizer`.

        Each is a name, such as `low-rank:8` or `mymodule:MyGuide`, a class, or an object, of which a copy is used. A
        guide that learns is taken with the weights that it has; the run's own, by its name, with those of the run, as
        an objective is with what it has learned.

        Raises:
            UserError: a part that no fit has, the model has no thoughts, or the parts do not fit one another.
        """
        config = with_parts(self.config, **parts)
        if config is self.config or not parts:
            return self
        fitting: dict[str, Any] = {axis: config.components[axis] for axis in ("guide", "objective", "optimizer")}
        if replace(self.config, **fitting) != config:
            raise UserError("under a trained decoder only its fits can change: guide, objective and optimizer")
        if not config.model.thoughts:
            raise UserError(f"{self.folder}: this model has no thoughts ({config.model.no_thoughts}): nothing to fit")
        named = config.guide.given is None and config.guide == self.config.guide
        guide = self.loop.guide if named else new_guide(config.guide, config, self.device)
        same = config.objective.given is None and config.objective == self.config.objective
        objective = self.loop.objective if same else build_objective(config.objective, config.model, self.device)
        return replace(self, config=config, loop=build_loop(config, guide, objective, self.device))

    def scored(self, data: TokenDataset | None) -> TokenDataset:
        """The data to score; None: the run's own. Raises UserError when they do not fit the model."""
        data = self.dataset() if data is None else data
        check_fits(self.config, data)
        if data.meta["tokenizer"] != self.tokenizer.fingerprint:
            raise UserError(
                f"{data.folder.path}: made by another tokenizer than the run's: prepare the data with "
                f"--tokenizer {self.folder / TOKENIZER}"
            )
        return data

    def infer(self, texts: Sequence[str], *, fast_steps: int | None = None, **how: Any) -> tuple[Batch, Posterior]:
        """q(z) of each text: see `infer_thoughts`, which takes `seed` and `keep_chains`; and `with_parts`."""
        loop = self.with_parts(**{axis: how.pop(axis) for axis in AXES if axis in how}).loop.with_steps(fast_steps)
        return infer_thoughts(self.model, loop, self.tokenizer, texts, **how)

    def embed(self, texts: Sequence[str], **how: Any) -> Tensor:
        """Features [len(texts), N * D] of texts of any length: posterior means, a row for each text.

        Args:
            how: `layers`, whose thoughts, by default all; `windows=True`, a row for each window of a text that is
                longer than the model reads, in place of their mean; `draw=True`, draws in place of means;
                `fast_steps`, `batch_size`, `seed`, `progress`.

        Raises:
            UserError: the model has no thoughts or not those layers; there are no texts, or one is empty.
        """
        return embed_texts(self, texts, **how).features

    def generate(self, *, fast_steps: int | None = None, **options: Any) -> list[Generated]:
        """Texts: see the function of this name."""
        return generate(self.model, self.loop.with_steps(fast_steps), self.tokenizer, **options)

    def reconstruct(self, text: str, *, fast_steps: int | None = None, seed: int = 0) -> Reconstruction:
        """A text from its own thoughts: see the function of this name."""
        return reconstruct(self.model, self.loop.with_steps(fast_steps), self.tokenizer, text, seed=seed)


def _weights_of(folder: Path, config: Config, weights: str) -> Path:
    """The file of these weights of a run. Raises UserError when there are none."""
    if weights not in WEIGHTS:
        raise UserError(f"weights = {weights!r}{suggest(weights, WEIGHTS)}: choose from {', '.join(WEIGHTS)}")
    needed = {"average": ("slow.average", config.slow.average), "best": ("slow.keep_best", config.slow.keep_best)}
    key, there = needed.get(weights, ("", True))
    if not there:
        raise UserError(f"{folder}: has no {weights} weights, as it was trained without {key}; it has the last ones")
    return folder / WEIGHTS[weights]
