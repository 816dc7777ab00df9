"""Tables of what `python -m benchmarks.claim` measured, by the name that marks each in a page.

Rows of one text and window are averaged over the seeds that all sides have, sequence by sequence. A difference is then
paired by sequence, with an error that honours dependence between neighbours (`pyro_ltm.scores.difference`); behind it,
in brackets, the smallest and the largest of the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.pages import table
from benchmarks.texts import TEXTS
from pyro_ltm.scores import Difference, difference
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.estimate import ratio_error

Rows = Mapping[str, Any]
KINDS = {"nats": "ELBO", "iwae": "importance-weighted", "prefix": "predictive"}
"""Figures of an LTM; a twin's is exact, and the same by all three."""
COMPUTE = ("twin, longer", "twin, wider")
FAR = {"twin, longer, far window": "256", "twin, longer, whole window": "all"}
"""Twins of equal compute that look further back, and how many tokens in each layer."""
LTM_FAR = "ltm, far window"


@dataclass(frozen=True)
class Cell:
    """All rows of one size, text and window, by side and seed."""

    size: str
    text: str
    window: int
    rows: Mapping[str, Mapping[int, Any]]

    @property
    def label(self) -> list[Any]:
        """The first columns of a table."""
        name = TEXTS[self.text].label
        return [name if self.size == "nano" else f"{name}, `{self.size}`", self.window]

    def seeds(self, *sides: str) -> list[int]:
        """Those that all of these sides have."""
        common = set.intersection(*(set(self.rows.get(side, {})) for side in sides))
        return sorted(common)

    @property
    def equal_compute(self) -> str:
        """The twin of equal compute that is better on validation text, with the first seed."""
        both = {side: self.rows[side][min(self.rows[side])] for side in COMPUTE if self.rows.get(side)}
        return min(both, key=lambda side: both[side]["validation"]) if both else COMPUTE[0]

    def mean(self, side: str, kind: str, seeds: list[int]) -> torch.Tensor:
        """[S] nats of each sequence, averaged over seeds."""
        rows = [self.rows[side][seed] for seed in seeds]
        return torch.tensor([row[kind] if kind in row else row["nats"] for row in rows], dtype=torch.float64).mean(0)

    def tokens_and_places(self) -> tuple[torch.Tensor, Places]:
        """Of the sequences that all rows score."""
        row = next(iter(next(iter(rows.values())) for side, rows in self.rows.items() if side != "floor"))
        ids, documents = (row["places"][key] for key in ("ids", "documents"))
        places = Places(torch.tensor(ids), None if documents is None else torch.tensor(documents))
        return torch.tensor(row["tokens"], dtype=torch.float64), places

    def below(self, twin: str, kind: str, side: str = "ltm") -> tuple[Difference, list[float]] | None:
        """How far `side` lies below the twin; and with each seed. None where no seed has both."""
        if not (seeds := self.seeds(twin, side)):
            return None
        tokens, places = self.tokens_and_places()
        gap = difference(self.mean(twin, "nats", seeds), self.mean(side, kind, seeds), tokens, places)
        each = [
            float((self.mean(twin, "nats", [seed]) - self.mean(side, kind, [seed])).sum() / tokens.sum())
            for seed in seeds
        ]
        return gap, each

    def closed(self, twin: str, kind: str) -> str:
        """Which share of the distance from the twin down to the text's entropy the LTM closes, in percent."""
        if not (seeds := self.seeds(twin, "ltm")):
            return ""
        _, places = self.tokens_and_places()
        floor = torch.tensor(self.rows["floor"][0]["nats"], dtype=torch.float64)

        def gaps(of: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            above = self.mean(twin, "nats", of)
            return above - self.mean("ltm", kind, of), above - floor

        each = [100 * float(closed.sum() / whole.sum()) for closed, whole in (gaps([seed]) for seed in seeds)]
        closed, whole = gaps(seeds)
        error = 100 * ratio_error(closed, whole, places).stderr
        spread = f" ({len(each)} seeds: {min(each):.1f} to {max(each):.1f})" if len(each) > 1 else ""
        return f"{100 * float(closed.sum() / whole.sum()):.1f} ± {error:.1f}%{spread}"

    def level(self, side: str, kind: str = "nats") -> str:
        """Nats a token, mean of the seeds, with its error."""
        if not (seeds := self.seeds(side)):
            return ""
        tokens, places = self.tokens_and_places()
        nats = self.mean(side, kind, seeds)
        return f"{float(nats.sum() / tokens.sum()):.4f} ± {ratio_error(nats, tokens, places).stderr:.4f}"


def cells(found: Rows) -> list[Cell]:
    """In the order in which the rows are planned; those of the grid are left out."""
    made: dict[tuple[str, str, int], dict[str, dict[int, Any]]] = {}
    for row in found.values():
        if not row["slow"]:
            key = row["size"], row["text"], row["window"]
            made.setdefault(key, {}).setdefault(row["side"], {})[row["seed"]] = row
    order = {"nano": 0, "nano-long": 1, "mini": 2}
    keys = sorted(made, key=lambda key: (order[key[0]], key[2] == 256, key[2], list(TEXTS).index(key[1])))
    return [Cell(*key, made[key]) for key in keys]


def tables(found: Rows) -> dict[str, str]:
    """All tables."""
    all_cells = cells(found)
    whole = [cell for cell in all_cells if cell.seeds("ltm", "twin")]
    made = {
        "claim": _gaps(whole),
        "claim in short": _short(whole),
        "claim levels": _levels(whole),
        "claim closed": _closed([cell for cell in whole if "floor" in cell.rows]),
        "claim far": _far(whole),
        "claim costs": _costs(whole),
        "claim rows": _rows(found),
    }
    if far := [cell for cell in whole if cell.seeds(LTM_FAR)]:
        made["claim far ltm"] = _far_ltm(far)
    if few := [cell for cell in all_cells if cell.seeds("ltm, few data", "twin, few data")]:
        made["claim few data"] = _few(few)
    if stopped := [cell for cell in all_cells if cell.seeds("ltm, stopped")]:
        made["claim stopped"] = _stopped(stopped)
    if grid := [row for row in found.values() if row["slow"]]:
        made["claim grid"] = _grid(grid)
    for cell in whole:
        if cell.window == 8:
            made[f"claim {cell.text} in a line"] = _in_a_line(cell)
        if "floor" in cell.rows:
            ways = [f"{cell.closed(cell.equal_compute, kind)} by the {KINDS[kind]}" for kind in ("nats", "iwae")]
            made[f"claim {cell.text} closed in a line"] = f"{ways[0]}, {ways[1]} bound\n"
    return made


def shown(gap: tuple[Difference, list[float]] | None) -> str:
    if gap is None:
        return ""
    found, each = gap
    spread = f" ({min(each):.3f} to {max(each):.3f})" if len(each) > 1 else ""
    return f"{found.nats_per_token:.4f} ± {found.stderr:.4f}{spread}"


def _gaps(of: list[Cell]) -> str:
    kinds = list(KINDS.values())
    columns = [
        "text",
        "window",
        "seeds",
        *(f"equal tokens: {kind}" for kind in kinds),
        "equal compute: ELBO",
        *kinds[1:],
    ]
    rows = [
        [
            *cell.label,
            len(cell.seeds("ltm", "twin")),
            *(shown(cell.below("twin", kind)) for kind in KINDS),
            *(shown(cell.below(cell.equal_compute, kind)) for kind in KINDS),
        ]
        for cell in of
    ]
    return table(columns, rows)


def _short(of: list[Cell]) -> str:
    """By the ELBO alone."""
    columns = ["below the twin, nats a token", "window", "seeds", "equal tokens", "equal compute"]
    rows = [
        [
            *cell.label,
            len(cell.seeds("ltm", "twin")),
            *(shown(cell.below(of, "nats")) for of in ("twin", cell.equal_compute)),
        ]
        for cell in of
    ]
    return table(columns, rows)


def _levels(of: list[Cell]) -> str:
    columns = ["text", "window", "twin", "twin of equal compute", *(f"LTM, {kind}" for kind in KINDS.values()), "rate"]
    rows = []
    for cell in of:
        rates = [row["rate"] for row in cell.rows["ltm"].values()]
        levels = [cell.level("twin"), cell.level(cell.equal_compute), *(cell.level("ltm", kind) for kind in KINDS)]
        rows.append([*cell.label, *levels, f"{sum(rates) / len(rates):.1f}"])
    return table(columns, rows)


def _closed(of: list[Cell]) -> str:
    """Of texts whose entropy is known."""
    ways = {"ELBO": "nats", "importance-weighted": "iwae"}
    columns = ["text", "window", "seeds", *(f"equal {of}: {way}" for of in ("tokens", "compute") for way in ways)]
    rows = [
        [
            *cell.label,
            len(cell.seeds("ltm", "twin")),
            *(cell.closed(twin, kind) for twin in ("twin", cell.equal_compute) for kind in ways.values()),
        ]
        for cell in of
    ]
    return table(columns, rows)


def _far(of: list[Cell]) -> str:
    """Against twins of equal compute that look further back."""
    columns = ["text", "its window", "seeds", "steps", "twin", *(f"LTM below it: {kind}" for kind in KINDS.values())]
    rows = [
        [
            *(cell.label[0], window, len(cell.seeds("ltm", side)), next(iter(cell.rows[side].values()))["steps"]),
            *(cell.level(side), *(shown(cell.below(side, kind)) for kind in KINDS)),
        ]
        for cell in of
        for side, window in FAR.items()
        if cell.seeds("ltm", side)
    ]
    return table(columns, rows)


def _far_ltm(of: list[Cell]) -> str:
    """Of an LTM that looks as far back as such a twin, all for the same operations."""
    columns = ["text", "twin's window", "seeds", "LTM's steps", "LTM, ELBO"]
    columns += [f"LTM below the twin: {kind}" for kind in KINDS.values()]
    rows = [
        [
            *(cell.label[0], window, len(seeds), cell.rows[LTM_FAR][seeds[0]]["steps"], cell.level(LTM_FAR)),
            *(shown(cell.below(side, kind, LTM_FAR)) for kind in KINDS),
        ]
        for cell in of
        for side, window in FAR.items()
        if (seeds := cell.seeds(LTM_FAR, side))
    ]
    return table(columns, rows)


def _costs(of: list[Cell]) -> str:
    columns = [
        *("text", "window", "training: operations, LTM / twin", "seconds", "twins of equal compute, seed 0"),
        *("a written token: operations, LTM / twin", "seconds"),
    ]
    rows = []
    for cell in of:
        ltm, twin = (cell.rows[side][cell.seeds("ltm", "twin")[0]] for side in ("ltm", "twin"))
        others = [_other(cell.rows[side][min(cell.rows[side])]) for side in COMPUTE if cell.rows.get(side)]
        costs = [f"{ltm[key] / twin[key]:.2f}" for key in ("operations", "seconds")]
        written = [f"{ltm['writing'][key] / twin['writing'][key]:.2f}" for key in ("operations", "seconds")]
        rows.append([*cell.label, *costs, "; ".join(others), *written])
    return table(columns, rows)


def _other(row: Any) -> str:
    what = f"{row['steps']} steps" if row["side"] == COMPUTE[0] else f"width {row['dim']}"
    return f"{what}: {_level(row):.4f}"


def _few(of: list[Cell]) -> str:
    columns = ["text", "window", "seeds", "twin", "LTM, ELBO", *(f"below the twin: {kind}" for kind in KINDS.values())]
    sides = "twin, few data", "ltm, few data"
    rows = [
        [
            *(*cell.label, len(cell.seeds(*sides)), *map(cell.level, sides)),
            *(shown(cell.below(sides[0], kind, sides[1])) for kind in KINDS),
        ]
        for cell in of
    ]
    return table(columns, rows)


def _stopped(of: list[Cell]) -> str:
    """On data that run out, each side at its best validation."""
    ltm = "ltm, stopped"
    columns = ["text", "side", "seeds", "slow steps", "of the best validation", "nats a token"]
    columns += [f"LTM below it: {kind}" for kind in ("ELBO", "importance-weighted")]
    rows = []
    for cell in of:
        for side in (side for side in cell.rows if side.endswith("stopped")):
            runs = [cell.rows[side][seed] for seed in cell.seeds(side)]
            best = ", ".join(str(run["best_step"]) for run in runs)
            gaps = ["", ""] if side == ltm else [shown(cell.below(side, kind, ltm)) for kind in ("nats", "iwae")]
            rows.append([cell.label[0], side, len(runs), runs[0]["steps"], best, cell.level(side), *gaps])
    return table(columns, rows)


def _grid(rows: list[Any]) -> str:
    by_slow: dict[str, dict[str, str]] = {row["slow"]: {} for row in rows}
    for row in rows:
        by_slow[row["slow"]][row["side"]] = f"{row['validation']:.4f}"
    sides = ("twin", "ltm")
    lines = [[slow, *(its.get(side, "") for side in sides)] for slow, its in by_slow.items()]
    return table(["slow optimizer and rate", "twin", "LTM, ELBO"], lines)


def _rows(found: Rows) -> str:
    columns = [
        "size",
        "text",
        "window",
        "side",
        "seed",
        "steps",
        "width",
        "parameters",
        "TFLOP",
        "s",
        "nats a token",
        "rate",
    ]
    rows = []
    for cell in cells(found):
        for side, by_seed in cell.rows.items():
            for seed, row in sorted(by_seed.items()):
                if side != "floor":
                    cost = f"{row['operations'] / 1e12:.2f}" if "operations" in row else ""
                    shape = [row["steps"], row["dim"], f"{row['parameters']:,}", cost, f"{row['seconds']:.0f}"]
                    rows.append(
                        [cell.size, cell.text, cell.window, side, seed, *shape, f"{_level(row):.4f}", row["rate"]]
                    )
    return table(columns, rows)


def _level(row: Any) -> float:
    return float(sum(row["nats"]) / sum(row["tokens"]))


def _in_a_line(cell: Cell) -> str:
    """README's: how far below the twin, at equal tokens and at equal compute, and the range of the seeds."""
    parts = []
    for twin, name in (("twin", "equal tokens"), (cell.equal_compute, "equal compute")):
        if gap := cell.below(twin, "nats"):
            found, each = gap
            seeds = f"{len(each)} seeds: {min(each):.3f} to {max(each):.3f}" if len(each) > 1 else "1 seed"
            parts.append(f"{found.nats_per_token:.4f} ± {found.stderr:.4f} ({seeds}) at {name}")
    return f"{', '.join(parts)}\n"


def line(row: Any) -> str:
    """Line that is printed when a row is done."""
    level = f"{_level(row):.4f}" if "nats" in row else f"validation {row['validation']:.4f}"
    more = [f"{key} {row[key]}" for key in ("steps", "dim", "seconds", "rate") if key in row]
    return (
        f"{row['size']} {row['text']} w{row['window']} {row['side']} seed {row['seed']} {row['slow']}: {level} {more}"
    )
