"""The tables of benchmarks/notes/results.md, made from what `python -m benchmarks.protocols` measured.

A file of figures holds, by corpus, what `benchmarks.protocols.measure` gives. Its tables: by corpus; `CORPUS along K`,
the bound along the number of draws; `shares`, of corpora that differ in `slow.decoder_warmup`; `CORPUS in short`, the
rows of docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.pages import table
from pyro_ltm.scores.dependence import Blocks

FEW_BLOCKS = 10
"""With fewer of them an error is itself hardly known (docs/benchmarks.md)."""
SIDES = ("below_twin", "above_floor")
SHARES = {"-thoughts-first": "0", "": "0.1", "-half": "0.5"}
"""How the name of a corpus ends, and for what share of the slow steps the decoder learns without thoughts in it."""
MARK = "†"
"""Stands behind a figure without its error, which took sequences as independent: releases did that kept no `blocks`."""
LEFT_OUT = ("annealed", "best predictor", "tokens after")
"""So begin the figures that the short tables do without."""
MEANING = f"{MARK} Its error took neighbouring sequences as independent, which is too small: it is not shown."


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """All tables of a file of figures, by the name that marks each in a page."""
    made = {"shares": shares(found)} if any(f"{name}-half" in found for name in found) else {}
    for name, one in found.items():
        made |= {name: markdown(one), f"{name} along K": along_draws(one)}
        if any("bound" in row for row in one["rows"]):
            made[f"{name} in short"] = short(one)
    return made


def markdown(found: Mapping[str, Any]) -> str:
    """A table a seed: each figure, its error, how far below the twin, how far above the floor."""
    lines = []
    for row in map(_documents, found["rows"]):
        floor = row.get("floor")
        columns = ["figure", "nats a token", "below the twin", *(["above the floor"] if floor else [])]
        rows = [[*cells, "", ""][: len(columns)] for cells in (*_figures(row), *_exact(row))]
        lines += [f"Seed {row['seed']}:", "", table(columns, rows)]
        lines += [_note(row), ""] if "bound" in row else []
    lines += [f"Machine: {found['machine']}, {found['threads'] or 'all'} threads."]
    return explained("\n".join(lines) + "\n")


def short(found: Mapping[str, Any]) -> str:
    """At most six figures, two columns a seed, and what they are figures of."""
    rows = [row for row in map(_documents, found["rows"]) if "bound" in row]
    seeds = [{label: cells for label, *cells in (*_figures(row), *_exact(row))} for row in rows]
    columns = [column for row in rows for column in (f"seed {row['seed']}", "below the twin")]
    lines = [
        [label, *(cell for cells in seeds for cell in [*cells.get(label, []), "", ""][:2])]
        for label in seeds[0]
        if not label.startswith(LEFT_OUT)
    ]
    return explained("\n".join([table(["nats a token", *columns], lines), *_facts(rows)]) + "\n")


def _facts(rows: list[Mapping[str, Any]]) -> list[str]:
    """How much text, by how many errors below the twin, bits a byte, and how far down to the floor; of all seeds."""
    bound, gaps = rows[0]["bound"], [row["below_twin"] for row in rows]
    errors = [
        f"{_label(key)} {_both(gaps, lambda gap, key=key: gap[key]['nats_per_token'] / gap[key]['stderr'])}"
        for key in ("bound", "prefix")
        if all("blocks" in gap.get(key, {}) for gap in gaps)
    ]
    bounds, twins = ([row[side] for row in rows] for side in ("bound", "twin"))
    level, twin = (_both(ones, lambda one: one["bits_per_byte"], 4) for ones in (bounds, twins))
    rate = _both(bounds, lambda one: one["kl_nats_per_sequence"])
    lines = [
        f"{bound['sequences']} sequences, {bound['tokens']:,} tokens; rate {rate} nats a sequence. "
        f"Bits a byte: at most {level}, twin {twin}.",
        *([f"Below the twin by so many standard errors: {', '.join(errors)}."] if errors else []),
        *_over({"the bound": bound, "its distance to the twin": gaps[0]["bound"]}.items()),
    ]
    if all("closed" in row for row in rows):
        lines.append(_closed(rows, ("bound", "importance-weighted")))
    return lines


def _both(ones: list[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float], digits: int = 1) -> str:
    return " and ".join(f"{value(one):.{digits}f}" for one in ones)


def _closed(rows: list[Mapping[str, Any]], names: Iterable[str]) -> str:
    ways = ", ".join(f"{_label(name)} {_shares_closed(rows, name)}" for name in names)
    return f"Of the distance from twin to floor closed: {ways}."


def _shares_closed(rows: list[Mapping[str, Any]], key: str) -> str:
    ones = [row["closed"][key] for row in rows]
    return " and ".join(f"{pm(100 * one['share'], 100 * one['stderr'], over=one, digits=1)}%" for one in ones)


def explained(text: str) -> str:
    """A table, and what its mark means where it has one."""
    return f"{text}\n{MEANING}\n" if MARK in text else text


def pm(level: float, error: float, *, over: Mapping[str, Any], digits: int = 4, commas: bool = False) -> str:
    """A figure with its error; marked instead where `over`, what it is the error of, does not say over what."""
    form = f"{',' if commas else ''}.{digits}f"
    return f"{level:{form}} ± {error:{form}}" if "blocks" in over else f"{level:{form}}{MARK}"


def _documents(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same row; where it has a floor each sequence is a document of its own, and no error needs a mark."""

    def with_blocks(one: Any) -> Any:
        if isinstance(one, Mapping):
            same = {name: with_blocks(value) for name, value in one.items()}
            return {"blocks": None, **same} if {"stderr", "nats_per_token_stderr"} & set(same) else same
        return [with_blocks(value) for value in one] if isinstance(one, list) else one

    return dict(with_blocks(row)) if "floor" in row else row


