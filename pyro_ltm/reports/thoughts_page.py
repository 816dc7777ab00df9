"""A run's report as one HTML page that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_ltm.reports.html import document, listing, picture, table, text
from pyro_ltm.reports.protocol_plots import CAPTIONS as LIKELIHOODS
from pyro_ltm.reports.protocol_plots import levels
from pyro_ltm.scores.dependence import told
from pyro_ltm.thoughts.diagnostics import RATE, VARIANCES

MEANINGS = {
    "rate": "KL(q || prior): nats that a sequence's thoughts carry; exact where the family allows it.",
    "mutual information": "How many of those nats tell sequences apart: E log q(z|x) - log mean_j q(z|x_j). It cannot "
    "exceed the log of the number of sequences, its ceiling; near it read it as 'at least'.",
    "marginal KL": "The rest of the rate: thoughts that are not, over the corpus, where the prior would draw them.",
    "active": f"Share of a layer's dimensions whose posterior mean varies over sequences by more than {VARIANCES[0]} "
    f"(arXiv:1509.00519), by more than {VARIANCES[1]}, and whose KL is more than {RATE} nats.",
    "distortion": "Nats a token that are left when the thoughts are known: the sequence's own, drawn from the prior, "
    "all zero, or another sequence's. If they are alike, the decoder ignores its thoughts.",
    "by layer": "Progressive reconstruction (arXiv:2502.01567): thoughts of so many layers at their posterior mean, "
    "the others drawn from the prior; tokens told right are the likeliest, given the true ones before.",
    "probe": "A linear classifier reads a label off the posterior means of texts that it never saw, beside the "
    "commonest value and beside labels that were shuffled.",
    "map": "Posterior means on their two principal axes.",
    "interpolation": "Texts written, the likeliest token each time, from thoughts between those of two texts: on a "
    "straight line, and on the sphere, which keeps a length that the prior draws.",
    "arithmetic": "What is written from the thoughts of the first text minus the second plus the third, and the texts "
    "at hand whose thoughts lie nearest to that.",
}


def render(
    result: Mapping[str, Any],
    pictures: Mapping[str, tuple[bytes, str]],
    *,
    settings: str,
    training: bytes | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        result: what `report.json` says. pictures: PNG and caption by name. settings: the run's, in TOML.
        training: the PNG of its curves. evaluation: what `evaluate` found of it.
    """
    title = f"{Path(result['run']).name}: a latent-thought language model"
    found = result.get("thoughts")
    parts = [f"<h1>{text(title)}</h1>", f'<div class="lead">{_lead(result)}</div>']
    if evaluation:
        parts += ["<h2>Likelihood</h2>", likelihoods(evaluation)]
        parts += [picture(name, *pictures[name]) for name in LIKELIHOODS if name in pictures]
    if training:
        parts += ["<h2>Training</h2>", picture("training", training, "Bounds, distortion and rate while it learned.")]
    if found:
        parts += ["<h2>Thoughts</h2>", _numbers(found)]
        parts += [picture(name, *one) for name, one in pictures.items() if name not in LIKELIHOODS]
        parts += [_probes(result["probes"]), _reconstructions(result["reconstructions"])]
        parts += [_interpolation(result["interpolation"]), _arithmetic(result["arithmetic"])]
    parts += ["<h2>Written from the prior</h2>", *map(_quote, result["samples"])]
    parts += ["<h2>What each figure means</h2>", listing(MEANINGS)] if found else []
    parts += ["<h2>Settings</h2>", f"<pre>{text(settings)}</pre>"]
    return document(title, parts)


def measured(found: Mapping[str, Any]) -> str:
    """How the figures of `Diagnostics.to_dict` were taken, on one line."""
    return (
        f"{found['sequences']:,} sequences, {found['tokens']:,} tokens; {found['fast_steps']} fast steps of "
        f"{found['guide']}; particles {found['particles']}, seed {found['seed']}, fresh noise"
    )


def _lead(result: Mapping[str, Any]) -> str:
    lines = [f"Step {result['step']}; data: {result['data']}; seed {result['seed']}."]
    found = result.get("thoughts")
    if not found:
        lines.append("It has no thoughts: an autoregressive twin.")
    else:
        lines.append(
            f"Thoughts carry {found['rate']['mean']:.2f} nats a sequence, of which at least "
            f"{found['mutual_information']['mean']:.2f} tell sequences apart (ceiling {found['ceiling']:.2f})."
        )
        cost = found["costs"].get("shuffled")
        if cost:
            lines.append(f"With another sequence's thoughts a token costs {_pm(cost, 4, 'nats_per_token')} nats more.")
        changed = f"; fitted with {', '.join(result['settings'])}" if "settings" in result else ""
        lines.append(f"{measured(found)}{changed}.")
    return "".join(f"<p>{text(line)}</p>" for line in [*lines, *result["notes"]])


