"""The data of a training: tokens that are ready, or text that is prepared inside the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_ltm.config import Config
from pyro_ltm.data import Preparation, Reading, TokenFolder, Tokenizer, prepare
from pyro_ltm.data.folder import is_token_folder
from pyro_ltm.data.sources import sources_of
from pyro_ltm.errors import UserError
from pyro_ltm.runs.data import open_data, own_data
from pyro_ltm.runs.notes import DATA, data_note
from pyro_ltm.training.origin import Origin


@dataclass(frozen=True, kw_only=True)
class Text:
    """The data of a training.

    Args:
        data: a folder that `prepare` wrote, or sources to prepare inside the run folder; None: the run's own.
        tokenizer, reading, workers: as in `prepare`, where the run prepares its own data.
        stream: prepare no more of the text than the run will read: as many sequences as its steps take.
    """

    data: str | Path | Sequence[str] | None = None
    tokenizer: str | Path | Tokenizer | None = None
    reading: Reading | None = None
    stream: bool = False
    workers: int = 1

    def tokens(
        self,
        config: Config,
        out: Path,
        origin: Origin | None,
        *,
        going_on: bool,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> TokenFolder:
        """The folder of tokens to train on: the one named, the own one of the run `out`, or one prepared there now.

        Of one that was appended to since the run began: as it was then. A run that goes on with the text that it began
        with, as whoever starts it again after a fault has it do, takes the same options and reads nothing.
        """
        sources = sources_of(self.data)
        ready = len(sources) == 1 and is_token_folder(sources[0])
        recorded = going_on and (out / DATA).exists()
        given = self.tokenizer or self.stream or self.reading not in (None, Reading())
        if given and (ready or (recorded and not sources)):
            raise UserError(
                "a tokenizer, a way of reading or --stream is of use only for text that is prepared now: "
                f"{sources[0] if ready else out} has its tokens already; leave it out"
            )
        if ready:
            named, note = TokenFolder.open(sources[0]), data_note(out) if going_on else None
            return (note and named.as_of(note.fingerprint)) or named
        if recorded:
            return self._recorded(out, sources)
        if not sources:
            raise UserError(f"{out / DATA}: missing; name the data with --data")
        with own_data(out) as place:
            return prepare(
                sources,
                place,
                Preparation.of(config),
                overwrite=True,  # what a run that was killed while it began left behind
                workers=self.workers,
                progress=progress,
                tokenizer=origin.tokenizer(self.tokenizer) if origin else self.tokenizer,
                reading=self.reading,
                sequences=config.slow.steps * config.slow.sequences if self.stream else 0,
            )

    def _recorded(self, out: Path, sources: Sequence[str]) -> TokenFolder:
        """The data that the run `out` learns from. Raises UserError where others are named, or read otherwise."""
        folder = open_data(out, "train").folder
        known, column = [str(source) for source in folder.meta["sources"]], folder.meta.get("text_column")
        wrong = ""
        if sources and set(map(_whole_path, sources)) != set(map(_whole_path, known)):
            wrong = f"from {', '.join(known)}, not from {', '.join(sources)}: leave --data out"
        elif self.tokenizer and _loaded(self.tokenizer).fingerprint != folder.meta["tokenizer"]:
            wrong = "by another tokenizer than this: leave --tokenizer out"
        elif self.reading and column and self.reading.text_column not in (None, column):
            wrong = f"from the column {column}, not from {self.reading.text_column}: leave --text-column out"
        if wrong:
            raise UserError(f"{out}: learns {wrong} to go on, or begin another run with --init-from {out}")
        return folder


def _loaded(tokenizer: str | Path | Tokenizer) -> Tokenizer:
    return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)


def _whole_path(source: str) -> str:
    """The name of a source that is the same from whichever folder it is given."""
    return os.path.abspath(source) if os.path.exists(source) else source
