"""A comparison in words and tables: the same for the terminal, the page and whoever prints it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_ltm.comparison.result import Comparison, Estimate, PairScore
from pyro_ltm.reports.figures import number, plus_minus

Table = tuple[list[str], list[list[str]]]
"""Columns and rows, the best pair first."""


def short_table(comparison: Comparison, *, wide: bool = True) -> Table:
    """For a terminal of 100 columns, or of 80; the fast steps have a column where pairs differ in them."""
    trains = comparison.kind == "training"
    columns: dict[str, Callable[[PairScore], str]] = {"guide": lambda p: p.guide, "objective": lambda p: p.objective}
    if len(comparison.fast_steps) > 1:
        columns["steps"] = lambda p: str(p.fast_steps)
    columns["at most"] = lambda p: pm(p.elbo)
    if trains:
        equal = comparison.equal_seconds()
        columns["= time"] = lambda p: number(equal.get(p.key, {}).get("nats_per_token"))
    if wide or not trains:
        columns["IWAE"] = lambda p: number(p.iwae.nats_per_token if p.iwae else None)
    if wide:
        columns["ESS"] = lambda p: number(p.ess, 1)
    columns["rate"] = lambda p: number(p.rate, 2)
    if wide or not trains:
        columns["saved"] = lambda p: saved(comparison, p).partition(" ")[0]
    if wide and not trains:
        columns["distort."] = lambda p: number(p.distortion)
    if trains:
        columns["trained"] = lambda p: number(p.training.seconds if p.training else None, 0, " s")
    columns["to 1%"] = arrival_text
    if wide:
        columns["memory"] = lambda p: megabytes(p.peak_memory_bytes)
    return list(columns), [[cell(pair) for cell in columns.values()] for pair in _all(comparison)]


def full_table(comparison: Comparison) -> Table:
    """Every figure of every pair."""
    columns: dict[str, Callable[[PairScore], str]] = {
        "guide": lambda p: p.guide,
        "objective": lambda p: p.objective,
        "fast steps": lambda p: str(p.fast_steps),
        "at most, nats/token": lambda p: pm(p.elbo, 4),
        "behind the best": lambda p: pm(comparison.difference_to_best(p), 4),
        f"IWAE-{comparison.settings.get('particles', 'K')}": lambda p: pm(p.iwae, 4),
        "ESS": lambda p: number(p.ess, 1),
        "Pareto k": pareto_text,
        "rate, nats/seq.": lambda p: number(p.rate, 2),
        "saved, nats/nat of rate": lambda p: saved(comparison, p),
        "distortion, nats/token": lambda p: number(p.distortion, 4),
        "steps to 1%": lambda p: number(p.steps_to_1pct, 0),
        "ms/seq. to 1%": lambda p: number(p.ms_per_sequence_to_1pct, 1),
        "ms/fast step": lambda p: number(p.ms_per_fast_step, 1),
        "peak memory": lambda p: megabytes(p.peak_memory_bytes),
    }
    if any(pair.convergence for pair in comparison.pairs):
        columns["R-hat"] = lambda p: number(p.convergence.rhat if p.convergence else None, 3)
        columns["bulk ESS of chains"] = lambda p: number(p.convergence.ess_bulk if p.convergence else None, 0)
    if any(pair.guide_training_seconds is not None for pair in comparison.pairs):
        columns["guide training, s"] = lambda p: number(p.guide_training_seconds, 1)
    if comparison.kind == "training":
        equal = comparison.equal_seconds()
        columns["training, s"] = lambda p: number(p.training.seconds if p.training else None, 1)
        columns["at equal seconds"] = lambda p: number(equal.get(p.key, {}).get("nats_per_token"), 4)
        columns["... at step"] = lambda p: number(equal.get(p.key, {}).get("step"), 0)
        columns["slow steps to 1%"] = lambda p: number(training_arrival(p, "step"), 0)
        columns["training s to 1%"] = lambda p: number(training_arrival(p, "seconds"), 1)
    columns["remark"] = lambda p: p.note
    return list(columns), [[cell(pair) for cell in columns.values()] for pair in _all(comparison)]


def findings(comparison: Comparison) -> list[str]:
    """The conclusions, in sentences."""
    best, lines = comparison.best, []
    if best is None:
        lines.append("No pair has a bound.")
    else:
        lines.append(f"Lowest bound: {name_of(best, comparison)}, at most {pm(best.elbo, 4)} nats a token.")
        if best.elbo and best.elbo.blocks:
            lines.append(f"± of this bound is the standard error over {best.elbo.blocks}.")
        tied = comparison.tied_with_best()
        if tied:
            lines.append(f"Less than two standard errors of the difference behind it: {_named(tied, comparison)}.")
    heavy = [pair for pair in comparison.ranked() if pair.pareto_k and pair.pareto_k.share_above > 0.5]
    if heavy:
        lines.append(
            "More draws would still move IWAE and ESS, for Pareto k is above its threshold in most sequences: "
            f"{_named(heavy, comparison)}."
        )
    for pair in comparison.ranked():
        if pair.convergence:
            lines.append(f"{name_of(pair, comparison)}: {pair.convergence}.")
    if comparison.kind == "training" and (equal := comparison.equal_seconds()):
        ranked = sorted((row["nats_per_token"], key) for key, row in equal.items() if row["nats_per_token"] is not None)
        if ranked:
            level, key = ranked[0]
            seconds = equal[key]["limit_seconds"]
            lines.append(
                f"At equal seconds ({seconds:.1f} s of training): {key[0]} with {key[1]}, {level:.4f} nats a token at "
                f"step {equal[key]['step']}."
            )
    if comparison.twin and comparison.twin.elbo:
        lines.append(f"The twin without thoughts: {pm(comparison.twin.elbo, 4)} nats a token, exactly.")
    if comparison.masked_diffusion and comparison.masked_diffusion.elbo:
        lines.append(f"The masked diffusion: at most {pm(comparison.masked_diffusion.elbo, 4)} nats a token.")
    return lines


MOST_NAMED = 6
"""Names in one sentence."""


def notes(comparison: Comparison) -> list[str]:
    """Remarks on single pairs, and reasons why pairs do not fit, alike ones together."""
    said: dict[str, list[str]] = {}
    for pair in _all(comparison):
        if pair.note:
            rival = _is_rival(pair, comparison)
            said.setdefault(pair.note, []).append(pair.guide if rival else f"{pair.guide} with {pair.objective}")
    for one in comparison.refused:
        said.setdefault(f"does not fit: {one.reason}", []).append(f"{one.guide} with {one.objective}")
    return [f"{'; '.join(dict.fromkeys(names))}: {text}" for text, names in said.items()]


def _all(comparison: Comparison) -> list[PairScore]:
    """Its pairs, the lowest bound first, and the rivals."""
    return [*comparison.ranked(), *comparison.rivals.values()]


def _is_rival(pair: PairScore, comparison: Comparison) -> bool:
    return any(pair is rival for rival in comparison.rivals.values())


def _named(pairs: list[PairScore], comparison: Comparison) -> str:
    """The first of these pairs in words, and how many more there are."""
    shown = "; ".join(name_of(pair, comparison) for pair in pairs[:MOST_NAMED])
    return shown + (f"; and {len(pairs) - MOST_NAMED} more" if len(pairs) > MOST_NAMED else "")


def name_of(pair: PairScore, comparison: Comparison) -> str:
    """The pair in words; its fast steps where pairs differ in them."""
    steps = f", {pair.fast_steps} steps" if len(comparison.fast_steps) > 1 else ""
    return pair.guide if _is_rival(pair, comparison) else f"{pair.guide} with {pair.objective}{steps}"


def training_arrival(pair: PairScore, key: str) -> Any:
    """The slow `step`, or the `seconds`, at which validation came within 1% of its best."""
    return getattr(pair.training.arrival, key) if pair.training and pair.training.arrival else None


def arrival_text(pair: PairScore) -> str:
    """Fast steps and milliseconds a sequence to come within 1% of the pair's best."""
    steps, ms = pair.steps_to_1pct, pair.ms_per_sequence_to_1pct
    return "-" if steps is None or ms is None else f"{steps} / {number(ms, 0 if ms >= 10 else 1)} ms"


def pareto_text(pair: PairScore) -> str:
    """Median Pareto k of the importance weights, and the share of sequences above its threshold."""
    found = pair.pareto_k
    return f"{found.median:.2f}; {found.share_above:.0%} above {found.threshold:.2f}" if found else "-"


def pm(value: Estimate | None, digits: int = 3) -> str:
    """A figure and its standard error."""
    return plus_minus(value.nats_per_token, value.stderr, digits) if value else "-"


def saved(comparison: Comparison, pair: PairScore) -> str:
    """The exchange rate and its standard error; none of a rival."""
    found = None if _is_rival(pair, comparison) else comparison.exchange_rate(pair)
    return plus_minus(found.nats_per_nat, found.stderr, 2) if found else "-"


def megabytes(count: int | None) -> str:
    """Bytes as megabytes."""
    return "-" if count is None else f"{count / 1e6:.{0 if count >= 1e7 else 1}f} MB"


__all__ = ["Table", "findings", "full_table", "name_of", "notes", "short_table"]
