"""The field's benchmarks in benchmarks/notes/results.md: tables of what `python -m benchmarks.field` measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages import table
from benchmarks.results import explained, pm

FIGURES = {
    "bound": "bound (ELBO), at most",
    "importance-weighted": "importance-weighted, {particles} draws, at most",
    "twin": "twin, exact",
}
"""Of `zero-shot`: its name of each, and the table's."""


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """By the name that marks each in the page."""
    made: dict[str, str] = {}
    if gsm8k := found.get("gsm8k"):
        made |= {"gsm8k": _pass_at(gsm8k), "harness": _harness(gsm8k), "zero-shot": _zero_shot(gsm8k)}
        made["samples"] = _samples(gsm8k)
    if wikitext := found.get("wikitext-2"):
        made |= {"whole file": _zero_shot(wikitext), "written": _written(wikitext)}
    return made


def _pass_at(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        for name, one in row["gsm8k"].items():
            at = [_level(one["pass_at"][k], one["pass_at_stderr"][k], 3) for k in sorted(one["pass_at"], key=int)]
            rows.append([row["seed"], _model(name), *at, f"{one['shots_kept']:.1f} of {one['shots']}"])
    names = [f"pass@{k}" for k in sorted(found["rows"][0]["gsm8k"]["ltm"]["pass_at"], key=int)]
    return _table(found, ["seed", "model", *names, "examples that fitted"], rows)


def _harness(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        for name, one in row["harness"].items():
            choice, text = (one["results"][f"gsm8k-{task}"] for task in ("choice", "text"))
            accuracy = _level(choice["acc,none"], choice["acc_stderr,none"], 3)
            bits, words = text["bits_per_byte,none"], text["word_perplexity,none"]
            rows.append([row["seed"], _model(name), accuracy, f"{bits:.4f}", f"{words:,.0f}"])
    columns = ["seed", "model", "choice, accuracy", "text, bits a byte", "text, word perplexity"]
    return _table(found, columns, rows)


def _zero_shot(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        (task,) = row["zero-shot"]["tasks"].values()
        for name, label in FIGURES.items():
            one, gap = task[name], task["below_twin"].get(name)
            rows.append(
                [
                    row["seed"],
                    label.format(particles=task["particles"]),
                    pm(one["nats_per_token"], one["nats_per_token_stderr"], over=one),
                    pm(gap["nats_per_token"], gap["stderr"], over=gap) if gap else "",
                    pm(one["bits_per_byte"], one["bits_per_byte_stderr"], over=one),
                    _rounded(one["word_perplexity"], one["word_perplexity_stderr"], over=one),
                ]
            )
    (first,) = found["rows"][0]["zero-shot"]["tasks"].values()
    about = ", about" if first["counts_are_estimated"] else ""  # bytes and words of part of a file
    counted = [f"bits a byte{about}", f"word perplexity{about}"]
    columns = ["seed", "figure", "nats a token", "below the twin", *counted]
    return _table(found, columns, rows)


def _samples(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        one = row["samples"]
        mauve = _level(one["mauve"]["score"], one["mauve"]["spread"], 2)
        theirs = _of_texts(one["reference_metrics"], one["reference_generative"])
        rows.append([row["seed"], "written", *_of_texts(one["metrics"], one["generative"]), mauve])
        rows.append([row["seed"], "training problems", *theirs, ""])
    return _table(found, ["seed", "texts", *_OF_TEXTS, "MAUVE, ± over quantizations"], rows)


def _written(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        for name, one in row["samples"].items():
            speed = f"{one['speed']['tokens_per_second']:,.0f} ({one['speed']['threads']} threads)"
            rows.append([row["seed"], _model(name), *_of_texts(one["metrics"], one["generative"]), speed])
    return _table(found, ["seed", "writer", *_OF_TEXTS, "tokens a second"], rows)


_OF_TEXTS = ["words", "entropy, bits", "distinct-1", "distinct-4", "self-BLEU", "nats a token under the twin, exact"]


def _of_texts(one: Mapping[str, Any], under: Mapping[str, Any]) -> list[str]:
    error = one["stderr"]
    return [
        f"{one['words']:,}",
        _level(one["entropy_bits"], error["entropy_bits"], 2),
        *(_level(one["distinct"][n], error["distinct"][n], 3) for n in ("1", "4")),
        _level(one["self_bleu"], error["self_bleu"], 3),
        _level(under["nats_per_token"], under["nats_per_token_stderr"], 3),
    ]


def _table(found: Mapping[str, Any], columns: list[str], rows: list[list[Any]]) -> str:
    machine = f"Machine: {found['machine']}, {found['threads'] or 'all'} threads."
    return explained(f"{table(columns, rows)}\n{machine}\n")


def _model(name: str) -> str:
    return "LTM" if name == "ltm" else name


def _level(level: float, error: float, digits: int = 4) -> str:
    return f"{level:.{digits}f} ± {error:.{digits}f}"


def _rounded(level: float, error: float, *, over: Mapping[str, Any]) -> str:
    """Perplexities: one digit behind the point, or thousands where they are astronomical."""
    if level < 1e5:
        return pm(level, error, over=over, digits=1, commas=True)
    return pm(round(level, -3), round(error, -3), over=over, digits=0, commas=True)
