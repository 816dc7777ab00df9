"""A run's report: what its thoughts carry, as JSON, pictures and one page that opens from disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pyro_ltm.config import dump_toml
from pyro_ltm.data import TokenDataset, World
from pyro_ltm.errors import UserError
from pyro_ltm.evaluation.diagnostics import THRESHOLDS, Thoughts, diagnose
from pyro_ltm.evaluation.figure import plain
from pyro_ltm.evaluation.html import document, listing, picture, table, text, to_png, write_bytes
from pyro_ltm.evaluation.probes import between, linear_probe, nearest, principal_components
from pyro_ltm.evaluation.protocol_plots import levels
from pyro_ltm.evaluation.thought_plots import plot_distortions, plot_layers, plot_map, plot_probes, plot_rates
from pyro_ltm.files import clear_errors, write_atomically, write_text
from pyro_ltm.model import Sampler
from pyro_ltm.noise import fold
from pyro_ltm.training.run import Run, dataset_batches
from pyro_ltm.types import Batch

PAGE = "report.html"
WAY = 5
"""Steps from one text's thoughts to another's, ends included."""

MEANINGS = {
    "rate": "KL(q || prior): nats that a sequence's thoughts carry, exact where the family allows it.",
    "mutual information": "How many of those nats tell sequences apart: E log q(z|x) - log mean_j q(z|x_j). It cannot "
    "exceed the log of the number of sequences, its ceiling; near it read it as 'at least'. The rest of the rate is "
    "the marginal KL: thoughts that are not where the prior would draw them.",
    "active": "Share of dimensions whose posterior mean varies over sequences by more than "
    f"{THRESHOLDS[0]} (arXiv:1509.00519), and by more than {THRESHOLDS[1]}.",
    "distortion": "Nats a token that are left when the thoughts are known: the sequence's own, drawn from the prior, "
    "all zero, or another sequence's. If they are alike, the decoder ignores its thoughts.",
    "by layer": "Progressive reconstruction (arXiv:2502.01567): thoughts of so many layers at their posterior mean, "
    "the others drawn from the prior.",
    "probe": "A linear classifier reads a label off the posterior means of texts that it never saw, beside the "
    "commonest value and beside labels that were shuffled.",
    "map": "Posterior means on their two principal axes.",
}


def write_report(
    run: Run,
    data: TokenDataset,
    *,
    sequences: int = 256,
    fast_steps: int | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    texts: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    out: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Writes `report.html`, `report.json` and the pictures into `out` (RUN/report): the page, and what the JSON says.

    Args:
        data: whose first `sequences` are looked at, unless `texts` are given.
        labels: of each text, by the label's name; of a world its factors, when None.
        texts: to look at instead of `data`; cut at the model's length.

    Raises:
        UserError: the data do not fit the model, or the folder cannot be written.
    """
    out = out or run.folder / "report"
    result: dict[str, Any] = {"run": str(run.folder), "step": run.step, "seed": seed, "data": str(data.folder.path)}
    figures: dict[str, tuple[Figure | None, str]] = {}
    if run.config.model.thoughts:
        batches = _batches(run, data, texts, sequences, batch_size)
        known = [_decoded(run, batch, row) for batch in batches for row in range(batch.size)]
        labels = labels if labels is not None else _factors(data, known) if texts is None else {}
        thoughts = Thoughts.fit(run.parts, batches, fast_steps=fast_steps, seed=seed, progress=progress)
        result["thoughts"] = diagnose(thoughts, fast_steps=fast_steps).to_dict()
        result["probes"] = _probes(thoughts.means, labels, seed)
        result |= _between(run, thoughts.means, known)
        result["reconstructions"] = [_reconstructed(run, one, fast_steps, seed) for one in known[:3]]
        figures = _figures(result, thoughts.means, labels)
    samples = run.generate(num=3, max_new_tokens=min(80, run.config.model.max_length - 1), seed=seed)
    result["samples"] = [sample.text for sample in samples]
    evaluation = _evaluation(run)
    pictures = _write(out, figures)
    write_text(out / "report.json", json.dumps(result, indent=2) + "\n")
    page = out / PAGE
    write_text(page, render(run, result, pictures, evaluation))
    return page, result


