"""A comparison as one HTML page that opens from disk: its pictures are inside it and nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_ltm.comparison.comparison_file import save
from pyro_ltm.comparison.result import PROTOCOL, Comparison
from pyro_ltm.files import clear_errors, write_text
from pyro_ltm.locks import locked
from pyro_ltm.reports.comparison_plots import plot_curves, plot_map, plot_rate_distortion
from pyro_ltm.reports.comparison_table import findings, full_table, notes
from pyro_ltm.reports.html import bullets, document, heading, listing, pictures, section, table, text
from pyro_ltm.reports.plots import Figures, write_pictures

PAGE = "compare.html"

MEANINGS = {
    "at most, nats/token": "The evidence lower bound, its sign turned: distortion and rate together. What the model "
    "needs for a token is at most this; lower is better. ± is the standard error, over documents or blocks of "
    "neighbouring sequences where these depend on one another.",
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


def write_comparison(comparison: Comparison, folder: Path | str) -> Path:
    """Writes all that a comparison found: `compare.json`, `compare.csv`, `plots/*.png` and the page, which it gives.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(folder) / PAGE
    with locked(path.parent):
        with clear_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        save(comparison, path.parent)
        write_text(path, render(comparison, write_pictures(draw(comparison), path.parent / "plots")))
    return path


def draw(comparison: Comparison) -> Figures:
    """Every picture by its name, with a caption; none where no pair has a bound."""
    if comparison.best is None:
        return {}
    trains = comparison.kind == "training"
    of_what = "the validation bound of each decoder" if trains else "the honest bound along the fit"
    count = "slow steps, which read equal tokens" if trains else "fast steps"
    dots = "A dot marks where it came within 1% of its best."
    if len(comparison.fast_steps) > 1:
        dots += " Thick lines: the most fast steps; thin ones: fewer, each with a schedule of its own."
    plane = (
        "What thoughts carry against what they leave unexplained. On a dashed line the bound is the same; "
        "further down and to the left it is lower."
    )
    the = "At equal tokens: the" if trains else "The"
    found = {
        "bound-by-steps": (plot_curves(comparison, "steps"), f"By {count}: {of_what}. {dots}"),
        "bound-by-seconds": (plot_curves(comparison, "seconds"), f"By time: {of_what}. {dots}"),
        "rate-distortion": (plot_rate_distortion(comparison), plane),
        "map": (plot_map(comparison), f"{the} bound of each guide with each objective; the best framed."),
    }
    if trains:
        caption = "At equal seconds: the last validation bound within the time of the fastest training."
        found["map-equal-seconds"] = plot_map(comparison, equal_seconds=True), caption
    return found


def render(comparison: Comparison, drawn: Mapping[str, tuple[bytes, str]]) -> str:
    """The page, with PNG pictures and their captions."""
    trains = comparison.kind == "training"
    title = "Guides and objectives, a decoder trained under each pair" if trains else "Guides and objectives compared"
    meanings = {**MEANINGS, **(TRAINING_MEANINGS if trains else {})}
    parts = [
        heading(title, findings(comparison)),
        pictures(drawn),
        section("All figures", f'<div class="wide">{table(*full_table(comparison))}</div>'),
        section("Remarks", bullets(notes(comparison))),
        section("What each figure means", listing(meanings), f'<p class="dim">{text(PROTOCOL)}</p>'),
        section("What was run", listing(_facts(comparison))),
    ]
    return document(title, parts)


def _facts(comparison: Comparison) -> dict[str, str]:
    """The command, the data, the machines, the settings, and what stands behind each name."""
    facts = {key.replace("_", " "): _plain(value) for key, value in comparison.about.items() if value is not None}
    for index, machine in enumerate(comparison.made_on):
        name = "machine" if len(comparison.made_on) == 1 else f"machine {index + 1} (times are not of one machine)"
        facts[name] = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    facts |= {key.replace("_", " "): _plain(value) for key, value in comparison.settings.items() if value is not None}
    for axis, definitions in comparison.definitions.items():
        facts[axis] = "; ".join(f"{name}: {definition}" for name, definition in definitions.items())
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


__all__ = ["PAGE", "draw", "render", "write_comparison"]
