"""The figures of a benchmark file as Markdown: the README's table, and the generated parts of docs/speed.md."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARKED = ("README.md", "docs/speed.md")


def times(value: Mapping[str, float], digits: int = 2) -> str:
    """A ratio with its range over rounds."""
    median, least, most = (f"{value[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{median}x ({least} to {most})"


BFLOAT16 = {"amx": "bfloat16 tiles (AMX)", "avx512": "bfloat16 without tiles", "none": "no bfloat16"}


def verdict(good: bool) -> str:
    return "yes" if good else "no"


def targets(found: Mapping[str, Any]) -> str:
    """What was to be reached, and what was."""
    rows: list[tuple[str, str, str, str, bool]] = []

    def row(what: str, against: str, at_least: str, measured: str, good: bool) -> None:
        rows.append((what, against, at_least, measured, good))

    if "speed" in found:
        part = found["speed"]["found"]
        name, step, train = part["preset"], part["fast_step"], part["training_step"]
        faster, whole = step["faster_than_plain"], train["faster_than_plain"]
        exact, quarter = "one fast step, {}", "one fast step, a quarter of the tokens, {}"
        rated = [(exact.format(f"{name}, {step['dtype']}"), faster["ours"], 3.5)]
        rated += [(quarter.format(step["dtype"]), faster["quarter"], 6)]
        if step["dtype"] != "float32":  # plain's own precision
            rated += [(exact.format("float32"), faster["float32"], 3.5)]
            rated += [(quarter.format("float32"), faster["float32, quarter"], 6)]
        rated += [(f"training step, 16 fast steps, {step['dtype']}", whole["ours"], 3.5)]
        rated += [(f"training step, a quarter of the tokens, {step['dtype']}", whole["quarter"], 6)]
        for what, ratio, least in rated:
            row(what, "plain", f"{least}x", times(ratio), ratio["median"] >= least)
        writing = part["generation"]
        ratio = writing["faster_than_plain"]
        row(
            f"{writing['new_tokens']} tokens, batch {writing['sequences']}",
            "plain",
            "30x",
            times(ratio),
            ratio["median"] >= 30,
        )
        for key, note in (("ours, 2 fast steps", ""), ("recompute", ", `slow.recompute`")):
            peak = train["peak_of_plain"][key]
            row(f"peak memory of a training step{note}", "plain", "half", f"{peak:.2f} of it", peak <= 0.5)
        cost = step["time_of_tensor"]
        row(f"Pyro, {name}", "tensor", "at most 1.03", times(cost, 3), cost["median"] <= 1.03)
        share = step["roofline"]["ours"]["share_of_it"]
        shown = f"{share['median']:.0%} ({share['least']:.0%} to {share['most']:.0%})"
        row(f"one fast step, {name}", "roofline", "60% of it", shown, share["median"] >= 0.6)
    if "nano" in found:
        cost = found["nano"]["found"]["fast_step"]["time_of_tensor"]
        row("Pyro, nano", "tensor", "at most 1.15", times(cost, 3), cost["median"] <= 1.15)
    if "race" in found:
        for name in found["race"]["found"][0]["racers"]:
            measured, ratio = _raced([one["racers"][name] for one in found["race"]["found"]])
            what = "nano" if name == "default" else f"nano, {name}"
            row(f"time to the same bound, {what}", "plain, fresh noise", "8x", measured, ratio >= 8)
    if "pipeline" in found:
        part = found["pipeline"]["found"]
        seconds = part["start_up"]["pyro-ltm --help"]["median"]
        row("`pyro-ltm --help`", "clock", "under 0.3 s", f"{seconds:.2f} s", seconds < 0.3)
        share = part["preparing"]["share_of_the_tokenizers_speed"]
        row("preparing text", "tokenizer", "80% of it", f"{share['median']:.0%}", share["median"] >= 0.8)
        waits = part["waiting"]["data_seconds"] / part["waiting"]["step_seconds"]
        row("waiting for data, nano", "training step", "never", f"{waits:.1%} of it", waits < 0.01)
    lines = ["| | against | target | measured | reached |", "|---|---|---|---|---|"]
    lines += [f"| {what} | {against} | {least} | {got} | {verdict(good)} |" for what, against, least, got, good in rows]
    return "\n".join(lines)


def _raced(races: Sequence[Mapping[str, float] | None]) -> tuple[str, float]:
    """How much sooner one came to plain's bound, the median over seeds; a race in which it never did counts as 0."""
    if not any(races):
        return "not reached", 0.0
    every = {
        key: [one[key] if one else 0.0 for one in races]
        for key in ("faster_than_plain", "faster_a_step", "fewer_steps")
    }
    ratios, (ratio, a_step, fewer) = every["faster_than_plain"], map(statistics.median, every.values())
    spread = f"{min(ratios):.1f} to {max(ratios):.1f} over {len(ratios)} seeds; " if len(ratios) > 1 else ""
    why = f"{a_step:.1f}x a slow step, 16 fast steps against 4, and {fewer:.1f}x fewer slow steps"
    shown = math.floor(10 * ratio) / 10  # never rounded up to a target
    return f"{shown:.1f}x ({spread}{why})", ratio


