"""`pyro-ltm score-samples`: written texts, scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, common, examples, fast_steps, fit_settings, reading_options

if TYPE_CHECKING:
    from pyro_ltm.data import Reading


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
@click.option("--num", metavar="N", type=click.IntRange(1), default=64, help="Texts for --run to write.")
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(1), help="Length of each; default: the model's.")
@click.option("--temperature", metavar="X", type=click.FloatRange(0), default=1.0, help="0: the likeliest token.")
@click.option("--texts", "texts_file", type=FOLDER, metavar="FILE", help="Texts to score instead (.jsonl, .csv, ...).")
@click.option("--reference", type=FOLDER, metavar="FILE", help="Texts of people to hold them against.")
@reading_options
@click.option("--scorer", type=FOLDER, metavar="PATH", help="A run, or a Hugging Face model's folder, to score under.")
@click.option("--features", type=FOLDER, metavar="FILE.npy", help="Features of the texts, [n, d], for MAUVE.")
@click.option("--reference-features", type=FOLDER, metavar="FILE.npy", help="Features of the reference, [m, d].")
@click.option("--particles", metavar="K", type=click.IntRange(1), default=16, help="Draws of the scorer's bound.")
@click.option("--texts-out", type=FOLDER, metavar="FILE", help="Where to keep what --run wrote, .jsonl.")
@fast_steps
@fit_settings
@common(seed_help="Seed of the texts, of the scorer's noise and of MAUVE's buckets.")
def command(
    *,
    run_folder: Path | None,
    num: int,
    max_new_tokens: int | None,
    temperature: float,
    texts_file: Path | None,
    reference: Path | None,
    reading: Reading,
    scorer: Path | None,
    features: Path | None,
    reference_features: Path | None,
    particles: int,
    texts_out: Path | None,
    fast_steps: int | None,
    settings: tuple[str, ...],
    common: Common,
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
    if bool(features) != bool(reference_features):
        raise click.UsageError("--features and --reference-features go together")
    from pyro_ltm.data import read_source
    from pyro_ltm.data.tokenizer.cutting import whole_documents
    from pyro_ltm.errors import UserError
    from pyro_ltm.files import write_text
    from pyro_ltm.model import DecodingOptions
    from pyro_ltm.runs import Run
    from pyro_ltm.tasks.written_texts import read_features, save_texts, score_samples, write_samples

    from ..output import emit, say
    from ..runs import check_target, open_run, open_scorer

    def read(path: Path) -> list[str]:
        return [document.text for document in whole_documents(read_source(str(path), reading))]

    if texts_out:
        check_target(texts_out, reference)
    held = read(reference) if reference else None
    pair = (read_features(features), read_features(reference_features)) if features and reference_features else None
    judge = open_scorer(scorer, common) if scorer else None
    of: dict[str, Any] = {"run": run_folder, "texts": texts_file, "reference": reference, "scorer": scorer}
    if isinstance(judge, Run):
        judge = judge.with_fast_loop(settings)
        of |= {"scorer_step": judge.step, "settings": list(settings)}
    elif settings:
        raise UserError("--set: is of a run that scores (--scorer RUN), and no run does: no posterior is fitted")
    seed, speed = common.seed or 0, None
    if run_folder:
        run, sampler = open_run(run_folder, common), DecodingOptions(temperature=temperature)
        longest = max_new_tokens or run.config.model.max_length
        texts, speed = write_samples(run, num=num, max_new_tokens=longest, sampler=sampler, seed=seed)
        if texts_out:
            write_text(texts_out, save_texts(texts))
        of |= {"step": run.step, "temperature": temperature, "max_new_tokens": longest}
    else:
        assert texts_file is not None
        texts = read(texts_file)
    found = score_samples(
        texts,
        reference=held,
        scorer=judge,
        features=pair,
        particles=particles,
        fast_steps=fast_steps,
        seed=seed,
        speed=speed,
    )
    if common.as_json:
        emit({**found.to_dict(), **of})
        return
    _show(found)
    if speed:
        say(
            f"{speed.tokens:,} tokens in {speed.seconds:.2f} s: {speed.tokens_per_second:,.0f} a second, "
            f"{speed.batch_size} texts at a time, {speed.threads} threads, {speed.device}"
        )


def _show(found: object) -> None:
    from ..output import margin, nats, say, show_table

    it: Any = found
    both = [one for one in (it.metrics, it.reference_metrics) if one]

    def row(name: str, figure: str, n: int | None = None) -> list[str]:
        cells = []
        for one in both:
            level, error = getattr(one, figure), (one.stderr or {}).get(figure)
            if n:
                level, error = level[str(n)], error and error[str(n)]
            cells.append(nats(level, 3) + ("" if error is None else margin(error, 3)))
        return [name, *cells]

    rows = [["texts", *(f"{one.texts:,}" for one in both)], ["words", *(f"{one.words:,}" for one in both)]]
    rows.append(row("entropy of words, bits", "entropy_bits"))
    rows += [row(f"distinct-{n}", "distinct", n) for n in range(1, 5)]
    rows += [row(f"repetition of {n} words", "repetition", n) for n in (1, 4)]
    rows.append(row("self-BLEU", "self_bleu"))
    if it.generative:
        scored = [one for one in (it.generative, it.reference_generative) if one]
        scored += [None] * (len(both) - len(scored))
        kind = "exact" if it.generative_is_exact else "at most"
        levels = ["-" if b is None else nats(b.nats_per_token) + margin(b.nats_per_token_stderr) for b in scored]
        rows.append([f"nats a token under the scorer, {kind}", *levels])
        perplexities = ["-" if b is None else nats(b.perplexity, 2) for b in scored]
        rows.append([f"generative perplexity, {kind}", *perplexities])
        if math.isfinite(it.generative.bits_per_byte):
            rows.append([f"bits a byte, {kind}", *("-" if b is None else nats(b.bits_per_byte) for b in scored)])
    show_table("Texts", ["", "these", "reference"][: len(both) + 1], rows)
    if it.no_bytes:
        say(f"No bits a byte under the scorer: {it.no_bytes}.")
    if hasattr(it.generative, "window"):
        _say_how(it.generative)
    if it.mauve:
        say(f"MAUVE {it.mauve.score:.3f} ± {it.mauve.spread:.3f} over {it.mauve.seeds} seeds ({it.features})")


def _say_how(figure: object) -> None:
    """How a Hugging Face model read the texts."""
    from ..output import say

    it: Any = figure
    first = f"each text after {it.start}" if it.start is not None else "the first token of each text is given"
    longer = f"; {it.windowed} longer than that, in windows moved by {it.stride}" if it.windowed else ""
    say(f"Scored: {first}; {it.window} tokens at a time{longer}")
