"""A run's report: its figures as JSON, pictures, and one HTML page that opens from disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_ltm.config import dump_toml
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors, write_text
from pyro_ltm.locks import locked
from pyro_ltm.reports.figures import number, plus_minus
from pyro_ltm.reports.html import document, heading, listing, paragraphs, pictures, quote, section, table, text
from pyro_ltm.reports.plots import Pictures, write_pictures
from pyro_ltm.reports.protocol_plots import CAPTIONS as LIKELIHOODS
from pyro_ltm.reports.protocol_plots import draw_evaluation, levels
from pyro_ltm.reports.thoughts_plots import draw_thoughts, how_measured
from pyro_ltm.reports.training_plots import training_picture
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.dependence import describe_blocks
from pyro_ltm.thoughts.diagnostics import RATE, VARIANCES
from pyro_ltm.thoughts.report import Corpus, ReportOptions, report_figures

PAGE, FIGURES = "report.html", "report.json"

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
    "the others drawn from the prior; a predicted token is the likeliest, given the true ones before.",
    "exchange rate": "Nats of distortion saved for each nat of rate, against thoughts all zero. Against a twin, which "
    "`evaluate --twin` scores, it is lower: a decoder that leans on its thoughts is worse without them.",
    "probe": "A linear classifier reads a label off the posterior means of texts that it never saw; to compare with, "
    "the share of the commonest value, the accuracy on shuffled labels, and the same classifier on features that cost "
    "less: thoughts under an untrained decoder, a bag of words (TF-IDF of the tokens, 64 singular vectors), the mean "
    "of the model's token embeddings, and other texts' thoughts.",
    "map": "Posterior means on their two principal axes.",
    "interpolation": "Texts written, the likeliest token each time, from thoughts between those of two texts: on a "
    "straight line, and on the sphere, which keeps a length that the prior draws.",
    "arithmetic": "What is written from the thoughts of the first text minus the second plus the third, and the texts "
    "at hand whose thoughts lie nearest to that.",
}


def write_report(
    run: Run,
    corpus: Corpus | None,
    options: ReportOptions | None = None,
    *,
    evaluation: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Writes `report.html`, `report.json` and the pictures into `out` (RUN/report): the page, and what the JSON says.

    Args:
        corpus: whose thoughts to look at; None will do for a run without thoughts.
        evaluation: the likelihoods to show, of `read_evaluation`.

    Raises:
        UserError: a text is too long, there are no sequences, or the folder cannot be written.
    """
    out = out or run.folder / "report"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder")
    _check_ours(out)
    found, thoughts_map = report_figures(run, corpus, options or ReportOptions(), progress=progress)
    figures = draw_thoughts(found, thoughts_map) if "thoughts" in found else {}
    figures |= draw_evaluation(evaluation) if evaluation else {}
    with locked(out):
        with clear_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        # The figures come first: by them the folder is known as a report's. The page shows all, so it comes last.
        write_text(out / FIGURES, json.dumps(found, indent=2, allow_nan=False) + "\n")
        drawn = write_pictures(figures, out)
        if training := training_picture(run.folder):
            drawn["training"] = training
        write_text(out / PAGE, render(found, drawn, settings=dump_toml(run.config), evaluation=evaluation))
    return out / PAGE, found


def _check_ours(out: Path) -> None:
    """Raises UserError when a page, figures or pictures lie in `out` that no report has left there."""
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if FIGURES in names:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((out / FIGURES).read_text(encoding="utf-8"))
            if isinstance(found, dict) and {"run", "step", "notes"} <= found.keys():
                return
    if strangers := [name for name in names if name in (PAGE, FIGURES) or name.endswith(".png")]:
        raise UserError(f"{out}: has a {strangers[0]} that is of no report, so it is left alone; choose another --out")


def render(
    result: Mapping[str, Any], drawn: Pictures, *, settings: str, evaluation: Mapping[str, Any] | None = None
) -> str:
    """The page.

    Args:
        result: what `report.json` says. drawn: PNG and caption by name, the curves of `training` among them.
        settings: the run's, in TOML. evaluation: what `evaluate` found of it.
    """
    title = f"{Path(result['run']).name}: a latent-thought language model"
    found = result.get("thoughts")
    rest = {name: one for name, one in drawn.items() if name != "training" and name not in LIKELIHOODS}

    def shown(*names: str) -> str:
        return pictures({name: drawn[name] for name in names if name in drawn})

    parts = [heading(title, _lead(result))]
    parts += [section("Likelihood", likelihoods(evaluation), shown(*LIKELIHOODS))] if evaluation else []
    parts += [section("Training", shown("training"))]
    if found:
        parts += [section("Thoughts", _numbers(found), pictures(rest))]
        parts += [_probes(result["probes"]), _reconstructions(result["reconstructions"])]
        parts += [_interpolation(result["interpolation"]), _arithmetic(result["arithmetic"])]
    parts += [section("Written from the prior", *map(quote, result["samples"]))]
    parts += [section("What each figure means", listing(MEANINGS))] if found else []
    parts += [section("Settings", f"<pre>{text(settings)}</pre>")]
    return document(title, parts)


