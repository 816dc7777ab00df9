"""Tables of what `python -m benchmarks.representations` measured, by the name that marks each in a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import pages
from pyro_ltm.scores.exchange import ExchangeRate, exchange_rate
from pyro_ltm.thoughts.baselines import SHUFFLED

Rows = Mapping[str, Any]
ASKED = {"nano": "none", **{f"rate {nats}": str(nats) for nats in (5, 10, 20)}, "nano-thoughts": "40", "rate 80": "80"}
"""The rates that were asked for, by the name of the features, from the lowest."""


def tables(rows: Rows) -> dict[str, str]:
    """By the name that marks each in a page."""
    return {
        "representations": briefly(rows),
        "representations of each": features(rows),
        "rate": rates(rows),
        "rate causes": causes(rows),
    }


def by_features(rows: Rows) -> dict[tuple[str, str], dict[str, list[Mapping[str, float]]]]:
    """Figures of each seed, by set and label, and then by features, the best for a linear probe first."""
    found: dict[tuple[str, str], dict[str, list[Mapping[str, float]]]] = {}
    for row in rows.values():
        judged = {} if row["dial"] else row.get("features", {})
        for name, labels in judged.items():
            for label, figures in labels.items():
                found.setdefault((row["texts"], label), {}).setdefault(name, []).append(figures)
    return {
        key: dict(sorted(named.items(), key=lambda item: -mean(item[1], "probe")))
        for key, named in sorted(found.items())
    }


def briefly(rows: Rows) -> str:
    """Means over seeds of the linear probe and of the neighbours: a row for features, a column for a set and label.

    Sets of which no model was measured are left out, and so are shuffled thoughts, which tell what chance does.
    """
    found = {key: named for key, named in by_features(rows).items() if "nano-thoughts" in named}
    columns = ["linear probe, 10 nearest neighbours", *(f"{texts}: {label}" for texts, label in found)]
    lines = []
    for name in [name for name in next(iter(found.values()), {}) if name != SHUFFLED]:
        each = [named.get(name, []) for named in found.values()]
        cells = [f"{mean(one, 'probe'):.3f}, {mean(one, 'neighbours'):.3f}" if one else "-" for one in each]
        lines.append([name, *cells])
    return pages.table(columns, lines)


def features(rows: Rows) -> str:
    """A row for each set, label and features: means over seeds, and behind them the lowest and the highest."""
    columns = ["texts", "label", "features", "seeds", "linear probe", "10 nearest neighbours", "k-means, NMI"]
    lines = []
    for (texts, label), named in by_features(rows).items():
        for name, each in named.items():
            shown = [spread([one[key] for one in each]) for key in ("probe", "neighbours", "clusters")]
            lines.append([texts, label, name, len(each), *shown])
    return pages.table(columns, lines)


def mean(each: list[Mapping[str, float]], key: str) -> float:
    """Over the seeds of which it is known, else not a number."""
    known = [one[key] for one in each if not math.isnan(one[key])]
    return statistics.mean(known) if known else math.nan


def spread(values: list[float], digits: int = 3) -> str:
    """The mean; and of several the lowest and the highest."""
    shown = f"{statistics.mean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def dial(rows: Rows) -> dict[str, list[Mapping[str, float]]]:
    """Figures on the four kinds by the rate that was asked for, each of one seed; of a rate the twin's of each too.

    The lowest is `nano`, which asks for none; the preset `nano-thoughts` asks for 40.
    """
    found: dict[str, list[Mapping[str, float]]] = {}
    for row in rows.values():
        if row["texts"] == "four-kinds" and (asked := ASKED.get(row["features_named"])) and row.get("rate"):
            found.setdefault(asked, []).append(figures(row, rows))
    return {asked: found[asked] for asked in ASKED.values() if asked in found}


def rates(rows: Rows) -> str:
    """A row for each rate that was asked for on the four kinds: means over seeds, and the lowest and the highest."""
    columns = ["asked for", "seeds", "rate", "saved a nat", "distortion", "bound", "probe, neighbours"]
    columns.append("written again (by chance)")
    lines = []
    for asked, each in dial(rows).items():
        shown = [spread([one["rate"] for one in each], 1), spread([one["saved"] for one in each], 2)]
        shown += [f"{mean(each, key):.2f}" for key in ("distortion", "bound")]
        shown.append(", ".join(f"{mean(each, key):.3f}" for key in ("probe", "neighbours")))
        shown.append(f"{mean(each, 'again'):.2f} ({mean(each, 'by_chance'):.2f})")
        lines.append([asked, len(each), *shown])
    return pages.table(columns, lines)


def causes(rows: Rows) -> str:
    """A row for each change of the preset on the four kinds, beside the preset itself, by what a nat of rate saves."""
    columns = ["what is changed", "seed", "rate", "saved a nat, against the twin", "bound", "twin", "probe"]
    columns += ["neighbours", "tokens written again (by chance)", "between two (from one; by chance)"]
    lines = []
    for row in rows.values():
        if row["texts"] == "four-kinds" and row.get("rate") and (row["dial"] or row["preset"] == "nano-thoughts"):
            found = figures(row, rows)
            shown = [f"{found[key]:.3f}" for key in ("bound", "twin", "probe", "neighbours")]
            saved = f"{found['saved']:.2f} ± {found['saved_stderr']:.2f}"
            rate, again = f"{found['rate']:.1f} ± {row['rate_stderr']:.1f}", f"{found['again']:.2f}"
            middle, end, other = (found[key] for key in ("midpoint", "end", "other"))
            between = "-" if math.isnan(middle) else f"{middle:.2f} ({end:.2f}; {other:.2f})"
            cells = [rate, saved, *shown, f"{again} ({found['by_chance']:.2f})", between]
            lines.append((found["saved"], [row["features_named"], row["seed"], *cells]))
    lines.sort(key=lambda line: (math.isnan(line[0]), -line[0]))
    return pages.table(columns, [line for _, line in lines])


def figures(row: Mapping[str, Any], rows: Rows) -> dict[str, float]:
    """The figures of a row with thoughts, for tables: not a number where they need a twin that is missing."""
    twin, found = twin_of(row, rows), row["features"][row["features_named"]]["kind"]
    exchanged, again, between = exchange(row, twin), row["written_again"], row.get("between", {})
    return {
        "rate": row["rate"],
        "saved": exchanged.nats_per_nat if exchanged else math.nan,
        "saved_stderr": (exchanged and exchanged.stderr) or math.nan,
        "distortion": row["distortion"],
        "bound": row["nats_per_token"],
        "twin": twin["nats_per_token"] if twin else math.nan,
        "probe": found["probe"],
        "neighbours": found["neighbours"],
        "again": again["shared"],
        "by_chance": again["by_chance"],
        "midpoint": between.get("midpoint", math.nan),
        "end": between.get("end", math.nan),
        "other": between.get("by_chance", math.nan),
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
