"""The tables of `pyro-ltm evaluate`: one a protocol, under a heading that says what its figures are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .output import margin, nats, say, show_table

if TYPE_CHECKING:
    from pyro_ltm.runs.protocols import Evaluation
    from pyro_ltm.scores import Bound, Difference, ExchangeRate, Figure, Prefix, Reference


def show(found: Evaluation, where: str) -> None:
    """Every protocol that was asked for, and where they stand."""
    if found.bound:
        _show_bound(found, found.bound)
    if found.prefix:
        _show_prefix(found, found.prefix)
    if found.reference:
        _show_reference(found.reference)
    if not found.bound and not found.prefix:
        if found.twin:
            say(f"Twin, exact: {_figure(found.twin)} nats a token.")
        if found.masked_diffusion:
            say(f"Masked diffusion, at most: {_figure(found.masked_diffusion)} nats a token.")
    if found.floor:
        _show_floor(found)
    elif found.no_floor:
        say(f"No floor stands below these figures: {found.no_floor}.")
    scored: Any = found.bound or found.prefix or found.reference
    say(f"{scored.sequences:,} sequences, {scored.tokens:,} tokens of {where}")
    say(f"± is the standard error over {scored.blocks}")
    own = scored.fast_steps, getattr(scored, "particles", 1), scored.seed
    noise = "fresh noise" if found.bound or found.prefix else "the noise of the fit"
    say(f"{own[0]} fast steps, {own[1]} particles, {noise}, seed {own[2]}")
    for whose, gaps in (("twin's", found.below_twin), ("masked diffusion's", found.below_masked_diffusion)):
        if gap := gaps.get("bound"):
            side = "below" if gap.nats_per_token >= 0 else "above"
            say(f"The bound is {abs(gap.nats_per_token):.4f}{margin(gap.stderr)} nats a token {side} the {whose}.")


def _show_bound(found: Evaluation, bound: Bound) -> None:
    """The bound, its parts, and those of the rivals."""
    columns = {"this run": bound, "twin": found.twin, "masked diffusion": found.masked_diffusion}
    both: list[Bound] = [one for one in columns.values() if one]

    def row(name: str, figure: Any) -> list[str]:
        return [name, *(figure(one) for one in both)]

    def thoughtful(name: str, figure: Any) -> list[str]:
        return row(name, lambda b: figure(b) if b.active_fraction_by_layer else "-")

    def rate(b: Bound) -> str:
        return nats(b.kl_nats_per_sequence, 2) + margin(b.kl_nats_per_sequence_stderr, 2)

    def bits(b: Bound) -> str:
        return nats(b.bits_per_byte) + margin(b.bits_per_byte_stderr)

    rows = [row("nats a token", _figure)]
    rows += _weighted_rows(found, bound, len(both))
    rows += [
        row("perplexity", lambda b: nats(b.perplexity, 2)),
        *([] if found.no_bytes else [row("bits a byte", bits)]),
        thoughtful("rate (KL), nats a sequence", rate),
        *_exchange_rows(found, both),
        row("distortion, nats a token", lambda b: nats(b.distortion_nats_per_token)),
        thoughtful("  with thoughts from the prior", lambda b: nats(b.distortion_from_prior)),
        thoughtful("  with thoughts all zero", lambda b: nats(b.distortion_zeroed)),
        thoughtful("  with another sequence's thoughts", lambda b: nats(b.distortion_shuffled)),
    ]
    shares = [
        [f"active dimensions, layer {layer}", f"{share:.0%}", *["-"] * (len(both) - 1)]
        for layer, share in enumerate(bound.active_fraction_by_layer, 1)
    ]
    for entry, share in zip(shares, found.twin.active_fraction_by_layer if found.twin else (), strict=False):
        entry[2] = f"{share:.0%}"  # a second model with thoughts has shares of its own
    named = ["", *(name for name, one in columns.items() if one)]
    show_table("Upper bound on nats, and what it is made of", named, rows + shares)
    if bound.no_pareto_k and bound.active_fraction_by_layer:
        say(f"No Pareto k of the importance weights: {bound.no_pareto_k} (--particles).")
    if found.no_exchange_rate:
        say(f"No exchange rate: {found.no_exchange_rate}.")
    if found.no_bytes:
        say(f"No bits a byte: {found.no_bytes}.")
    if found.no_density:
        say(f"Of the rate: {found.no_density}.")


def _exchange_rows(found: Evaluation, both: list[Bound]) -> list[list[str]]:
    """The rows of the exchange rate: nats saved by a nat of rate."""

    def shown(value: ExchangeRate | None) -> str:
        return nats(value.nats_per_nat, 2) + margin(value.stderr or math.nan, 2) if value else "-"

    rows = [["  saved a nat of rate, against no thoughts", *(shown(one.exchange_rate) for one in both)]]
    if found.exchange_rate:
        rest = ["-"] * (len(both) - 1)
        rows.append(["  saved a nat of rate, against the twin", shown(found.exchange_rate), *rest])
    return rows if any(one.active_fraction_by_layer for one in both) else []


def _weighted_rows(found: Evaluation, bound: Bound, columns: int) -> list[list[str]]:
    """The tighter bounds: importance-weighted, with its curve, and annealed."""
    rest = ["-"] * (columns - 1)
    if not bound.active_fraction_by_layer:
        return []
    points = [point for point in bound.iwae_curve if point.particles > 1] or bound.iwae_curve
    shown = points if len(points) < 4 else [points[0], points[len(points) // 2], points[-1]]
    rows = [
        [f"  importance-weighted, {point.particles} draws", nats(point.nats_per_token) + margin(point.stderr), *rest]
        for point in shown
    ]
    if bound.particles > 1:
        ess = f"{nats(bound.effective_sample_size, 1)}{margin(bound.effective_sample_size_stderr, 1)}"
        rows.append([f"  of {bound.particles} draws count", ess, *rest])
    if tail := bound.pareto_k:
        above = f"{tail.median:.2f}; {tail.share_above:.0%} above {tail.threshold:.2f}"
        rows.append(["  Pareto k of their weights, median", above, *rest])
    for start, annealed in found.annealed.items():
        rows.append([f"  annealed from {start}, {annealed.temperatures} temperatures", _figure(annealed), *rest])
        ess = f"{annealed.effective_sample_size:.1f}, {annealed.acceptance:.0%}"
        rows.append([f"    of {annealed.chains} chains count; moves taken", ess, *rest])
    return rows


def _show_prefix(found: Evaluation, prefix: Prefix) -> None:
    """Predictive figures, with those of the rivals on the same tokens."""
    twin, diffusion = found.twin_prefix, found.masked_diffusion_prefix
    both = [(twin, found.below_twin), (diffusion, found.below_masked_diffusion)]
    rivals = [(one, below) for one, below in both if one is not None]
    floor = ["above the floor", *(["of the way"] if twin else [])] if found.floor else []
    named = (["twin", "below the twin"] if twin else []) + (["masked diffusion", "below it"] if diffusion else [])
    columns = ["nats a token", "this run", *named, *floor]

    def row(label: str, name: str, figure: Figure, theirs: Sequence[Figure]) -> list[str]:
        above = [_gap(found.above_floor.get(name)), _way(found, name)][: len(floor)]
        gaps = [_gap(below.get(name)) for _, below in rivals]
        return [label, _figure(figure), *itertools.chain(*zip(map(_figure, theirs), gaps, strict=True)), *above]

    blocks = f"all, {'a fit every' if prefix.fast_steps else 'in blocks of'} {prefix.stride}"
    rows = [row(blocks, "prefix", prefix, [one for one, _ in rivals])]
    for index, after in enumerate(prefix.by_prefix):
        theirs = [one.by_prefix[index] for one, _ in rivals]
        rows.append(row(f"after the first {after.prefix}", f"after {after.prefix} tokens", after, theirs))
    show_table("Predictive: each token from the text before it alone", columns, rows)
    if found.floor and not found.floor.by_prefix:
        say("No floor is known of what comes after a beginning: not each of its words is one token.")


def _show_reference(reference: Reference) -> None:
    rows = [
        ["nats a token", _figure(reference)],
        ["perplexity", nats(reference.perplexity, 2)],
        ["perplexity as published (mean over sequences)", nats(reference.published_perplexity, 2)],
    ]
    show_table(f"Reference protocol: {reference.label}", ["", "not a bound"], rows)


def _show_floor(found: Evaluation) -> None:
    """The text's own entropy, and how far above it everything stands."""
    floor = found.floor
    assert floor is not None
    best = f"best with {floor.window} tokens in sight ({len(floor.windowed.sequence_nats)} documents)"
    columns = ["nats a token", "", "above the floor", *(["of the way from the twin"] if found.closed else [])]
    rows = [["floor: the text's entropy, exactly", _figure(floor)], [best, _figure(floor.windowed)]]
    for name, gap in found.above_floor.items():
        if not name.startswith("after "):  # those have a floor of their own, in a table of their own
            rows.append([name, nats(floor.nats_per_token + gap.nats_per_token), _gap(gap), _way(found, name)])
    rows = [[*row, "", ""][: len(columns)] for row in rows]
    show_table("Above the floor: what is left to learn, or to infer", columns, rows)


def _figure(figure: Figure | Bound) -> str:
    return nats(figure.nats_per_token) + margin(figure.nats_per_token_stderr)


def _way(found: Evaluation, name: str) -> str:
    """Percent of the distance from twin to floor that a figure has closed."""
    closed = found.closed.get(name)
    return f"{100 * closed.share:.1f}{margin(100 * closed.stderr, 1)}%" if closed else ""


def _gap(gap: Difference | None) -> str:
    return nats(gap.nats_per_token) + margin(gap.stderr) if gap else nats(math.nan)
