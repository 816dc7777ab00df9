"""Tables of what `python -m benchmarks.representations` measured, by the name that marks each in a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import pages
from pyro_ltm.scores import exchange_rate

Rows = Mapping[str, Any]


def tables(rows: Rows) -> dict[str, str]:
    """By the name that marks each in a page."""
    return {"representations": features(rows), "rate": dial(rows)}


def features(rows: Rows) -> str:
    """A row for each set, label and features: means over seeds, and behind them the lowest and the highest."""
    found: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for row in rows.values():
        judged = {} if row["dial"] else row.get("features", {})
        for name, labels in judged.items():
            for label, figures in labels.items():
                found.setdefault((row["texts"], label, name), []).append(figures)
    columns = ["texts", "label", "features", "seeds", "linear probe", "10 nearest neighbours", "k-means, NMI"]
    lines = []
    for (texts, label, name), each in sorted(found.items(), key=lambda item: (item[0][:2], -mean(item[1], "probe"))):
        shown = [spread([one[key] for one in each]) for key in ("probe", "neighbours", "clusters")]
        lines.append([texts, label, name, len(each), *shown])
    return pages.table(columns, lines)


def mean(each: list[Mapping[str, float]], key: str) -> float:
    """Over seeds."""
    return statistics.mean(one[key] for one in each)


def spread(values: list[float]) -> str:
    """The mean; and of several the lowest and the highest."""
    shown = f"{statistics.mean(values):.3f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.3f} to {max(values):.3f})"


def dial(rows: Rows) -> str:
    """A row for each model with thoughts on the four kinds, by its rate."""
    columns = ["model", "seed", "rate", "saved a nat, against the twin", "bound", "twin", "probe", "neighbours"]
    lines = []
    for row in sorted(rows.values(), key=lambda row: row.get("rate", 0.0)):
        if row["texts"] == "four-kinds" and row.get("rate"):
            twin = twin_of(row, rows)
            figures = row["features"][row["features_named"]]["kind"]
            lines.append(
                [
                    row["features_named"],
                    row["seed"],
                    f"{row['rate']:.1f} ± {row['rate_stderr']:.1f}",
                    exchange(row, twin),
                    f"{row['nats_per_token']:.3f}",
                    f"{twin['nats_per_token']:.3f}" if twin else "-",
                    f"{figures['probe']:.3f}",
                    f"{figures['neighbours']:.3f}",
                ]
            )
            again = row["written_again"]
            lines[-1] += [f"{again['shared']:.2f} ({again['by_chance']:.2f})"]
    return pages.table([*columns, "tokens written again (by chance)"], lines)


def twin_of(row: Mapping[str, Any], rows: Rows) -> Mapping[str, Any] | None:
    """The twin of the same texts and seed that has the same decoder and has learned likewise, else None."""
    for one in rows.values():
        same = all(one.get(key) == row.get(key) for key in ("texts", "seed", "slow", "slow_steps"))
        if one.get("twin") and same and decoder_settings(one) == decoder_settings(row):
            return one
    return None


def decoder_settings(row: Mapping[str, Any]) -> set[str]:
    """Those of a row's settings that a twin has, too."""
    own = ("model.thoughts=", "model.thought_dim=", "model.zero_cross_attention=", "slow.decoder_warmup=")
    return {one for one in row["settings"] if one.startswith(("model.", "slow")) and not one.startswith(own)}


def exchange(row: Mapping[str, Any], twin: Mapping[str, Any] | None) -> str:
    """Nats of distortion saved a nat of rate, and its standard error over texts."""
    if twin is None:
        return "-"
    nats, rates, without = (torch.tensor(one).double() for one in (row["nats"], row["rates"], twin["nats"]))
    found = exchange_rate(without, nats - rates, rates, None)
    return f"{found.nats_per_nat:.2f} ± {found.stderr:.2f}" if found else "-"


def line(row: Mapping[str, Any], rows: Rows) -> str:
    """What came of a row, for whoever watches."""
    parts = [f"{row['texts']}, {row['features_named']}, seed {row['seed']}:"]
    if row.get("rate"):
        parts.append(f"rate {row['rate']:.1f}, saved a nat {exchange(row, twin_of(row, rows))},")
    for name, labels in row.get("features", {}).items():
        parts += [f"{name} {label} {figures['probe']:.3f}" for label, figures in labels.items()]
    return " ".join(parts)
