"""Another run's weights as the beginning of a new one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyro_ltm.config import Config
from pyro_ltm.config.settings import flat
from pyro_ltm.data import TokenDataset, Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.runs.folder import MODEL, load_weights
from pyro_ltm.runs.notes import ORIGIN, OriginNote, origin_note, relative, write_note
from pyro_ltm.runs.run import Run

ANYHOW = ("model.max_length", "model.thought_stride", "model.dropout", "graft.train", "graft.rank", "graft.alpha")
"""Of a model's settings, those by which its weights mean the same, its thoughts standing where they did."""

PRIOR = ("model.prior.", "model.decoder.transport.")
"""Names of weights that are those of one prior."""


@dataclass
class Origin:
    """The run whose weights, of the decoder, and of prior and guide where they are the same, a new run begins with.

    Its tokenizer must be the new run's, and all settings of the model the same, but for the length that it reads.
    """

    run: Run
    parts: tuple[str, ...] = ("model",)

    @classmethod
    def find(
        cls, out: Path, init_from: str | Path | None, *, going_on: bool, trained: bool, **trust: Any
    ) -> Origin | None:
        """The origin of the run in `out`, to begin with; None where it has none or is past its beginning.

        Args:
            trust: `allow_code` and `known`, as in `Run.load`.

        Raises:
            UserError: `init_from` is no run, or not the one with which the run in `out` began.
        """
        noted = origin_note(out) if going_on else None
        if init_from is None and (noted is None or trained):
            return None
        place = Path(init_from) if init_from is not None else out / noted.run if noted else out
        run = Run.load(place, **trust)
        if going_on and (noted is None or noted.fingerprint != run.fingerprint):
            raise UserError(
                f"{out}: did not begin with the weights of {place} as they are now; "
                f"{'go on without --init-from, or ' if trained else ''}start a new run in another folder"
            )
        return None if trained else cls(run)

    @property
    def config(self) -> Config:
        """The settings of the run, as a new one is planned by."""
        slow = dataclasses.replace(self.run.config.slow, planned=0, changed_at=0, rewarm=0, decay_steps=0)
        return dataclasses.replace(self.run.config, slow=slow)

    def tokenizer(self, given: str | Path | Tokenizer | None) -> Tokenizer:
        """The tokenizer to prepare text with. Raises UserError when another one is `given`."""
        loaded = given if given is None or isinstance(given, Tokenizer) else Tokenizer.load(given)
        if loaded is not None and loaded.fingerprint != self.run.tokenizer.fingerprint:
            raise UserError(
                f"--tokenizer: not that of {self.run.folder}, whose weights know its tokens alone; leave it out"
            )
        return self.run.tokenizer

    def fitting(self, config: Config, data: TokenDataset) -> Config:
        """`config` with the vocabulary of the run. Raises UserError when it or the data do not fit its weights."""
        if data.meta["tokenizer"] != self.run.tokenizer.fingerprint:
            raise UserError(
                f"{data.folder.path}: made by another tokenizer than that of {self.run.folder}, whose weights know its "
                f"tokens alone: prepare the data with --tokenizer {self.run.folder / 'tokenizer.json'}"
            )
        its = self.run.config.model
        model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or its.vocab_size)
        if its.thoughts and not model.thought_stride and model.thoughts_apart != its.thoughts_apart:
            model = dataclasses.replace(model, thought_stride=its.thoughts_apart)
        config = dataclasses.replace(config, model=model)
        ours, theirs = flat(config), flat(self.run.config)
        ours["model.thought_stride"], theirs["model.thought_stride"] = model.thoughts_apart, its.thoughts_apart
        for key in sorted(ours, key=lambda key: key != "model.kind"):  # which others follow from
            if key.startswith(("model.", "graft.")) and ours[key] != theirs[key] and not self._is_free(key, config):
                raise UserError(
                    f"{self.run.folder}: its weights are of {key} = {theirs[key]}, and not {ours[key]}: "
                    f"--set {key}={theirs[key]}, or leave the preset out to take its settings"
                )
        return config

    def _is_free(self, key: str, config: Config) -> bool:
        """Whether the weights mean the same by another setting of this key."""
        if key == "model.thought_stride":
            return not (config.model.thoughts and self.run.config.model.thoughts)
        if key == "graft.alpha":  # by which low-rank additions that are taken over count
            return not config.graft.train == self.run.config.graft.train == "lora"
        return key in ANYHOW

    def give(self, modules: nn.ModuleDict, config: Config) -> None:
        """Puts the weights into what a new run learns (`trainable`); those of the guide where it is the same."""
        if config.guide == self.run.config.guide:
            self.parts = ("model", "guide")
        own, given = modules.state_dict(), self.run.trainable.state_dict()
        left = () if config.prior == self.run.config.prior else PRIOR
        taken = {
            name: value for name, value in given.items() if name.startswith(self.parts) and not name.startswith(left)
        }
        load_weights(modules, {**own, **taken}, self.run.folder / MODEL)


def note_origin(out: Path, origin: Origin | None) -> None:
    """Notes in the folder of a new run with whose weights it begins; with random ones, no note stays there."""
    if origin is None:
        (out / ORIGIN).unlink(missing_ok=True)  # of one that was killed as it began
        return
    run = origin.run
    note = OriginNote(relative(run.folder, out), run.step, run.fingerprint, list(origin.parts))
    write_note(out / ORIGIN, note)