def along_draws(found: Mapping[str, Any]) -> str:
    """The importance-weighted bound with 1, 2, 4, ... draws, a column a seed."""
    bounds = {row["seed"]: row["bound"] for row in map(_documents, found["rows"]) if "bound" in row}
    curves = {seed: [_point(bound, one) for one in bound["iwae_curve"]] for seed, bound in bounds.items()}
    rows = [[points[0]["particles"], *map(_level, points)] for points in zip(*curves.values(), strict=True)]
    return explained(table(["K", *(f"seed {seed}" for seed in curves)], rows))


def shares(found: Mapping[str, Any]) -> str:
    """Effect of `slow.decoder_warmup`: a row for each text, share and seed."""
    below = "below the twin"
    columns = ["text", "`slow.decoder_warmup`", "seed", "ELBO", below, "importance-weighted", below, "rate"]
    rows = []
    for corpus in [name for name in found if f"{name}-half" in found or f"{name}-thoughts-first" in found]:
        for end, share in SHARES.items():
            for row in map(_documents, found.get(f"{corpus}{end}", {"rows": []})["rows"]):
                bound, gaps = row["bound"], row["below_twin"]
                which = [corpus.removesuffix("-longer"), share, str(row["seed"])]
                elbo = [_level(bound), _gap(gaps["bound"])]
                weighted = [_level(_point(bound)), _gap(gaps["importance-weighted"])]
                rows.append([*which, *elbo, *weighted, f"{bound['kl_nats_per_sequence']:.1f}"])
    return explained(table(columns, rows))


def _figures(row: Mapping[str, Any]) -> list[list[str]]:
    """Figures that can be compared with the twin's: name, level, below the twin, above the floor."""
    rows = []

    def add(key: str, label: str, one: Mapping[str, Any]) -> None:
        rows.append([label, _level(one), *(_gap(row.get(side, {}).get(key)) for side in SIDES)])

    if bound := row.get("bound"):
        add("bound", "bound (ELBO), at most", bound)
        add("importance-weighted", f"importance-weighted, {bound['particles']} draws, at most", _point(bound))
        for start, one in bound.get("ais", {}).items():
            add(f"AIS from {start}", f"annealed from {start}, {one['temperatures']} temperatures, at most", one)
    if prefix := row.get("prefix"):
        add("prefix", f"predictive, {prefix['particles']} draws, a fit every {prefix['stride']} tokens", prefix)
    add("twin", "twin, exact", row["twin"])
    return rows


