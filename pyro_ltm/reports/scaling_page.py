"""A scaling study as one HTML page that opens from disk, with its plots and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pyro_ltm.comparison.scaling.analysis import WRITING, Gap, gaps, laws
from pyro_ltm.comparison.scaling.law import FACTORS
from pyro_ltm.comparison.scaling.reach import Reach, reached
from pyro_ltm.comparison.scaling.result import NOT_RUN, PATIENCE, STUDY, Level, Row, Study, save
from pyro_ltm.files import write_text
from pyro_ltm.locks import locked
from pyro_ltm.reports.figures import number, plus_minus
from pyro_ltm.reports.html import bullets, document, heading, listing, pictures, section, table
from pyro_ltm.reports.plots import write_pictures
from pyro_ltm.reports.scaling_plots import NAMES, draw
from pyro_ltm.scores.estimate import Difference

PAGE = "scaling.html"
TITLE = "What size, thoughts, fast steps and data are worth"

LEVELS = {"bound": "at most", "iwae": "importance-weighted", "predictive": "predictive"}
"""Figures that are compared, and what each is called."""
EQUAL = {
    "tokens": "equal tokens",
    "flops": "equal training operations",
    WRITING: "no more operations a written token",
}

MEANINGS = {
    "bound": "An upper bound on nats a token of held-out text: the evidence lower bound on noise that no fit has seen, "
    "with the whole KL, its sign turned. Of a twin it is the exact figure. ± is one standard error over the text.",
    "importance-weighted": "A tighter bound from the same draws, where there are thoughts to draw.",
    "predictive": "Each token predicted from those before it alone: q is fitted to the text so far, again and again. A "
    "twin's exact figure is this as well; of a masked diffusion it is a bound, block by block.",
    "reference protocol": "As the reference implementation scores: on the draw that the fit has seen. No bound: it may "
    "lie below the entropy of the text, and is in no comparison here.",
    "operations": "Multiplications and additions of matrix products and attention, counted while real steps ran: fast "
    "and slow steps, subsampling and what is kept between steps taken into account; validations are not counted.",
    "a written token": "Operations to read a prompt of half the length, to fit its thoughts, and to write as much "
    "again, by each token written.",
    "equal tokens": "The rival of the same shape that read the same sequences in the same order.",
    "equal training operations": "The rival of the same shape with the same operations of training, or at most a tenth "
    "and a slow step more; under a budget each takes the slow steps that it allows.",
    "no more operations a written token": "The lowest rival, of any shape, that takes no more operations to write a "
    "token, and to be trained at most those of equal training operations. Where its token is far cheaper than the "
    "cell's, that is no equality: the study has no larger rival.",
    "tokens to reach a level": "Read until a validation, of few sequences, is first at the level or below it: that of "
    "the last validation of the twin of equal tokens; without one, the lowest that all latent-thought cells come to. "
    "Operations up to there are in proportion to slow steps.",
    "rate": "KL(q || prior): nats that the thoughts of a sequence carry. Active: latent dimensions whose posterior "
    "mean varies over sequences.",
    "law": "L = E + sum of A x^-alpha over the factors, fitted to the final bounds by the Huber loss of log L. "
    "Intervals hold 95% of resamplings of settings and seeds. Where many laws fit the cells as well, none is given.",
}


def write_study(study: Study, out: Path | str) -> Path:
    """Writes all that a study found: `study.json` with its laws, `study.csv`, plots, and the page, which it gives.

    Raises:
        UserError: the folder cannot be written, or a cell's file is damaged.
    """
    out = Path(out)
    study.read(out)
    study.laws = laws(study)
    with locked(out / STUDY, wait=PATIENCE):
        save(study, out)
    write_text(out / PAGE, render(study, write_pictures(draw(study), out / "plots")))
    return out / PAGE


def render(study: Study, drawn: Mapping[str, tuple[bytes, str]]) -> str:
    """The page, with PNG pictures and their captions."""
    found, reaches = gaps(study), reached(study)
    parts = [
        heading(TITLE, findings(study, found)),
        pictures(drawn),
        section("The fitted law", bullets(law_lines(study))),
        section("Each cell against its rivals", _wide(*gap_table(found)) if found else ""),
        section("Tokens to reach a level", _wide(*reach_table(reaches)) if reaches else ""),
        section("All cells", _wide(*cell_table(study.rows))),
        section("Remarks", bullets(remarks(study))),
        section("What each figure means", listing(MEANINGS)),
        section("What was run", listing(_facts(study))),
    ]
    return document(TITLE, parts)


def findings(study: Study, found: Sequence[Gap]) -> list[str]:
    """The gist of it, a sentence each."""
    done = {family: study.of(family) for family in study.families}
    counts = ", ".join(f"{len(rows)} {NAMES[family]}" for family, rows in done.items())
    lines = [f"Cells: {counts}."] if done else ["No cell has figures yet."]
    for family, rows in done.items():
        best = min(rows, key=_nats)
        kind = "exact" if family == "twin" else "at most"
        level = plus_minus(_nats(best), best.bound.stderr if best.bound else None)
        lines.append(f"Lowest of {NAMES[family]}: {level} nats a token ({kind}), {best.name}.")
    for family in study.families[1:]:
        for equal, words in EQUAL.items():
            if some := [gap for gap in found if gap.rival.family == family and gap.equal == equal]:
                lines.append(f"Against {NAMES[family]} at {words}: {_counted(some)}.")
    apart = [row.reference.nats_per_token - _nats(row) for row in study.rows if row.reference and row.bound]
    if apart:
        between = f"{min(apart):+.3f} to {max(apart):+.3f} nats a token"
        lines.append(f"The reference protocol's figure, which is no bound, less the bound: {between}.")
    return lines


def _counted(some: Sequence[Gap]) -> str:
    """How many cells lie clearly below their rivals, and how many above, by each figure."""
    counts = []
    for name, label in LEVELS.items():
        if known := [gap.by[name] for gap in some if name in gap.by]:
            below, above = (sum(sign * one.nats_per_token > 2 * one.stderr for one in known) for sign in (1, -1))
            counts.append((label, len(known), below, above))
    (_, cells, below, above), *others = counts
    said = f"of {cells} cells {below} lie below by more than two standard errors, {above} above"
    for label, fewer, below, above in others:
        said += f"; {label} {f'of {fewer} ' * (fewer < cells)}{below} below, {above} above"
    if some[0].equal == WRITING:
        ratio = median(gap.row.write_token_operations / gap.rival.write_token_operations for gap in some)
        said += f". In the median a cell's token takes {ratio:.1f} times the operations of the rival's"
    return said


def law_lines(study: Study) -> list[str]:
    """Each law in words, and where it fails."""
    lines = []
    for law in study.laws:
        name = f"{NAMES[law['family']]}{', ' * bool(law['where'])}{law['where']}"
        if "why" in law:
            lines.append(f"Law of {name}: none, for {law['why']}.")
            continue
        powers = [f"{law['coefficients'][key]:.3g} {key}^-{power:.3f}" for key, power in law["exponents"].items()]
        terms = " + ".join([f"L = {law['floor']:.3f}", *powers])
        low, high = law["floor_interval"]
        ranges = [f"E {low:.3f} to {high:.3f}"]
        for key, (low, high) in law["exponent_intervals"].items():
            ranges.append(f"of {FACTORS[key].replace('_', ' ')} ({key}) {low:.3f} to {high:.3f}")
        missed = f"It misses the {law['cells']} cells that it is fitted to by {law['error']:.4f} nats a token"
        if law["held_out"] is not None:
            missed += f", and {law['held_out_cells']} of the largest, left out, by {law['held_out']:.4f}"
        same = ", ".join(f"{FACTORS[key].replace('_', ' ')} {value:,g}" for key, value in law["constant"].items())
        notes = [f"95% intervals: {'; '.join(ranges)}", missed, *(f"all have {same}" for _ in [1] if same)]
        said = ". ".join(one[:1].upper() + one[1:] for one in [*notes, *law["remarks"]])
        lines.append(f"Law of {name}: {terms}. {said}.")
    return lines


def remarks(study: Study) -> list[str]:
    """Cells without figures, and what a reader may trip over."""
    lines = [f"Without figures: {row.name}: {row.note.removeprefix('failed: ')}" for row in study.failed]
    lines += [f"No {name} figure: {row.name}: {why}" for row in study.rows for name, why in row.without.items()]
    if left_out := study.about.get(NOT_RUN):
        lines.append(f"Not run: {left_out}.")
    if len({row.seed for row in study.rows}) == 1:
        lines.append("One seed: errors are of the text that is scored, and not of another training.")
    if len({str(row.machine.get("processor")) for row in study.rows}) > 1:
        lines.append("Cells were made on several machines: their seconds are not of one.")
    for name in ("pyro_ltm", "torch"):
        if len(versions := sorted({str(row.machine.get(name)) for row in study.rows})) > 1:
            lines.append(f"Cells were made with several versions of {name}: {', '.join(versions)}.")
    return lines


def gap_table(found: Sequence[Gap]) -> tuple[list[str], list[list[str]]]:
    """Cells and how far each lies below its rivals."""
    shown = {name: label for name, label in LEVELS.items() if any(name in gap.by for gap in found)}
    columns = ["cell", "rival", "at", *(f"below, {label}" for label in shown.values())]
    columns += ["training operations, cell / rival", "a written token, cell / rival"]
    rows = []
    for gap in found:
        ratios = [
            f"{getattr(gap.row, name) / getattr(gap.rival, name):.2f}" if getattr(gap.rival, name) else "-"
            for name in ("training_operations", "write_token_operations")
        ]
        rows.append(
            [gap.row.name, gap.rival.name, EQUAL[gap.equal], *(_below(gap.by.get(name)) for name in shown), *ratios]
        )
    return columns, rows


def _below(gap: Difference | None) -> str:
    if gap is None:
        return "-"
    return plus_minus(gap.nats_per_token, gap.stderr if gap.stderr == gap.stderr else None, 4)


def reach_table(found: Sequence[Reach]) -> tuple[list[str], list[list[str]]]:
    """Latent-thought cells, and after how much training each came to a level."""
    columns = ["cell", "level, nats a token", "of", "tokens", "of the twin's", "training operations", "of the twin's"]
    rows = []
    for one in found:
        level = [number(one.goal, 4), one.twin.name if one.twin else "all latent-thought cells"]
        if one.tokens is None or one.operations is None:
            rows.append([one.row.name, *level, one.why, "-", "-", "-"])
            continue
        shares = ["-", "-"]
        if one.twin:
            parts = (one.tokens / one.twin.tokens, one.operations / one.twin.training_operations)
            shares = [f"{part:.2f}" for part in parts]
        rows.append([one.row.name, *level, f"{one.tokens:,}", shares[0], f"{one.operations:.3g}", shares[1]])
    return columns, rows


def cell_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Every cell, with its values on the axes."""
    axes = list(dict.fromkeys(key for row in rows for key in row.axes))
    seeds = ["seed"] if len({row.seed for row in rows}) > 1 else []
    levels = LEVELS | {"reference": "reference, no bound"}
    shown = {name: label for name, label in levels.items() if any(getattr(row, name) for row in rows)}
    columns = ["cell", "family", *axes, *seeds]
    columns += ["parameters", "tokens", "epochs", "training operations", "a scored token", "a written token"]
    columns += [*shown.values(), "rate", "active", "remark"]
    lines = []
    for row in sorted(rows, key=lambda row: _nats(row) if row.bound else float("inf")):
        figures = [_shown_level(row, name) for name in shown]
        of_rivals = {} if row.thoughts else {"model.thoughts": 0}
        cells = [row.name, NAMES[row.family], *(str({**of_rivals, **row.axes}.get(key, "-")) for key in axes)]
        cells += [str(row.seed) for _ in seeds]
        cells += [f"{row.parameters:,}", f"{row.tokens:,}", f"{row.epochs:.2f}"]
        cells += [f"{row.training_operations:.3g}"]
        cells += [f"{row.score_token_operations:.3g}", f"{row.write_token_operations:.3g}"]
        cells += [plus_minus(level.nats_per_token, level.stderr, 4) if level else "-" for level in figures]
        active = "-" if row.active is None else f"{row.active} of {row.latent}"
        lines.append([*cells, number(row.rate, 1), active, row.note])
    return columns, lines


def _shown_level(row: Row, name: str) -> Level | None:
    """Without thoughts, no draws are weighted: the bound is all there is."""
    if name == "iwae" and not row.thoughts:
        return None
    found: Level | None = row.reference if name == "reference" else row.level(name)
    return found


def _wide(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f'<div class="wide">{table(columns, rows)}</div>'


def _nats(row: Row) -> float:
    assert row.bound is not None
    return row.bound.nats_per_token


def _facts(study: Study) -> dict[str, str]:
    """The command, the machines, and the settings that all cells share."""
    facts: dict[str, Any] = {key: value for key, value in study.about.items() if key != NOT_RUN}
    machines = {
        ", ".join(f"{key} {value}" for key, value in row.machine.items() if value is not None) for row in study.rows
    }
    facts["machines"] = "; ".join(sorted(machines))
    on_axes = {key for row in study.rows for key in row.axes}
    facts |= {key: value for key, value in study.settings.items() if value not in (None, "") and key not in on_axes}
    return {key: str(value) for key, value in facts.items()}


__all__ = ["PAGE", "findings", "gap_table", "law_lines", "write_study"]
