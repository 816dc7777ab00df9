"""`pyro-ltm score-samples`: written texts, scored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, common, examples, fast_steps, fit_settings, number, reading_options

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_ltm.data import Reading
    from pyro_ltm.tasks.written_texts import Samples, Scorer, Speed


@click.command(
    short_help="Score written texts: diversity, perplexity, MAUVE.",
    epilog=examples(
        "pyro-ltm score-samples --run runs/first --num 100 --scorer runs/twin",
        "pyro-ltm score-samples --texts written.jsonl --reference held-out.jsonl --scorer models/gpt2-large",
        "pyro-ltm score-samples --texts a.jsonl --scorer runs/first --fast-steps 64 --set optimizer.lr=0.1",
        "pyro-ltm score-samples --texts a.jsonl --features a.npy --reference-features b.npy --json",
    ),
)
@click.option("--run", "run_folder", type=FOLDER, metavar="RUN", help="A run that writes the texts, from the prior.")
@number("--num", "Texts for --run to write.", default=64)
@number("--max-new-tokens", "Length of each; default: the model's.")
@click.option("--temperature", metavar="X", type=click.FloatRange(0), default=1.0, help="0: the likeliest token.")
@click.option("--texts", "texts_file", type=FOLDER, metavar="FILE", help="Texts to score instead (.jsonl, .csv, ...).")
@click.option("--reference", type=FOLDER, metavar="FILE", help="Texts of people to hold them against.")
@reading_options
@click.option("--scorer", type=FOLDER, metavar="PATH", help="A run, or a Hugging Face model's folder, to score under.")
@click.option("--features", type=FOLDER, metavar="FILE.npy", help="Features of the texts, [n, d], for MAUVE.")
@click.option("--reference-features", type=FOLDER, metavar="FILE.npy", help="Features of the reference, [m, d].")
@number("--particles", "Draws of the scorer's bound.", default=16, metavar="K")
@click.option("--texts-out", type=FOLDER, metavar="FILE", help="Where to keep what --run wrote, .jsonl.")
@fast_steps
@fit_settings
@common(seed_help="Seed of the texts, of the scorer's noise and of MAUVE's buckets.", weights=True)
def command(
    *,
    run_folder: Path | None,
    texts_file: Path | None,
    texts_out: Path | None,
    reference: Path | None,
    reading: Reading,
    scorer: Path | None,
    features: Path | None,
    reference_features: Path | None,
    particles: int,
    fast_steps: int | None,
    settings: tuple[str, ...],
    common: Common,
    **writing: Any,
) -> None:
    """Scores texts, written by --run or read from --texts.

    Entropy, distinct n-grams, repetition, self-BLEU; generative perplexity under --scorer (exact for a twin and for a
    Hugging Face model, an upper bound for a model with thoughts); MAUVE on given features, or on the scorer's hidden
    states; and how fast --run writes.

    A Hugging Face model is a local folder with config.json, model.safetensors and tokenizer.json. It needs the extra:
    pip install -e '.[scorers]' in the clone.
    """
    if bool(run_folder) == bool(texts_file):
        raise click.UsageError("give either --run, which writes texts, or --texts, which holds them")
    from pyro_ltm.tasks.written_texts import score_samples

    from ..output import emit
    from ..runs import check_target

    if texts_out:
        check_target(texts_out, reference)
    pair = _features(features, reference_features)
    references = _read(reference, reading) if reference else None
    opened, scored_by = _open(scorer, common, settings, particles=particles, fast_steps=fast_steps)
    if run_folder:
        texts, speed, written_by = _write(run_folder, texts_out, common, **writing)
    else:
        assert texts_file is not None
        texts, speed, written_by = _read(texts_file, reading), None, {}
    seed = common.seed or 0
    found = score_samples(texts, reference=references, scorer=opened, features=pair, speed=speed, seed=seed)
    if common.as_json:
        of = {"run": run_folder, "texts": texts_file, "reference": reference, "scorer": scorer}
        emit({**found.to_dict(), **of, **scored_by, **written_by})
    else:
        _show(found)


def _features(ours: Path | None, theirs: Path | None) -> tuple[Tensor, Tensor] | None:
    if bool(ours) != bool(theirs):
        raise click.UsageError("--features and --reference-features go together", click.get_current_context())
    from pyro_ltm.tasks.written_texts import read_features

    return (read_features(ours), read_features(theirs)) if ours and theirs else None


def _read(path: Path, reading: Reading) -> list[str]:
    from pyro_ltm.data import read_source
    from pyro_ltm.data.tokenizer.cutting import whole_documents

    return [document.text for document in whole_documents(read_source(str(path), reading))]


def _open(
    path: Path | None, common: Common, settings: tuple[str, ...], **bound: Any
) -> tuple[Scorer | None, dict[str, Any]]:
    """The scoring model, if any, and of a run what to say of it; `bound`: particles and fast steps of a run's bound."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.runs import Run
    from pyro_ltm.tasks.written_texts import RunScorer

    from ..runs import open_scorer

    opened = open_scorer(path, common) if path else None
    if isinstance(opened, Run):
        run = opened.with_fast_loop(settings)
        return RunScorer(run, seed=common.seed or 0, **bound), {"scorer_step": run.step, "settings": list(settings)}
    if settings:
        raise UserError("--set: is of a run that scores (--scorer RUN), and no run does: no posterior is fitted")
    return opened, {}


def _write(
    folder: Path, out: Path | None, common: Common, *, num: int, max_new_tokens: int | None, temperature: float
) -> tuple[list[str], Speed, dict[str, Any]]:
    """Texts of a run, also into the file `out`, how fast they were written, and how."""
    from pyro_ltm.files import write_text
    from pyro_ltm.model import DecodingOptions
    from pyro_ltm.tasks.written_texts import write_samples

    from ..runs import open_run

    run, sampler = open_run(folder, common), DecodingOptions(temperature=temperature)
    longest = max_new_tokens or run.config.model.max_length
    texts, speed = write_samples(run, num=num, max_new_tokens=longest, sampler=sampler, seed=common.seed or 0)
    if out:
        write_text(out, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts, speed, {**run.about, "temperature": temperature, "max_new_tokens": longest}


def _show(found: Samples) -> None:
    from ..output import say, show_table

    columns = ["", "these", *(["reference"] if found.reference_metrics else [])]
    show_table("Texts", columns, _metric_rows(found) + (_level_rows(found) if found.generative else []))
    if found.no_bytes:
        say(f"No bits a byte under the scorer: {found.no_bytes}.")
    how = found.generative
    if hasattr(how, "window"):  # a Hugging Face model's
        first = f"each text after {how.start}" if how.start is not None else "the first token of each text is given"
        longer = f"; {how.windowed} longer than that, in windows moved by {how.stride}" if how.windowed else ""
        say(f"Scored: {first}; {how.window} tokens at a time{longer}")
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
    from ..output import margin, nats

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
    from ..output import margin, nats

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
