"""Tables of what `python -m benchmarks.representations` measured, by the name that marks each in a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import pages
from pyro_ltm.scores.exchange import ExchangeRate, exchange_rate

Rows = Mapping[str, Any]


def tables(rows: Rows) -> dict[str, str]:
    """By the name that marks each in a page."""
    return {"representations": features(rows), "rate": rates(rows), "rate causes": causes(rows)}


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


def spread(values: list[float], digits: int = 3) -> str:
    """The mean; and of several the lowest and the highest."""
    shown = f"{statistics.mean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def rates(rows: Rows) -> str:
    """A row for each preset with thoughts on the four kinds: means over seeds, and the lowest and the highest."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for row in rows.values():
        if row["texts"] == "four-kinds" and row.get("rate") and not row["dial"]:
            found.setdefault(row["features_named"], []).append(figures(row, rows))
    columns = ["model", "seeds", "rate", "saved a nat, against the twin", "bound", "twin", "tokens written again"]
    keys = ("rate", "saved", "bound", "twin")
    lines = []
    for name, each in sorted(found.items()):
        again, chance = (mean(each, key) for key in ("again", "by_chance"))
        shown = [spread([one[key] for one in each], 1 if key == "rate" else 2) for key in keys]
        lines.append([name, len(each), *shown, f"{again:.2f} (by chance {chance:.2f})"])
    return pages.table(columns, lines)


def causes(rows: Rows) -> str:
    """A row for each change of the preset on the four kinds, beside the preset itself, by what a nat of rate saves."""
    columns = ["what is changed", "seed", "rate", "saved a nat, against the twin", "bound", "twin", "probe"]
    columns += ["neighbours", "tokens written again (by chance)"]
    lines = []
    for row in rows.values():
        if row["texts"] == "four-kinds" and row.get("rate") and (row["dial"] or row["preset"] == "nano-thoughts"):
            found = figures(row, rows)
            shown = [f"{found[key]:.3f}" for key in ("bound", "twin", "probe", "neighbours")]
            saved = f"{found['saved']:.2f} ± {found['saved_stderr']:.2f}"
            rate, again = f"{found['rate']:.1f} ± {row['rate_stderr']:.1f}", f"{found['again']:.2f}"
            cells = [rate, saved, *shown, f"{again} ({found['by_chance']:.2f})"]
            lines.append((found["saved"], [row["features_named"], row["seed"], *cells]))
    lines.sort(key=lambda line: (math.isnan(line[0]), -line[0]))
    return pages.table(columns, [line for _, line in lines])


def figures(row: Mapping[str, Any], rows: Rows) -> dict[str, float]:
    """The figures of a row with thoughts, for tables: not a number where they need a twin that is missing."""
    twin, found = twin_of(row, rows), row["features"][row["features_named"]]["kind"]
    exchanged, again = exchange(row, twin), row["written_again"]
    return {
        "rate": row["rate"],
        "saved": exchanged.nats_per_nat if exchanged else math.nan,
        "saved_stderr": (exchanged and exchanged.stderr) or math.nan,
        "bound": row["nats_per_token"],
        "twin": twin["nats_per_token"] if twin else math.nan,
        "probe": found["probe"],
        "neighbours": found["neighbours"],
        "again": again["shared"],
        "by_chance": again["by_chance"],
    }


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


def exchange(row: Mapping[str, Any], twin: Mapping[str, Any] | None) -> ExchangeRate | None:
    """Nats of distortion saved a nat of rate, and its standard error over texts."""
    if twin is None:
        return None
    nats, rates, without = (torch.tensor(one).double() for one in (row["nats"], row["rates"], twin["nats"]))
    return exchange_rate(without, nats - rates, rates, None)


def line(row: Mapping[str, Any], rows: Rows) -> str:
    """What came of a row, for whoever watches."""
    parts = [f"{row['texts']}, {row['features_named']}, seed {row['seed']}:"]
    if row.get("rate"):
        saved = exchange(row, twin_of(row, rows))
        parts.append(f"rate {row['rate']:.1f}, saved a nat {saved.nats_per_nat if saved else math.nan:.2f},")
    for name, labels in row.get("features", {}).items():
        parts += [f"{name} {label} {figures['probe']:.3f}" for label, figures in labels.items()]
    return " ".join(parts)