def _batches(run: Run, data: TokenDataset, texts: Sequence[str] | None, sequences: int, batch_size: int) -> list[Batch]:
    if texts is None:
        return list(dataset_batches(data, batch_size, run.parts.device, limit=sequences))
    end, longest = run.tokenizer.end_of_text, run.config.model.max_length
    encoded = [[end, *run.tokenizer.encode(one), end][: longest + 1] for one in texts[:sequences]]
    batches = []
    for start in range(0, len(encoded), batch_size):
        part = Batch.from_lists(encoded[start : start + batch_size], pad=end)
        ids = start + part.ids
        batches.append(dataclasses.replace(part, ids=ids).to(run.parts.device))
    return batches


def _decoded(run: Run, batch: Batch, row: int) -> str:
    assert batch.targets is not None  # data have targets
    return run.tokenizer.decode(batch.targets[row][batch.mask[row]].tolist())


def _factors(data: TokenDataset, texts: Sequence[str]) -> dict[str, list[str]]:
    """The true factors of a world's documents; nothing for other text."""
    world = World.of(data.folder)
    known = world.factors_of(data.folder, texts) if world else None
    return known or {}


def _probes(means: Tensor, labels: Mapping[str, Sequence[str]], seed: int) -> list[dict[str, Any]]:
    found = []
    for name, values in labels.items():
        try:
            found.append(plain(linear_probe(means, list(values[: len(means)]), name=name, seed=fold(seed, name))))
        except UserError as error:
            found.append({"label": name, "problem": str(error)})
    return found


def _between(run: Run, means: Tensor, texts: Sequence[str]) -> dict[str, Any]:
    """Texts on the way from the first to the second, and what lies nearest to first - second + third."""
    if len(means) < 2:
        return {"interpolation": [], "arithmetic": None}
    path = between(means[0], means[1], WAY)
    length = min(80, run.config.model.max_length - 1)
    written = run.generate(thoughts=path, max_new_tokens=length, sampler=Sampler(temperature=0))
    found: dict[str, Any] = {"interpolation": [one.text for one in written], "interpolated": list(texts[:2])}
    if len(means) > 3:
        query = means[0] - means[1] + means[2]
        rows = [row for row in nearest(query, means, 6) if row > 2][:3]
        found["arithmetic"] = {"of": list(texts[:3]), "nearest": [texts[row] for row in rows]}
    return found


def _reconstructed(run: Run, original: str, fast_steps: int | None, seed: int) -> dict[str, Any]:
    try:
        return plain(run.reconstruct(original, fast_steps=fast_steps, seed=seed))
    except UserError as error:  # a piece of a long document may be too long with its end
        return {"original": original, "text": "", "problem": str(error)}


def _figures(
    result: dict[str, Any], means: Tensor, labels: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Figure | None, str]]:
    found = result["thoughts"]
    points, shares = principal_components(means)
    figures: dict[str, tuple[Figure | None, str]] = {
        "rates": (plot_rates(found), "What each thought carries."),
        "distortion": (plot_distortions(found), "Distortion with whose thoughts: alike, if the decoder ignores them."),
        "layers": (plot_layers(found), "Progressive reconstruction: the other layers' thoughts are the prior's."),
    }
    told = [probe for probe in result["probes"] if "accuracy" in probe]
    if told:
        figures["probes"] = plot_probes(told), "Labels read off the thoughts by a linear classifier."
    if points.shape[1] == 2:
        for name, values in (labels or {"": []}).items():
            chosen = list(values) if name else None
            figure = plot_map(points.tolist(), chosen, name, shares.tolist())
            figures[f"map-{name}" if name else "map"] = (
                figure,
                f"A map of the thoughts{', by ' + name if name else ''}.",
            )
    return figures


def _evaluation(run: Run) -> dict[str, Any] | None:
    """What `evaluate` has found of this run."""
    try:
        found: dict[str, Any] = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _write(out: Path, figures: Mapping[str, tuple[Figure | None, str]]) -> dict[str, tuple[bytes, str]]:
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, (figure, caption) in figures.items():
        if figure is not None:
            pictures[name] = to_png(figure), caption
            write_atomically(out / f"{name}.png", partial(write_bytes, pictures[name][0]))
    return pictures


