"""Common to all pictures: panels, colours, text that a font can show, and PNG files."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import clear_errors, write_atomically

COLORS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#5c5470")

Figures = dict[str, tuple[Figure, str]]
"""Figures with their captions, by name."""
Pictures = dict[str, tuple[bytes, str]]
"""The same, drawn as PNG."""


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its panels, row by row, without lines at their top and right."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Axes, **more: Any) -> None:
    """A small legend without a frame."""
    # Named, "best" is sought without a warning that it takes long.
    axes.legend(frameon=False, fontsize=8, **{"loc": "best", **more})


def legible(text: str, longest: int = 28) -> str:
    """`text` as a picture can show it: one short line of characters that the font has, and no mathematics.

    To a legend, a leading underscore would mean that it is not to be shown.
    """
    known = _characters()
    line = "".join(character if ord(character) in known else "\u25a1" for character in one_line(text, 9 * longest))
    line = line if len(line) <= longest else line[: longest - 1] + "\u2026"
    return (f"'{line}'" if not line or line.startswith("_") else line).replace("$", r"\$")


@functools.cache
def _characters() -> frozenset[int]:
    """Those that the font of all pictures has."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(font.get_charmap())


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


PICTURES = (".png", ".svg")
"""Suffixes of single pictures."""


def check_picture(path: Path) -> None:
    """Raises UserError when no picture of such a name can be drawn."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{path}: expected a name that ends in {' or '.join(PICTURES)}")


def write_picture(figure: Figure, path: Path) -> None:
    """Draws a figure into one file, as its suffix says, whole or not at all.

    Raises:
        UserError: another suffix, or the place cannot be written.
    """
    check_picture(path)
    kind = path.suffix.lower().removeprefix(".")
    about: dict[str, Any] = {"Date": None} if kind == "svg" else {}  # so that equal figures give equal files
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "pyro-ltm", "svg.fonttype": "none"}):
        figure.savefig(buffer, dpi=120, format=kind, metadata=about)
    write_atomically(path, functools.partial(_write, buffer.getvalue()))


def write_pictures(figures: Mapping[str, tuple[Figure, str]], folder: Path) -> Pictures:
    """Writes each figure as NAME.png into `folder`, atomically; makes the folder. Gives the PNG with their captions.

    Raises:
        UserError: the folder cannot be written.
    """
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: (to_png(figure), caption) for name, (figure, caption) in figures.items()}
    for name, (content, _) in drawn.items():
        write_atomically(folder / f"{name}.png", functools.partial(_write, content))
    return drawn


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)