def likelihoods(evaluation: Mapping[str, Any]) -> str:
    """The figures of `evaluate --json` as a table, each with what it is, and how they were measured."""
    found = levels(evaluation)
    own = evaluation[min(("bound", "prefix", "reference"), key=lambda key: key not in evaluation)]
    if "floor" in evaluation:
        floor = evaluation["floor"]
        found[f"best predictor with {floor['window']} tokens in sight"] = floor["windowed"]
        found["floor: the text's entropy"] = floor
    distances = {"below_twin": "below the twin", "above_floor": "above the floor", "closed": "of the way"}
    gaps = {title: evaluation[name] for name, title in distances.items() if evaluation.get(name)}
    rows = []
    for name, one in found.items():
        row = [name, _pm({"mean": one["nats_per_token"], "stderr": one.get("nats_per_token_stderr")}, 4)]
        beside = [gap.get(one.get("key")) for gap in gaps.values()]
        rows.append(row + [_distance(gap) if gap else "" for gap in beside])
    how = [
        f"Measured on {evaluation['data']}",
        f"{own['sequences']:,} sequences",
        f"{own['fast_steps']} fast steps",
        *([f"particles {own['particles']}"] if "particles" in own else []),
        f"seed {own['seed']}",
        *evaluation.get("settings", []),
    ]
    if (bound := evaluation.get("bound")) and bound["particles"] > 1:
        how.append(f"{bound['effective_sample_size']:.1f} of {bound['particles']} draws count")
    error = f"± is the standard error over {told(own.get('blocks'))}"
    return table(["figure", "nats a token", *gaps], rows, words=1) + f"<p>{text('; '.join(how))}. {text(error)}.</p>"


def _numbers(found: Mapping[str, Any]) -> str:
    rows = [["rate, nats a sequence", _pm(found["rate"])]]
    rates = found["rate_by_layer"]
    rows += [[f"rate of layer {n}", _pm(rate)] for n, rate in enumerate(rates or [], 1)]
    if rates is None:
        rows.append(["rate by layer", "not known: this family ties thoughts together"])
    rows += [
        [f"mutual information, at most {found['ceiling']:.3f}", _pm(found["mutual_information"])],
        ["marginal KL", _pm(found["marginal_kl"])],
    ]
    for count, shares in found["active"].items():
        shown = ", ".join(f"{share:.0%}" for share in shares) if shares else "not known"
        rows.append([f"active, by layer: {count}", shown])
    for name, one in found["distortion"].items():
        cost = found["costs"].get(name)
        more = f", {_pm(cost, 4, 'nats_per_token')} above its own" if cost else ""
        rows.append([f"distortion, nats a token, thoughts: {name}", _pm(one, 4) + more])
    error = f"± is the standard error; that of the rate is over {told(found['rate'].get('blocks'))}"
    return table(["figure", ""], rows, words=1) + f"<p>{text(error)}.</p>"


def _probes(probes: Sequence[Mapping[str, Any]]) -> str:
    rows = [[p["label"], *_told(p)] for p in probes]
    columns = ["label", "values", "texts", "told right", "commonest", "shuffled", "remark"]
    shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    parts = ["<h2>Labels read off the thoughts</h2>", table(columns[:shown], [row[:shown] for row in rows], words=1)]
    return "".join(parts) if rows else ""


def _told(probe: Mapping[str, Any]) -> list[str]:
    if "problem" in probe:
        return ["", "", "", "", "", probe["problem"]]
    told = f"{probe['accuracy']:.3f} ± {probe['stderr']:.3f}"
    return [str(probe["classes"]), str(probe["texts"]), told, f"{probe['majority']:.3f}", f"{probe['control']:.3f}", ""]


def _reconstructions(found: Sequence[Mapping[str, Any]]) -> str:
    parts = ["<h2>Written again from their own thoughts</h2>"]
    for one in found:
        again = f"again, {one['token_accuracy']:.0%} of {one['tokens']} tokens in place:"
        parts.append(_quote(one["original"]) + f"<p>{text(again)}</p>" + _quote(one["text"]))
    return "".join(parts)


def _interpolation(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    parts = ["<h2>On the way from one text's thoughts to another's</h2>", *map(_quote, found["texts"])]
    for way in ("linear", "spherical"):
        shares = [f"{share:.0%} of the second, {way}" for share in found["shares"]]
        parts.append(listing(dict(zip(shares, found[way], strict=True))))
    return "".join(parts)


def _arithmetic(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    first, second, third = found["texts"]
    entries = {"first": first, "- second": second, "+ third": third, "what is written from that": found["written"]}
    entries |= {
        f"text {number} by its distance, {one['distance']:.2f}": one["text"]
        for number, one in enumerate(found["nearest"], 1)
    }
    return "<h2>The first text's thoughts - the second's + the third's</h2>" + listing(entries)


def _quote(content: str) -> str:
    return f"<blockquote>{text(content)}</blockquote>"


def _distance(gap: Mapping[str, Any]) -> str:
    """Nats a token, or the share of the way from twin to floor in percent."""
    if "share" not in gap:
        return _pm(gap, 4, "nats_per_token")
    return _pm({name: 100 * gap[name] for name in ("share", "stderr")}, 1, "share") + "%"


def _pm(figure: Mapping[str, Any], digits: int = 3, name: str = "mean") -> str:
    error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.{digits}f}"
    return f"{figure[name]:.{digits}f}{error}"
