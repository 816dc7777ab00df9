"""Documents with their thoughts: fitted to texts, or read from a file that `pyro-ltm embed` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_ltm.data import Document, Reading
from pyro_ltm.data.readers.fields import no_column
from pyro_ltm.data.sources import find_source, listed
from pyro_ltm.errors import UserError, warn
from pyro_ltm.runs import Run
from pyro_ltm.runs.documents import check_thinks, cut_documents
from pyro_ltm.runs.embedding import Embeddings, check_layers, embed_pieces
from pyro_ltm.runs.embeddings_file import check_room, is_embeddings, read_embeddings
from pyro_ltm.runs.partial_fits import PartialFits, key_of


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How posteriors are fitted.

    Attributes:
        fast_steps, settings: by default those of training (see `Run.with_fast_loop`).
        batch_size: sequences at a time.
        seed: of the noise.
    """

    fast_steps: int | None = None
    settings: tuple[str, ...] = ()
    batch_size: int = 32
    seed: int = 0

    def loop_of(self, run: Run) -> Run:
        """The run that fits so. Raises UserError when it has no thoughts, or a setting is wrong."""
        check_thinks(run)
        return run.with_fast_loop(self.settings)

    def about(self, run: Run) -> dict[str, Any]:
        """All that decides the fits, for JSON: files of embeddings keep it."""
        steps = self.loop_of(run).loop.with_steps(self.fast_steps).steps
        return {"fast_steps": steps, "settings": list(self.settings), "seed": self.seed}

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `embed_pieces`."""
        return {"fast_steps": self.fast_steps, "batch_size": self.batch_size, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Thoughts of documents.

    Attributes:
        rows: what was fitted, or read.
        without_text: documents of the input that hold none, and have no row.
        read: which files were read, and which not (`listed`).
        earlier: sequences of which fits were kept by a process that was killed.
    """

    rows: Embeddings
    without_text: int = 0
    read: dict[str, Any] = field(default_factory=dict)
    earlier: int = 0


def read_rows(
    run: Run,
    source: str,
    fitting: Fitting | None = None,
    *,
    reading: Reading | None = None,
    layers: Sequence[int] | None = None,
    windows: bool = False,
    draw: bool = False,
    posteriors: bool = False,
    out: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = warn,
) -> Rows:
    """The thoughts of the documents that `source` names: text as `find_source` takes it, or a file of embeddings.

    All text is read, and found to be in order, before the first fit.

    Args:
        layers, windows, draw, posteriors: see `embed_pieces`.
        out: the file that they are for. It must have room for them; fits are kept next to it until all are done. Hold
            its lock.
        progress: called with the sequences fitted, and how many there are.
        say: called with a line where fits that were kept are damaged.

    Raises:
        UserError: the run has no thoughts, the text is not in order, or the embeddings are of another run.
    """
    fitting, reading = fitting or Fitting(), reading or Reading()
    fitted, chosen = fitting.loop_of(run), check_layers(run.config.model, layers)
    if is_embeddings(Path(source)):
        if out is not None:
            raise UserError(f"{source}: holds embeddings; expected texts")
        return Rows(rows=_read(run, Path(source), fitting, reading.columns, layers))
    found, empty = find_source(source, reading), [0]
    pieces = list(cut_documents(fitted, _counted(found.read(), empty), found.spec))
    kept = None
    if out is not None:
        check_room(out, pieces)
        about = (run.fingerprint, fitting.about(run), draw)
        kept = PartialFits(out, key_of((piece.tokens for piece in pieces), *about), say=say)
    rows = embed_pieces(
        fitted,
        pieces,
        layers=chosen,
        windows=windows,
        draw=draw,
        posteriors=posteriors,
        kept=kept,
        progress=lambda done: progress(done, len(pieces)),
        **fitting.how,
    )
    earlier = kept.earlier if kept else 0
    return Rows(rows=rows, without_text=empty[0], read=listed([found]), earlier=earlier)


def _counted(documents: Iterator[Document], empty: list[int]) -> Iterator[Document]:
    """The documents; the first of `empty` becomes how many of them have no text."""
    number = with_text = 0
    for document in documents:
        number += not document.continues
        with_text += bool(document.text) and not document.continues
        empty[0] = number - with_text
        yield document


def _read(run: Run, path: Path, fitting: Fitting, columns: Sequence[str], layers: Sequence[int] | None) -> Embeddings:
    """The rows of a file. Raises UserError when they are no match for what this run fits by `fitting`."""
    rows, header = read_embeddings(path)
    if header.fingerprint != run.fingerprint:
        raise UserError(
            f"{path}: embeddings of another run than {run.folder}, or of other weights; embed the texts again"
        )
    if header.fit != (wanted := fitting.about(run)):
        raise UserError(f"{path}: fitted with {header.fit}, and asked for is {wanted}; give the same options")
    if header.draw:
        raise UserError(f"{path}: holds draws from posteriors, not their means; embed the texts again without --draw")
    if layers is not None and tuple(layers) != rows.layers:
        had = ",".join(map(str, rows.layers))
        raise UserError(f"{path}: has the thoughts of layers {had}, not of {','.join(map(str, layers))}")
    if unknown := next((column for column in columns if column not in rows.table), None):
        raise no_column(str(path), unknown, rows.table)
    return rows
