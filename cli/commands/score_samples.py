"""`pyro-ltm score-samples`: written texts, scored."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    common,
    examples,
    fast_steps,
    fit_settings,
    gathered,
    number,
    reading_options,
    sampling,
)
from ..rethinking import rethinking_options
from ..sample_tables import show_continuations, show_samples

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_ltm.data import Reading
    from pyro_ltm.inference import Rethinking
    from pyro_ltm.model import DecodingOptions
    from pyro_ltm.runs import Run
    from pyro_ltm.tasks.prompts import Prompt
    from pyro_ltm.tasks.written_texts import Scorer, Speed


@dataclass(frozen=True)
class Asked:
    """Prompts that were asked for, if any: a file of them, the column of the truths, or where to cut documents."""

    prompts: Path | None
    truth_column: str | None
    prompt_tokens: int | None
    beside: tuple[Path, ...]

    def read(self, run: Run, reading: Reading) -> list[Prompt]:
        """The prompts with their truths."""
        from pyro_ltm.tasks.prompts import cut_documents, read_prompts

        from ..output import note

        assert self.prompts is not None
        if self.prompt_tokens is None:
            return read_prompts(self.prompts, reading=reading, truth=self.truth_column or "truth")
        prompts, short = cut_documents(str(self.prompts), run.tokenizer, self.prompt_tokens, reading=reading)
        if short:
            note(f"Left out: {short:,} documents of at most {self.prompt_tokens} tokens.")
        return prompts

    def check(self, run: Path | None, reference: Path | None, features: Features) -> None:
        """Raises UsageError where other options do not go with prompts, or those of prompts stand alone."""
        if self.prompts is None:
            if self.truth_column or self.prompt_tokens or self.beside:
                raise click.UsageError("--truth-column, --prompt-tokens and --beside: go with --prompts")
        elif run is None:
            raise click.UsageError("--prompts: needs --run, which goes on from them")
        elif reference or features.features or features.reference_features:
            raise click.UsageError("--prompts: the truths in its file are the reference; give none beside them")
        elif self.truth_column and self.prompt_tokens:
            raise click.UsageError("--truth-column: documents that are cut (--prompt-tokens) hold their own truth")


@dataclass(frozen=True)
class Judge:
    """The model that texts are scored under, if any, and how its bound is taken where it is a run."""

    scorer: Path | None
    particles: int
    fast_steps: int | None
    settings: tuple[str, ...]

    def open(self, common: Common) -> tuple[Scorer | None, dict[str, Any]]:
        """It, and what to say of it."""
        from pyro_ltm.errors import UserError
        from pyro_ltm.runs import Run
        from pyro_ltm.tasks.written_texts import RunScorer

        from ..runs import open_scorer

        opened = open_scorer(self.scorer, common) if self.scorer else None
        if isinstance(opened, Run):
            run = opened.with_fast_loop(self.settings)
            judge = RunScorer(run, seed=common.seed or 0, particles=self.particles, fast_steps=self.fast_steps)
            return judge, {"scorer": self.scorer, "scorer_step": run.step, "settings": list(self.settings)}
        if self.settings:
            raise UserError("--set: is of a run that scores (--scorer RUN), and no run does: no posterior is fitted")
        return opened, {"scorer": self.scorer}


@dataclass(frozen=True)
class Features:
    """Files of features, of the texts and of the reference; both, or neither."""

    features: Path | None
    reference_features: Path | None

    def read(self) -> tuple[Tensor, Tensor] | None:
        """Both, if there are any. Raises UsageError where one is without the other."""
        if bool(self.features) != bool(self.reference_features):
            raise click.UsageError("--features and --reference-features go together", click.get_current_context())
        from pyro_ltm.tasks.written_texts import read_features

        if self.features is None or self.reference_features is None:
            return None
        return read_features(self.features), read_features(self.reference_features)


@dataclass(frozen=True)
class Writing:
    """How --run writes. num: None: 64 texts, or one after each prompt."""

    num: int | None
    max_new_tokens: int | None
    sampler: DecodingOptions
    rethinking: Rethinking


@click.command(
    short_help="Score written texts: diversity, perplexity, MAUVE.",
    epilog=examples(
        "pyro-ltm score-samples --run runs/first --num 100 --scorer runs/twin",
        "pyro-ltm score-samples --run runs/first --beside runs/twin --prompts p.jsonl --rethink 2 --scorer runs/twin",
        "pyro-ltm score-samples --run runs/first --prompts held-out.jsonl --prompt-tokens 50 --scorer runs/twin",
        "pyro-ltm score-samples --texts written.jsonl --reference held-out.jsonl --scorer models/gpt2-large",
        "pyro-ltm score-samples --texts a.jsonl --scorer runs/first --fast-steps 64 --set optimizer.lr=0.1",
        "pyro-ltm score-samples --texts a.jsonl --features a.npy --reference-features b.npy --json",
    ),
)
@click.option("--run", "run_folder", type=FOLDER, metavar="RUN", help="A run that writes the texts, from the prior.")
@gathered(
    "asked",
    Asked,
    click.option(
        "--prompts",
        type=FOLDER,
        metavar="FILE",
        help="Goes on from these instead: records with prompt and truth.",
    ),
    click.option("--truth-column", metavar="NAME", help="Column of the true continuations; default: truth."),
    number("--prompt-tokens", "--prompts holds documents: cut each after N tokens; what follows is its truth."),
    click.option(
        "--beside", type=FOLDER, metavar="RUN", multiple=True, help="Another run for the same prompts. Repeatable."
    ),
)
@gathered(
    "writing",
    Writing,
    number("--num", "Texts for --run to write; default: 64, with --prompts one after each."),
    number("--max-new-tokens", "Length of each; default: the model's."),
    sampling(),
    rethinking_options,
)
@click.option("--texts", "texts_file", type=FOLDER, metavar="FILE", help="Texts to score instead (.jsonl, .csv, ...).")
@click.option("--reference", type=FOLDER, metavar="FILE", help="Texts of people to hold them against.")
@reading_options
@gathered(
    "judge",
    Judge,
    click.option(
        "--scorer", type=FOLDER, metavar="PATH", help="A run, or a Hugging Face model's folder, to score under."
    ),
    number("--particles", "Draws of the scorer's bound.", default=16, metavar="K"),
    fast_steps,
    fit_settings,
)
@gathered(
    "features",
    Features,
    click.option("--features", type=FOLDER, metavar="FILE.npy", help="Features of the texts, [n, d], for MAUVE."),
    click.option("--reference-features", type=FOLDER, metavar="FILE.npy", help="Features of the reference, [m, d]."),
)
@click.option("--texts-out", type=FOLDER, metavar="FILE", help="Where to keep what --run wrote, .jsonl.")
@common(seed_help="Seed of the texts, of the scorer's noise and of MAUVE's buckets.", weights=True)
def command(
    *,
    run_folder: Path | None,
    asked: Asked,
    writing: Writing,
    texts_file: Path | None,
    texts_out: Path | None,
    reference: Path | None,
    reading: Reading,
    judge: Judge,
    features: Features,
    common: Common,
) -> None:
    """Scores texts, written by --run or read from --texts.

    Entropy, distinct n-grams, repetition, self-BLEU; generative perplexity under --scorer (exact for a twin and for a
    Hugging Face model, an upper bound for a model with thoughts); MAUVE on given features, or on the scorer's hidden
    states; and how fast --run writes.

    With --prompts continuations are scored against the true ones, a row for each run, and with --rethink another for
    each run with thoughts: MAUVE of prompt and continuation, bits a byte of the continuation after its prompt,
    distinct n-grams. The truths are cut to as many tokens as --run may write.

    A Hugging Face model is a local folder with config.json, model.safetensors and tokenizer.json. It needs the extra:
    pip install -e '.[scorers]' in the clone.
    """
    if bool(run_folder) == bool(texts_file):
        raise click.UsageError("give either --run, which writes texts, or --texts, which holds them")
    asked.check(run_folder, reference, features)
    from pyro_ltm.tasks.written_texts import score_samples

    from ..output import emit
    from ..runs import check_target

    if texts_out:
        check_target(texts_out, reference, asked.prompts)
    pair = features.read()
    references = _read(reference, reading) if reference else None
    scorer, scored_by = judged = judge.open(common)
    if run_folder and asked.prompts:
        _conditional(run_folder, asked, reading, writing, judged, texts_out, common)
        return
    if run_folder:
        texts, speed, written_by = _write(run_folder, texts_out, common, writing)
    else:
        assert texts_file is not None
        texts, speed, written_by = _read(texts_file, reading), None, {}
    seed = common.seed or 0
    found = score_samples(texts, reference=references, scorer=scorer, features=pair, speed=speed, seed=seed)
    if common.as_json:
        of = {"run": run_folder, "texts": texts_file, "reference": reference}
        emit({**found.to_dict(), **of, **scored_by, **written_by})
    else:
        show_samples(found)


def _conditional(
    folder: Path,
    asked: Asked,
    reading: Reading,
    writing: Writing,
    judged: tuple[Scorer | None, dict[str, Any]],
    out: Path | None,
    common: Common,
) -> None:
    """Continuations of prompts by several runs, scored against the true ones, `judged` by a scorer."""
    from pyro_ltm.files import write_text
    from pyro_ltm.tasks.conditional import as_long, score_continuations, sides_of, write_continuations
    from pyro_ltm.tasks.prompts import check_prompts, rows_of

    from ..output import emit
    from ..progress import reporter
    from ..runs import open_run

    runs = {name: open_run(path, common) for name, path in _names((folder, *asked.beside)).items()}
    first, seed, (scorer, scored_by) = next(iter(runs.values())), common.seed or 0, judged
    sides = sides_of(runs, writing.rethinking)
    prompts = as_long(first, asked.read(first, reading), writing.max_new_tokens)
    for run in runs.values():  # before the first one writes
        check_prompts(run, prompts, writing.max_new_tokens)
    num, written = writing.num or 1, {}
    how: dict[str, Any] = {"max_new_tokens": writing.max_new_tokens, "sampler": writing.sampler, "seed": seed}
    with reporter() as report:
        for side in sides:
            count = report.counting(side.name, len(prompts) * num, "texts")
            progress = functools.partial(_count, count)
            written[side.name] = write_continuations(side, prompts, num=num, progress=progress, **how)
    if out:
        rows = [{"side": name, **row} for name, (texts, _) in written.items() for row in rows_of(prompts, texts, seed)]
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
    found = score_continuations(prompts, written, scorer, seed=seed)
    exact, features = (scorer.is_exact, scorer.feature_name) if scorer else (None, "")
    if common.as_json:
        figures = {name: one.to_dict() for name, one in found.items()}
        about = {"runs": {name: run.about for name, run in runs.items()}}
        made = {"prompts": asked.prompts, "prompt_tokens": asked.prompt_tokens, "documents": len(prompts), "num": num}
        of = {"scorer_is_exact": exact, "features": features or None, "max_new_tokens": writing.max_new_tokens}
        emit({"sides": figures, **about, **made, **of, **scored_by, **_said(writing), "seed": seed})
    else:
        show_continuations(found, len(prompts), exact, features)


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their last name; by all of it, where two end alike."""
    last = [folder.name for folder in folders]
    return dict(zip(last if len(set(last)) == len(last) else map(str, folders), folders, strict=True))