def _exact(row: Mapping[str, Any]) -> list[list[str]]:
    """Figures by themselves: the best predictor, the floor, the reference's, and what prefixes predict."""
    rows = []
    if floor := row.get("floor"):
        rows.append([f"best predictor with {floor['window']} tokens in sight", _level(floor["windowed"])])
        rows.append(["floor: the text's entropy, exact", _level(floor), "", "0"])
    # Figures that do not say over what their error was taken are of a release that fitted at another rate.
    if (reference := row.get("reference", {})).get("blocks"):
        rows.append(["*reference protocol, NOT a bound*", f"*{_level(reference)}*"])
    if prefix := row.get("prefix"):
        for after, its in zip(prefix["by_prefix"], row["twin"]["prefix"]["by_prefix"], strict=True):
            name = f"tokens after the first {after['prefix']} (twin {its['nats_per_token']:.4f})"
            key = f"after {after['prefix']} tokens"
            rows.append([name, _level(after), *(_gap(row.get(side, {}).get(key)) for side in SIDES)])
    return rows


def _note(row: Mapping[str, Any]) -> str:
    """The text that was scored, and the same in bits a byte; of the distance to the floor, how much is closed."""
    bound, twin, below = row["bound"], row["twin"], row["below_twin"]
    bits = bound["bits_per_byte"] / bound["nats_per_token"]  # a byte, for each nat a token: the same text for both

    def by_byte(one: Mapping[str, Any]) -> str:
        return pm(bits * one["nats_per_token"], bits * _error(one), over=one)

    level, its, gap = map(by_byte, (bound, twin, below["bound"]))
    ess = pm(bound["effective_sample_size"], bound["effective_sample_size_stderr"], over=bound, digits=1)
    lines = [
        f"{bound['sequences']} sequences, {bound['tokens']} tokens; rate {bound['kl_nats_per_sequence']:.2f} nats a "
        f"sequence; {ess} of {bound['particles']} draws count.",
        *_over({"the bound": bound, "its distance to the twin": below["bound"]}.items()),
        f"Bits a byte: at most {level}, twin {its}, below it by {gap}.",
    ]
    if closed := row.get("closed"):
        lines.append(_closed([row], closed))
    return "\n".join(lines)


def _label(name: str) -> str:
    """A figure's name as the table has it."""
    names = {"bound": "ELBO", "prefix": "predictive"}
    return names.get(name, name.replace("AIS from", "annealed from"))


def _over(figures: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Over what the errors of figures were taken, where they say it."""
    said = [f"of {name} over {_independent(Blocks(**one['blocks']))}" for name, one in figures if one.get("blocks")]
    return [f"Standard errors: {'; '.join(said)}."] if said else []


def _independent(blocks: Blocks) -> str:
    """Over what an error was taken, with a warning where that is too little to know it well."""
    return f"{blocks}{' (a rough error: fewer than ten)' if blocks.count < FEW_BLOCKS else ''}"


def _point(bound: Mapping[str, Any], point: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """A point of the importance-weighted curve, by default the last, whose error is of the kind of `bound`'s."""
    return {key: bound[key] for key in ("blocks",) if key in bound} | (point or bound["iwae_curve"][-1])


def _error(one: Mapping[str, Any]) -> float:
    return float(one["stderr"] if "stderr" in one else one["nats_per_token_stderr"])


def _level(one: Mapping[str, Any]) -> str:
    return pm(one["nats_per_token"], _error(one), over=one)


def _gap(gap: Mapping[str, Any] | None) -> str:
    return _level(gap) if gap else ""