def render(
    run: Run, result: dict[str, Any], pictures: Mapping[str, tuple[bytes, str]], evaluation: dict[str, Any] | None
) -> str:
    """The page."""
    title = f"{run.folder.name}: a latent-thought language model"
    parts = [f"<h1>{text(title)}</h1>", f'<div class="lead">{_lead(run, result)}</div>']
    if evaluation:
        parts += ["<h2>Likelihood</h2>", _levels(evaluation)]
    training = run.folder / "plots" / "training.png"
    if training.is_file():
        parts += ["<h2>Training</h2>", picture("training", training.read_bytes(), "Bounds, distortion and rate.")]
    if pictures:
        parts += ["<h2>Thoughts</h2>", _numbers(result["thoughts"]), _probe_table(result["probes"])]
        parts += [picture(name, content, caption) for name, (content, caption) in pictures.items()]
        parts += _texts(result)
    parts += ["<h2>Written from the prior</h2>", "".join(_quote(sample) for sample in result["samples"])]
    parts += ["<h2>What each figure means</h2>", listing(MEANINGS)] if pictures else []
    parts += ["<h2>Settings</h2>", f"<pre>{text(dump_toml(run.config))}</pre>"]
    return document(title, parts)


def _lead(run: Run, result: dict[str, Any]) -> str:
    lines = [f"Step {run.step}; data: {result['data']}; seed {result['seed']}."]
    found = result.get("thoughts")
    if not found:
        lines.append("It has no thoughts: an autoregressive twin.")
    else:
        own, other = found["distortion"]["q"]["mean"], found["distortion"].get("shuffled", {}).get("mean")
        lines.append(
            f"Thoughts carry {found['rate']['mean']:.2f} nats a sequence, of which at least "
            f"{found['mutual_information']['mean']:.2f} tell sequences apart (ceiling {found['ceiling']:.2f})."
        )
        if other is not None:
            lines.append(f"With another sequence's thoughts a token costs {other - own:.3f} nats more.")
        lines.append(
            f"{found['sequences']} sequences, {found['fast_steps']} fast steps of {found['guide']}, fresh noise."
        )
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _levels(evaluation: dict[str, Any]) -> str:
    """The figures of `evaluate`, each with what it is."""
    rows = [
        [name, f"{one['nats_per_token']:.4f} ± {one.get('nats_per_token_stderr') or 0:.4f}"]
        for name, one in levels(evaluation).items()
    ]
    if "floor" in evaluation:
        rows.append(["floor: the text's entropy", f"{evaluation['floor']['nats_per_token']:.4f}"])
    return table(["figure", "nats a token"], rows, words=1)


def _numbers(found: dict[str, Any]) -> str:
    rows = [["rate, nats a sequence", _pm(found["rate"])]]
    rows += [[f"  layer {n}", _pm(rate)] for n, rate in enumerate(found["rate_by_layer"] or [], 1)]
    rows += [
        [f"mutual information (at most {found['ceiling']:.2f})", _pm(found["mutual_information"])],
        ["marginal KL", f"{found['marginal_kl']:.3f}"],
    ]
    for level, shares in found["active"].items():
        rows += [[f"active (variance over {level}), layer {n}", f"{s:.0%}"] for n, s in enumerate(shares, 1)]
    rows += [[f"distortion, thoughts from {name}", _pm(one, 4)] for name, one in found["distortion"].items()]
    return table(["figure", "nats"], rows, words=1)


def _probe_table(probes: Sequence[dict[str, Any]]) -> str:
    rows = [[p["label"], *_told(p)] for p in probes]
    return table(["label", "values", "told right", "commonest", "shuffled"], rows, words=1) if rows else ""


def _told(probe: dict[str, Any]) -> list[str]:
    if "problem" in probe:
        return [probe["problem"], "", "", ""]
    told = f"{probe['accuracy']:.3f} ± {probe['stderr']:.3f}"
    return [str(probe["classes"]), told, f"{probe['majority']:.3f}", f"{probe['control']:.3f}"]


def _texts(result: dict[str, Any]) -> list[str]:
    parts = ["<h2>Written again from their own thoughts</h2>"]
    for one in result["reconstructions"]:
        accuracy = f" ({one['token_accuracy']:.0%} of tokens in place)" if "token_accuracy" in one else ""
        parts.append(_quote(one["original"]) + f"<p>again{text(accuracy)}:</p>" + _quote(one["text"]))
    if result["interpolation"]:
        parts.append("<h2>On the way from the first text's thoughts to the second's</h2>")
        parts += [_quote(one) for one in result["interpolation"]]
    if result.get("arithmetic"):
        parts.append("<h2>Nearest to the thoughts of the first text - second + third</h2>")
        parts += [_quote(one) for one in result["arithmetic"]["nearest"]]
    return parts


def _quote(content: str) -> str:
    return f"<blockquote>{text(content)}</blockquote>"


def _pm(mean: dict[str, Any], digits: int = 3) -> str:
    error = "" if mean["stderr"] is None else f" ± {mean['stderr']:.{digits}f}"
    return f"{mean['mean']:.{digits}f}{error}"
