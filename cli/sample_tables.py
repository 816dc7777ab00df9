"""Tables of written texts: figures of a set of them, and of continuations of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .output import margin, nats, say, show_table

if TYPE_CHECKING:
    from pyro_ltm.tasks.conditional import Continuations
    from pyro_ltm.tasks.written_texts import Samples


def show_samples(found: Samples) -> None:
    """Figures of the texts and of the reference beside them."""
    columns = ["", "these", *(["reference"] if found.reference_metrics else [])]
    show_table("Texts", columns, _metric_rows(found) + (_level_rows(found) if found.generative else []))
    if found.no_bytes:
        say(f"No bits a byte under the scorer: {found.no_bytes}.")
    how = found.generative
    if hasattr(how, "window"):  # a Hugging Face model's
        first = f"each text after {how.start}" if how.start is not None else "the first token of each text is given"
        longer = f"; {how.windowed} longer than that, in windows moved by {how.stride}" if how.windowed else ""
        say(f"Scored: {first}; {how.window} tokens at a time{longer}")
    elif how is not None and how.sequences > found.metrics.texts:
        say(f"Scored: in {how.sequences:,} sequences, for some texts are longer than the scorer reads at once")
    if found.mauve:
        one = found.mauve
        say(f"MAUVE {one.score:.3f} ± {one.spread:.3f} over {one.seeds} seeds ({found.features})")
    if speed := found.speed:
        say(
            f"{speed.tokens:,} tokens in {speed.seconds:.2f} s: {speed.tokens_per_second:,.0f} a second, "
            f"{speed.batch_size} texts at a time, {speed.threads} threads, {speed.device}"
        )


def _metric_rows(found: Samples) -> list[list[str]]:
    """Figures of the texts and of the reference, with their errors."""
    both = [one for one in (found.metrics, found.reference_metrics) if one]

    def row(name: str, figure: str, n: int | None = None) -> list[str]:
        cells = []
        for one in both:
            level, error = getattr(one, figure), (one.stderr or {}).get(figure)
            if n:
                level, error = level[str(n)], error and error[str(n)]
            cells.append(nats(level, 3) + ("" if error is None else margin(error, 3)))
        return [name, *cells]

    return [
        ["texts", *(f"{one.texts:,}" for one in both)],
        ["words", *(f"{one.words:,}" for one in both)],
        row("entropy of words, bits", "entropy_bits"),
        *(row(f"distinct-{n}", "distinct", n) for n in range(1, 5)),
        *(row(f"repetition of {n} words", "repetition", n) for n in (1, 4)),
        row("self-BLEU", "self_bleu"),
    ]


def _level_rows(found: Samples) -> list[list[str]]:
    """Nats, perplexity and bits of the texts and the reference under the scoring model."""
    scored = [found.generative, *([found.reference_generative] if found.reference_metrics else [])]
    kind = "exact" if found.generative_is_exact else "at most"
    levels = [nats(one.nats_per_token) + margin(one.nats_per_token_stderr) for one in scored]
    rows = [
        ["nats a token under the scorer", *levels],
        ["generative perplexity", *(nats(one.perplexity, 2) for one in scored)],
    ]
    if math.isfinite(found.generative.bits_per_byte):
        rows.append(["bits a byte", *(nats(one.bits_per_byte) for one in scored)])
    return [[f"{name}, {kind}", *cells] for name, *cells in rows]


def show_continuations(found: Mapping[str, Continuations], prompts: int, exact: bool | None, features: str) -> None:
    """A row for each side, and for what people wrote."""
    rows = [[name, *_cells(one)] for name, one in found.items()]
    columns = [
        "",
        "texts",
        "MAUVE",
        "bits a byte",
        "nats a token",
        "distinct-1",
        "distinct-2",
        "distinct-3",
        "s a token",
    ]
    # The kinds of text are the columns, few as they are: nine figures beside each other are wider than a terminal.
    turned = [[name, *(row[place] for row in rows)] for place, name in enumerate(columns) if place]
    show_table(f"Continuations of {prompts:,} prompts", ["", *(row[0] for row in rows)], turned)
    if exact is not None:
        how = "exact" if exact else "of the scorer's predictive distribution, thoughts fitted to the prompt alone"
        say(f"Bits and nats: of the continuation after its prompt, {how}.")
        say(f"MAUVE: of prompt and continuation together, its spread over quantizations ({features}).")
    reasons = {one.after_prompt.no_bytes for one in found.values() if one.after_prompt and one.after_prompt.no_bytes}
    for why in sorted(reasons):
        say(f"No bits a byte under the scorer: {why}.")


def _cells(one: Continuations) -> list[str]:
    metrics, after, close, speed = one.metrics, one.after_prompt, one.mauve, one.speed
    distinct = [nats(metrics.distinct[str(n)], 3) if metrics else "-" for n in range(1, 4)]
    return [
        f"{metrics.texts:,}" if metrics else "-",
        f"{close.score:.3f} ± {close.spread:.3f}" if close else "-",
        nats(after.bits_per_byte, 3) + margin(after.bits_per_byte_stderr, 3) if after else "-",
        nats(after.nats_per_token, 3) + margin(after.nats_per_token_stderr, 3) if after else "-",
        *distinct,
        f"{1 / speed.tokens_per_second:.2g}" if speed and speed.tokens else "-",
    ]