def _count(count: Callable[[int, float], None], done: int) -> None:
    count(done, float("nan"))


def _said(writing: Writing) -> dict[str, Any]:
    """How texts were written, for JSON."""
    again = writing.rethinking
    keep = getattr(again.keep, "__qualname__", "bound")
    rethinking = {"rethink": again.rounds, "refit_every": again.refit_every, "keep": keep if again.rounds else None}
    return {**dataclasses.asdict(writing.sampler), **rethinking}


def _read(path: Path, reading: Reading) -> list[str]:
    from pyro_ltm.data import read_source
    from pyro_ltm.data.tokenizer.cutting import whole_documents

    return [document.text for document in whole_documents(read_source(str(path), reading))]


def _write(folder: Path, out: Path | None, common: Common, writing: Writing) -> tuple[list[str], Speed, dict[str, Any]]:
    """Texts of a run, also into the file `out`, how fast they were written, and how."""
    from pyro_ltm.files import write_text
    from pyro_ltm.tasks.written_texts import write_samples

    from ..runs import open_run

    run = open_run(folder, common)
    how: dict[str, Any] = {"sampler": writing.sampler, "rethinking": writing.rethinking, "seed": common.seed or 0}
    longest = writing.max_new_tokens or run.config.model.max_length
    texts, speed = write_samples(run, num=writing.num or 64, max_new_tokens=longest, **how)
    if out:
        write_text(out, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts, speed, {**run.about, **_said(writing), "max_new_tokens": longest}
