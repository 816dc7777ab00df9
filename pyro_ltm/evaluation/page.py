"""A comparison as one HTML page that opens from disk: its pictures are inside it and nothing is fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_ltm.evaluation.compare_plots import plot_curves, plot_map, plot_rate_distortion
from pyro_ltm.evaluation.compare_table import findings, full_table, notes
from pyro_ltm.evaluation.outcome import PROTOCOL, Comparison, save
from pyro_ltm.files import clear_errors, write_atomically, write_text

PAGE = "compare.html"

MEANINGS = {
    "at most, nats/token": "The evidence lower bound, its sign turned: distortion and rate together. What the model "
    "needs for a token is at most this; lower is better. ± is the standard error over sequences.",
    "behind the best": "How much higher than the lowest bound, and the standard error of that difference. All pairs "
    "saw the same sequences, so this error is far smaller than that of either bound: compare pairs by it.",
    "IWAE-K": "The importance-weighted bound with K draws: never above the first one in expectation, and closer to the "
    "truth. A gap between the two says that q is not the posterior.",
    "ESS": "Effective sample size of those K draws: K where q is the exact posterior, 1 where one draw carries all of "
    "the weight.",
    "rate": "KL(q || prior): nats that the thoughts of a sequence carry.",
    "distortion": "E_q[-log p(x | z)]: nats a token that are left when the thoughts are known.",
    "steps and ms to 1%": "Fast steps, and milliseconds of fitting a sequence, until the honest bound was within 1% of "
    "the pair's own best along its way. The clock stands still while we look.",
    "ms/fast step": "The median over the fast steps of a batch.",
    "peak memory": "What a fit of one fast step to one batch holds at its peak, beyond the weights.",
}

TRAINING_MEANINGS = {
    "equal tokens": "Every decoder read the same tokens in the same order; the bounds above are of the finished ones.",
    "at equal seconds": "The last validation of each decoder within the seconds that the fastest training took: a pair "
    "whose steps cost more has taken fewer of them.",
}

STYLE = """
:root { color-scheme: light dark; --line: #d5d5d5; --soft: #f4f4f2; --ink: #1d1d1f; --paper: #ffffff; --dim: #5f6368; }
@media (prefers-color-scheme: dark) {
  :root { --line: #44464a; --soft: #26272b; --ink: #ececec; --paper: #1b1c1f; --dim: #a5a8ad; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.lead { background: var(--soft); padding: .8rem 1.2rem; border-left: 4px solid #1b6ca8; }
.lead p { margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--soft); }
td.word, th.word { text-align: left; }
td.remark { white-space: normal; min-width: 14rem; text-align: left; color: var(--dim); }
tbody tr:first-child { font-weight: 600; }
figure { margin: 1.6rem 0; } img { max-width: 100%; background: white; border-radius: 4px; }
figcaption, .dim { color: var(--dim); font-size: .9rem; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1.2rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


def write_outcome(comparison: Comparison, folder: Path | str) -> Path:
    """Writes all that a comparison comes to: `compare.json`, `compare.csv`, `plots/*.png` and the page, which it gives.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    with clear_errors(folder):
        (folder / "plots").mkdir(parents=True, exist_ok=True)
    save(comparison, folder)
    pictures = {}
    for name, (figure, caption) in draw(comparison).items():
        pictures[name] = to_png(figure), caption
        write_atomically(folder / "plots" / f"{name}.png", partial(_write, pictures[name][0]))
    path = folder / PAGE
    write_text(path, render(comparison, pictures))
    return path


def draw(comparison: Comparison) -> dict[str, tuple[Figure, str]]:
    """Every picture by its name, with a caption; none where no pair has a bound."""
    if comparison.best is None:
        return {}
    trains = comparison.kind == "training"
    what = "the validation bound of each decoder" if trains else "the honest bound along the fit"
    dots = "A dot marks where it came within 1% of its best."
    if len(comparison.fast_steps) > 1:
        dots += " Thick lines: the most fast steps; thin ones: fewer, each with a schedule of its own."
    count = "slow steps, which read equal tokens" if trains else "fast steps"
    found = {
        "bound-by-steps": (plot_curves(comparison, "steps"), f"By {count}: {what}. {dots}"),
        "bound-by-seconds": (plot_curves(comparison, "seconds"), f"By time: {what}. {dots}"),
        "rate-distortion": (
            plot_rate_distortion(comparison),
            "What thoughts carry against what they leave unexplained. On a dashed line the bound is the same; "
            "further down and to the left it is lower.",
        ),
        "map": (
            plot_map(comparison),
            ("At equal tokens: the" if trains else "The")
            + " bound of each guide with each objective; the best framed.",
        ),
    }
    if trains:
        found["map-equal-seconds"] = (
            plot_map(comparison, equal_seconds=True),
            "At equal seconds: the last validation bound within the time of the fastest training.",
        )
    return found


def to_png(figure: Figure) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def render(comparison: Comparison, pictures: Mapping[str, tuple[bytes, str]]) -> str:
    """The page, with PNG pictures and their captions."""
    trains = comparison.kind == "training"
    title = "Guides and objectives, a decoder trained under each pair" if trains else "Guides and objectives compared"
    lead = "".join(f"<p>{_text(line)}</p>" for line in findings(comparison))
    figures = "".join(
        f'<figure id="{_text(name)}"><img alt="{_text(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for name, (content, caption) in pictures.items()
    )
    remarks = "".join(f"<li>{_text(line)}</li>" for line in notes(comparison))
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<div class="lead">{lead}</div>',
        figures,
        "<h2>All figures</h2>",
        f'<div class="wide">{_table(*full_table(comparison))}</div>',
        f"<h2>Remarks</h2><ul>{remarks}</ul>" if remarks else "",
        "<h2>What each figure means</h2>",
        _list({**MEANINGS, **(TRAINING_MEANINGS if trains else {})}),
        f'<p class="dim">{_text(PROTOCOL)}</p>',
        "<h2>What was run</h2>",
        _list(_facts(comparison)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # The page promises to fetch nothing, and the browser holds it to that.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _facts(comparison: Comparison) -> dict[str, str]:
    """What was run, on what, with what."""
    facts = {key.replace("_", " "): _plain(value) for key, value in comparison.about.items() if value is not None}
    for index, machine in enumerate(comparison.made_on):
        name = "machine" if len(comparison.made_on) == 1 else f"machine {index + 1} (times are not of one machine)"
        facts[name] = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    facts |= {key.replace("_", " "): _plain(value) for key, value in comparison.settings.items() if value is not None}
    for axis, members in comparison.members.items():
        facts[axis] = "; ".join(f"{name}: {meaning}" for name, meaning in members.items())
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first two columns and the remark are words, the others figures."""
    kinds = ["word" if index < 2 else "remark" if name == "remark" else "" for index, name in enumerate(columns)]

    def cells(tag: str, texts: Sequence[str]) -> str:
        marked = zip(kinds, texts, strict=True)
        return "".join(f"<{tag}{f' class={kind!r}' if kind else ''}>{_text(text)}</{tag}>" for kind, text in marked)

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{cells('th', columns)}</tr></thead>\n<tbody>{body}</tbody></table>"


def _list(entries: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_text(text)}</dd>\n" for key, text in entries.items()) + "</dl>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


__all__ = ["PAGE", "draw", "render", "write_outcome"]