def _lead(result: Mapping[str, Any]) -> list[str]:
    lines = [f"Step {result['step']}; data: {result['data']}; seed {result['seed']}."]
    found = result.get("thoughts")
    if not found:
        lines.append("It has no thoughts.")
    else:
        lines.append(
            f"Thoughts carry {found['rate']['mean']:.2f} nats a sequence, of which at least "
            f"{found['mutual_information']['mean']:.2f} tell sequences apart (ceiling {found['ceiling']:.2f})."
        )
        cost = found["costs"].get("shuffled")
        if cost:
            lines.append(f"With another sequence's thoughts a token costs {_pm(cost, 4, 'nats_per_token')} nats more.")
        changed = f"; fitted with {', '.join(result['settings'])}" if "settings" in result else ""
        lines.append(f"{how_measured(found)}{changed}.")
    return [*lines, *result["notes"]]


def likelihoods(evaluation: Mapping[str, Any]) -> str:
    """The figures of `evaluate --json` as a table, each with what it is, and how they were measured."""
    found = levels(evaluation)
    if "floor" in evaluation:
        floor = evaluation["floor"]
        found[f"best predictor with {floor['window']} tokens in sight"] = floor["windowed"]
        found["floor: the text's entropy"] = floor
    distances = {"below_twin": "below the twin", "above_floor": "above the floor", "closed": "of the way"}
    gaps = {title: evaluation[name] for name, title in distances.items() if evaluation.get(name)}
    rows = []
    for name, one in found.items():
        row = [name, plus_minus(one["nats_per_token"], one.get("nats_per_token_stderr"), 4)]
        rows.append(row + [_distance(by_figure.get(one.get("key"))) for by_figure in gaps.values()])
    return table(["figure", "nats a token", *gaps], rows, words=1) + paragraphs([_how_scored(evaluation)])


def _how_scored(evaluation: Mapping[str, Any]) -> str:
    own = next(evaluation[name] for name in ("bound", "prefix", "reference") if name in evaluation)
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
    return f"{'; '.join(how)}. ± is the standard error over {describe_blocks(own.get('blocks'))}."


def _distance(gap: Mapping[str, Any] | None) -> str:
    """Nats a token, or the share of the way from twin to floor in percent."""
    if not gap:
        return ""
    if "share" not in gap:
        return _pm(gap, 4, "nats_per_token")
    return _pm({name: 100 * gap[name] for name in ("share", "stderr")}, 1, "share") + "%"


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
    exchange = found.get("exchange_rate")
    shown = _pm(exchange, 2, "nats_per_nat") if exchange else f"none: {found.get('no_exchange_rate', 'not measured')}"
    rows.append(["exchange rate, nats saved a nat of rate", shown])
    for count, shares in found["active"].items():
        shown = ", ".join(f"{share:.0%}" for share in shares) if shares else "not known"
        rows.append([f"active, by layer: {count}", shown])
    for name, one in found["distortion"].items():
        cost = found["costs"].get(name)
        more = f", {_pm(cost, 4, 'nats_per_token')} above its own" if cost else ""
        rows.append([f"distortion, nats a token, thoughts: {name}", _pm(one, 4) + more])
    error = f"± is the standard error; that of the rate is over {describe_blocks(found['rate'].get('blocks'))}."
    return table(["figure", ""], rows, words=1) + paragraphs([error])


def _probes(probes: Sequence[Mapping[str, Any]]) -> str:
    columns = ["label", "values", "texts", "accuracy", "commonest", "shuffled", "remark"]
    rows = [[probe["label"], *_probed(probe)] for probe in probes]
    shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    listed = table(columns[:shown], [row[:shown] for row in rows], words=1) if rows else ""
    verdicts = [probe["verdict"] for probe in probes if probe.get("verdict")]
    return section("Labels read off the thoughts", listed, _beside(probes), paragraphs(verdicts))


def _beside(probes: Sequence[Mapping[str, Any]]) -> str:
    """The same labels read off features that cost less."""
    compared = [probe for probe in probes if probe.get("baselines")]
    if not compared:
        return ""
    names = list(compared[0]["baselines"])
    rows = [
        [one["label"], *(_pm(each, 3, "accuracy") for each in (one, *(one["baselines"][name] for name in names)))]
        for one in compared
    ]
    return table(["label", "thoughts", *names], rows, words=1)


def _probed(probe: Mapping[str, Any]) -> list[str]:
    if "problem" in probe:
        return ["", "", "", "", "", probe["problem"]]
    shares = [_pm(probe, 3, "accuracy"), number(probe["majority"]), number(probe["control"])]
    return [str(probe["classes"]), str(probe["texts"]), *shares, ""]


def _reconstructions(found: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for one in found:
        again = f"again, {one['token_accuracy']:.0%} of {one['tokens']} tokens in place:"
        parts.append(quote(one["original"]) + paragraphs([again]) + quote(one["text"]))
    return section("Written again from their own thoughts", *parts)


def _interpolation(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    ways = []
    for way in ("linear", "spherical"):
        shares = [f"{share:.0%} of the second, {way}" for share in found["shares"]]
        ways.append(listing(dict(zip(shares, found[way], strict=True))))
    return section("On the way from one text's thoughts to another's", *map(quote, found["texts"]), *ways)


def _arithmetic(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    first, second, third = found["texts"]
    entries = {"first": first, "- second": second, "+ third": third, "what is written from that": found["written"]}
    entries |= {
        f"text {rank} by its distance, {one['distance']:.2f}": one["text"]
        for rank, one in enumerate(found["nearest"], 1)
    }
    return section("The first text's thoughts - the second's + the third's", listing(entries))


def _pm(figure: Mapping[str, Any], digits: int = 3, name: str = "mean") -> str:
    return plus_minus(figure[name], figure["stderr"], digits)