def where(found: Mapping[str, Any]) -> str:
    """Machine and date of each part, one line for all where they agree."""
    lines = {}
    for name, part in found.items():
        on = part["machine"]
        text = (
            f"{part['date']}: {on['processor']}, {on['threads']} threads of {on['cores']} cores, "
            f"{BFLOAT16[on['bfloat16']]}, "
            f"torch {on['torch']}, pyro-ppl {on['pyro-ppl']}, Python {on['python']}"
        )
        lines.setdefault(text, []).append(name)
    if len(lines) == 1:
        return next(iter(lines)) + "."
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in lines.items())


def steps(found: Mapping[str, Any]) -> str:
    """Seconds of a fast step, each way, for both presets."""
    lines = ["| a fast step | medium | against plain | nano | against plain |", "|---|---|---|---|---|"]
    parts = [found[name]["found"]["fast_step"] if name in found else None for name in ("speed", "nano")]
    names = {
        "plain": "plain",
        "ours": "ours, in the precision that it settles on",
        "tensor": "... without Pyro (`tensor`)",
        "compiled": "... `compile=true`",
        "quarter": "... `fast.subsample=4`",
        "float32": "`dtype=float32`",
        "float32, quarter": "... `fast.subsample=4`",
        "bfloat16": "`dtype=bfloat16`",
        "bfloat16, quarter": "... `fast.subsample=4`",
    }
    cells = [f"`{part['dtype']}`" if part else "" for part in parts]
    lines.append(f"| settles on | {cells[0]} | | {cells[1]} | |")
    for key, name in names.items():
        cells = []
        for part in parts:
            if part is None:
                cells += ["", ""]
                continue
            own = {part["dtype"]: "ours", f"{part['dtype']}, quarter": "quarter"}.get(key, key)
            second = part["seconds"][own]
            cells += [f"{1000 * second['median']:.1f} ms", times(part["faster_than_plain"][own])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for key, name in (("ours", "roofline"), ("quarter", "roofline of `fast.subsample=4`")):
        cells = []
        for part in parts:
            if part is None:
                cells += ["", ""]
                continue
            floor = part["roofline"][key]
            cells += [f"{1000 * floor['seconds']['median']:.1f} ms", times(floor["ceiling"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def lever_table(found: Mapping[str, Any]) -> str:
    """Each lever: seconds, and the bound at equal steps and at equal time."""
    if "levers" not in found:
        return ""
    lines = [
        "| row | seconds | bound at equal steps | below the default | steps in equal time | below the default |",
        "|---|---|---|---|---|---|",
    ]
    first = found["levers"]["found"][0]
    for one in found["levers"]["found"]:
        equal = one.get("equal_time")
        label = one["row"]
        label += f", {one['steps']} slow steps" if one["steps"] != first["steps"] else ""
        label += f", seed {one['seed']}" if one["seed"] != first["seed"] else ""
        cells = [label, f"{one['seconds']:.0f}", f"{one['nats_per_token']:.4f}"]
        cells += [_against(one), str(equal["steps"]), _against(equal)] if equal else ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Nats a token after {first['steps']} slow steps where the row names no others, seed {first['seed']} where it "
        "names no other; how far below the default of as many steps and that seed, ± the standard error over the same "
        "sequences.",
    ]
    return "\n".join(lines)


def _against(one: Mapping[str, Any]) -> str:
    gap = one["below_default"]
    return f"{gap['nats_per_token']:+.4f} ± {gap['stderr']:.4f}"


def growth(found: Mapping[str, Any]) -> str:
    """How each axis grows, and whether it bends."""
    if "growth" not in found:
        return ""
    lines = [
        "| size | from | to | time grows by | last slope over the one before | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, axis in found["growth"]["found"]["axes"].items():
        sizes, seconds, peaks = axis["sizes"], axis["seconds"], axis["peak_bytes"]
        lines.append(
            f"| {name.replace('_', ' ')} | {sizes[0]} | {sizes[-1]} | "
            f"{seconds[-1]['median'] / seconds[0]['median']:.1f}x | {axis['bend']:.2f} | "
            f"{peaks[0] / 2**20:.1f} to {peaks[-1] / 2**20:.1f} MiB |"
        )
    return "\n".join(lines)


BLOCKS = {"targets": targets, "where": where, "steps": steps, "levers": lever_table, "growth": growth}


def filled(text: str, found: Mapping[str, Any]) -> str:
    """`text` with each part between `<!-- NAME -->` and `<!-- end NAME -->` made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make(found)}\n{match[2]}", text)
    return text


def write(found: Mapping[str, Any]) -> None:
    """Fills README and docs."""
    for name in MARKED:
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8"), found), encoding="utf-8")
