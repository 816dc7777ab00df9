"""The figures of speed as Markdown: the tables of benchmarks/notes/speed.md, and a dated note."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.growth import predicted
from benchmarks.results import explained, pm
from pyro_ltm.config import ModelConfig
from pyro_ltm.presets import preset

UNFINISHED = ", unfinished"
"""So ends the name of the rows of a part that was cut short. No table has them."""


def times(value: Mapping[str, float], digits: int = 2) -> str:
    """A ratio with its range over rounds."""
    median, least, most = (f"{value[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{median}x ({least} to {most})"


def percent(value: Mapping[str, float]) -> str:
    """A share with its range over rounds."""
    return f"{value['median']:.0%} ({value['least']:.0%} to {value['most']:.0%})"


BFLOAT16 = {"amx": "bfloat16 tiles (AMX)", "avx512": "bfloat16 without tiles", "none": "no bfloat16"}


def verdict(good: bool | None) -> str:
    return "–" if good is None else "yes" if good else "no"


Row = tuple[str, str, str, str, bool | None]
"""The thing measured, its yardstick, the target, the figure, whether that is reached; None where no target is named."""


def targets(found: Mapping[str, Any]) -> str:
    """Targets, and the figures that were reached."""
    rows: list[Row] = []
    alone = found["float32"]["found"] if "float32" in found and not _settled(found, "float32") else None
    if "speed" in found:
        part = found["speed"]["found"]
        rows += _speeds(part, others=alone is None or alone["preset"] != part["preset"])
    if alone:
        rows += _speeds(alone)
    if "nano" in found:
        step = found["nano"]["found"]["fast_step"]
        cost = step["time_of_tensor"]
        what = f"nano, {step['dtype']}"
        rows += [(f"Pyro, {what}", "tensor", "at most 1.15", times(cost, 3), cost["median"] <= 1.15)]
        # Without the instructions a product in bfloat16 is made of others, and no limit.
        rows += _shares("nano", step, None, others=found["nano"]["machine"]["bfloat16"] != "none")
    if "race" in found:
        for name in found["race"]["found"][0]["racers"]:
            measured, ratio = raced([one["racers"][name] for one in found["race"]["found"]])
            what = "nano" if name == "default" else f"nano, {name}"
            rows += [(f"time to the same bound, {what}", "plain, fresh noise", "8x", measured, ratio >= 8)]
    if "pipeline" in found:
        part = found["pipeline"]["found"]
        seconds = part["start_up"]["pyro-ltm --help"]["median"]
        rows += [("`pyro-ltm --help`", "clock", "under 0.3 s", f"{seconds:.2f} s", seconds < 0.3)]
        share = part["preparing"]["share_of_the_tokenizers_speed"]
        rows += [("preparing text", "tokenizer", "80% of it", f"{share['median']:.0%}", share["median"] >= 0.8)]
        waits = part["waiting"]["data_seconds"] / part["waiting"]["step_seconds"]
        rows += [("waiting for data, nano", "training step", "never", f"{waits:.1%} of it", waits < 0.01)]
    if not rows:
        return ""
    lines = ["| | against | target | measured | reached |", "|---|---|---|---|---|"]
    lines += [f"| {what} | {against} | {least} | {got} | {verdict(good)} |" for what, against, least, got, good in rows]
    return "\n".join(lines)


def _settled(found: Mapping[str, Any], dtype: str) -> bool:
    """Whether the part `speed` settled on this precision: it says all that a part in this one alone does."""
    return "speed" in found and bool(found["speed"]["found"]["fast_step"]["dtype"] == dtype)


def _speeds(part: Mapping[str, Any], others: bool = True) -> list[Row]:
    """The targets of a preset, all in the precision that it settled on; its fast steps in single precision, too."""
    step, train, writing = part["fast_step"], part["training_step"], part["generation"]
    dtype, faster, whole = step["dtype"], step["faster_than_plain"], train["faster_than_plain"]
    ours = f"{part['preset']}, {dtype}"
    exact, quarter = "one fast step, {}", "one fast step, a quarter of the tokens, {}"
    rated = [(exact.format(ours), faster["ours"], 3.5), (quarter.format(dtype), faster["quarter"], 6)]
    if others and "float32" in faster:  # plain's own precision
        rated += [(exact.format("float32"), faster["float32"], 3.5)]
        rated += [(quarter.format("float32"), faster["float32, quarter"], 6)]
    rated += [(f"training step, 16 fast steps, {dtype}", whole["ours"], 3.5)]
    rated += [(f"training step, a quarter of the tokens, {dtype}", whole["quarter"], 6)]
    rated += [
        (f"{writing['new_tokens']} tokens, batch {writing['sequences']}, {dtype}", writing["faster_than_plain"], 30)
    ]
    rows: list[Row] = [
        (what, "plain", f"{least}x", times(ratio), ratio["median"] >= least) for what, ratio, least in rated
    ]
    weights, peaks = parameter_bytes(part), train["peak_bytes"]
    for key, note in (("ours, 2 fast steps", ""), ("recompute", "`slow.recompute`, ")):
        for counted, more in (("beyond weights and optimizer", 0), ("with weights and optimizer", weights)):
            what = f"peak memory of a training step, {note}{counted}, {dtype}"
            share = (peaks[key] + more) / (peaks["plain"] + more)
            rows += [(what, "plain", "half", f"{share:.2f} of it", share <= 0.5)]
    cost = step["time_of_tensor"]
    rows += [(f"Pyro, {ours}", "tensor", "at most 1.03", times(cost, 3), cost["median"] <= 1.03)]
    return rows + _shares(part["preset"], step, 0.6, others)


def _shares(name: str, step: Mapping[str, Any], target: float | None, others: bool = True) -> list[Row]:
    """How near fast steps come to their rooflines."""
    rows: list[Row] = []
    for key, floor in step["roofline"].items():
        if key not in ("ours", "quarter") and not others:
            continue
        share, dtype = floor["share_of_it"], floor.get("dtype", step["dtype"])
        what = f"one fast step, {'a quarter of the tokens, ' if 'quarter' in key else ''}{name}, {dtype}"
        wanted, good = (f"{target:.0%} of it", share["median"] >= target) if target else ("none", None)
        rows += [(what, "roofline", wanted, percent(share), good)]
    return rows


def parameters(model: ModelConfig) -> int:
    """Numbers that a decoder learns."""
    crossing = bool(model.thoughts)
    fed = (3 if model.feed_forward == "swiglu" else 2) * model.dim * model.hidden_width
    crossed = 2 * model.dim * (model.dim + model.thought_width) if crossing else 0
    layer = 4 * model.dim**2 + crossed + fed + (2 + crossing) * model.dim
    if model.qk_norm:
        layer += 2 * (1 + crossing) * model.dim // model.heads
    mixing = -(-model.layers // 2) if model.value_embeddings else 0
    tables = 1 + (not model.tied) + mixing
    return model.vocab_size * model.dim * tables + 2 * mixing + model.layers * layer + model.dim


def parameter_bytes(part: Mapping[str, Any]) -> int:
    """Bytes of the weights and of Adam's two moments, all in single precision; gradients are in the peak itself."""
    counted = part["training_step"].get("parameters")  # not in files before the end of November 2026
    shape = preset(part["preset"])
    return 12 * (counted or parameters(dataclasses.replace(shape.model, vocab_size=shape.data.vocab_size)))


def raced(races: Sequence[Mapping[str, float] | None]) -> tuple[str, float]:
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
        if name.endswith(UNFINISHED):
            continue
        on = part["machine"]
        text = (
            f"{part['date']}: {on['processor']}, {on['threads']} threads of {on['cores']} cores, "
            + (f"{on['memory_bytes'] / 2**30:.0f} GiB of memory, " if "memory_bytes" in on else "")
            + (f"{on['gpu']} with {on['gpu_memory_bytes'] / 2**30:.0f} GiB, " if "gpu" in on else "")
            + f"{BFLOAT16[on['bfloat16']]}, "
            f"torch {on['torch']}, pyro-ppl {on['pyro-ppl']}, Python {on['python']}"
        )
        lines.setdefault(text, []).append(name)
    if len(lines) == 1:
        return next(iter(lines)) + "."
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in lines.items())


STEPS = {
    "plain": "plain, in float32",
    "ours": "ours, in the precision that it settles on",
    "tensor": "... without Pyro (`tensor`)",
    "compiled": "... `compile=true`",
    "quarter": "... `fast.subsample=4`",
    "float32": "`dtype=float32`",
    "float32, quarter": "... `fast.subsample=4`",
    "bfloat16": "`dtype=bfloat16`",
    "bfloat16, quarter": "... `fast.subsample=4`",
}
FLOORS = {
    "ours": "roofline, in the precision that it settles on",
    "quarter": "... of `fast.subsample=4`",
    "float32": "roofline in float32",
    "float32, quarter": "... of `fast.subsample=4`",
}


def steps(found: Mapping[str, Any]) -> str:
    """Seconds of a fast step, each way, for both presets; and of the products that it cannot do without."""
    runs = {name: found[name]["found"] for name in ("speed", "float32", "nano") if name in found}
    if _settled(found, "float32"):
        runs.pop("float32", None)
    if not runs:
        return ""
    parts = [run["fast_step"] for run in runs.values()]
    titles = [run["preset"] + (" in float32 alone" if name == "float32" else "") for name, run in runs.items()]
    lines = [
        "| a fast step | " + " | ".join(f"{title} | against plain" for title in titles) + " |",
        "|---" * (1 + 2 * len(runs)) + "|",
        "| settles on | " + " | ".join(f"`{part['dtype']}` | " for part in parts) + " |",
    ]

    def own(part: Mapping[str, Any], key: str) -> str:
        """Precisions that were chosen stand under their own names alone."""
        return {part["dtype"]: "ours", f"{part['dtype']}, quarter": "quarter"}.get(key, key)

    for key, name in STEPS.items():
        cells = []
        for part in parts:
            if own(part, key) not in part["seconds"]:
                cells += ["", ""]
                continue
            second, ratio = (part[what][own(part, key)] for what in ("seconds", "faster_than_plain"))
            cells += [f"{1000 * second['median']:.1f} ms", times(ratio)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for key, name in FLOORS.items():
        made, reached = [], []
        for part in parts:
            floor = part["roofline"].get(own(part, key))
            if floor is None:
                made, reached = [*made, "not measured", ""], [*reached, "", ""]
                continue
            made += [f"{1000 * floor['seconds']['median']:.1f} ms", f"at most {times(floor['ceiling'])}"]
            reached += [percent(floor["share_of_it"]), ""]
        lines += [f"| {name} | {' | '.join(made)} |", f"| ... reached by ours | {' | '.join(reached)} |"]
    return "\n".join(lines)


OFF = 0.05
"""Of the default's time: what was given more or less than this beside it was not given equal time."""


def lever_table(found: Mapping[str, Any]) -> str:
    """Each lever: seconds, and the bound at equal steps and at equal time, with the seconds that were really taken."""
    if "levers" not in found:
        return ""
    rows = found["levers"]["found"]
    first, counted = rows[0], "once" in rows[0]
    titles = ["row", "seconds", *(["once, before"] if counted else []), "bound at equal steps", "below the default"]
    titles += ["steps in equal time", "seconds they took", "of the default's", "below the default"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    # Where no default ran beside a row, its seconds are those of its own run.
    alone = {(one["steps"], one["seed"]): one["seconds"] for one in rows if one["row"] == "default"}
    for one in rows:
        equal = one.get("equal_time")
        label = one["row"]
        label += f", {one['steps']} slow steps" if one["steps"] != first["steps"] else ""
        label += f", seed {one['seed']}" if one["seed"] != first["seed"] else ""
        taken = f"{one['seconds']:.0f}"
        if "default_seconds" in one:  # those that ran beside it, step by step
            taken += f" ({one['seconds'] / one['default_seconds']:.2f} of the default's)"
        cells = [label, taken, *([f"{one['once']:.0f}"] if counted else [])]
        cells += [f"{one['nats_per_token']:.4f}", _against(one) if equal else ""]
        if equal:
            share = equal["seconds"] / equal.get("default_seconds", alone[one["steps"], one["seed"]])
            shown = f"{share:.0%}" + (", **off**" if abs(share - 1) > OFF else "")
            cells += [str(equal["steps"]), f"{equal['seconds']:.1f}", shown, _against(equal)]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Nats a token after {first['steps']} slow steps where the row names no others, seed {first['seed']} where it "
        "names no other; how far below the default of as many steps and that seed, ± the standard error over the same "
        f"sequences. **off**: over {OFF:.0%} more or less than the default's time; the last column of such a row does "
        "not compare at equal time.",
    ]
    return explained("\n".join(lines))


def _against(one: Mapping[str, Any]) -> str:
    gap = one["below_default"]
    sign = "+" if gap["nats_per_token"] >= 0 else "-"
    return sign + pm(abs(gap["nats_per_token"]), gap["stderr"], over=gap)


def growth(found: Mapping[str, Any]) -> str:
    """How each axis grows, whether it bends, and how far from the prediction it is."""
    if "growth" not in found:
        return ""
    rate, guesses = predicted(found["growth"]["found"])
    lines = [
        "| size | from | to | time grows by | predicted | measured over predicted | last slope over the one before "
        "| peak memory |",
        "|---" * 8 + "|",
    ]
    for name, axis in found["growth"]["found"]["axes"].items():
        sizes, peaks, guessed = axis["sizes"], axis["peak_bytes"], guesses[name]
        seconds = [one["median"] for one in axis["seconds"]]
        over = [second / guess for second, guess in zip(seconds, guessed, strict=True)]
        lines.append(
            f"| {name.replace('_', ' ')} | {sizes[0]} | {sizes[-1]} | {seconds[-1] / seconds[0]:.1f}x | "
            f"{guessed[-1] / guessed[0]:.1f}x | {over[0]:.2f} at {sizes[0]}, {over[-1]:.2f} at {sizes[-1]} | "
            f"{axis['bend']:.2f} | {peaks[0] / 2**20:.1f} to {peaks[-1] / 2**20:.1f} MiB |"
        )
    lines += [
        "",
        f"Predicted: the operations of the fast steps' matrix products, at one rate for all, {rate / 1e9:.0f} GFLOP/s.",
    ]
    return "\n".join(lines)


WAYS = {
    "plain": "plain",
    "plain, compiled": "plain, `torch.compile`",
    "ours": "ours",
    "ours, compiled": "ours, `compile=true`",
    "ours, not recorded": "ours, `fast.record=false`",
    "quarter": "ours, `fast.subsample=4`, which is not recorded",
}


def gpu(found: Mapping[str, Any]) -> str:
    """Presets on a GPU."""
    parts = [part["found"] for name, part in found.items() if name.startswith("gpu-")]
    lines = []
    for part in parts:
        for kind, what in (("fast", "one fast step"), ("training", f"training step, {part['fast_steps']} fast steps")):
            one = part[kind]
            for work, second in one["seconds"].items():
                shares = one["share_of_peak"].get(work, {})
                shown = [f"{share:.0%}" if (share := shares.get(of)) else "" for of in ("nominal", "measured")]
                ratios = [times(one[key][work]) for key in ("faster_than_plain", "faster_than_compiled_plain")]
                cells = [f"{part['preset']}, {what}: {WAYS[work]}", f"{1000 * second['median']:.1f} ms"]
                cells += [f"{one['tokens_per_second'][work]:,.0f}", *shown, *ratios]
                lines.append(f"| {' | '.join(cells)} |")
    titles = "| bfloat16 | time | tokens a second | of nominal peak | of a large product | against plain "
    if not lines:
        return ""
    floors = [
        f"{part['preset']} {part['roofline'] * 1000:.1f} ms ({part['roofline'] / one['ours']['median']:.0%} of ours, "
        f"{part['roofline'] / one['ours, compiled']['median']:.0%} of ours compiled)"
        for part in parts
        for one in [part["fast"]["seconds"]]
    ]
    held = [
        f"{part['preset']} " + ", ".join(f"{WAYS[work]} {peak / 1e9:.1f} GB" for work, peak in peaks.items())
        for part in parts
        for peaks in [part["peak_bytes"]]
    ]
    return "\n".join(
        [
            titles + "| against plain, compiled |",
            "|---" * 7 + "|",
            *lines,
            "",
            f"{parts[0]['sequences']} sequences in a micro-batch. A step's matrix products by themselves: "
            f"{'; '.join(floors)}.",
            f"Peak memory of a training step, beyond weights and optimizer: {'; '.join(held)}.",
        ]
    )


BLOCKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "where": where,
    "targets": targets,
    "steps": steps,
    "levers": lever_table,
    "growth": growth,
    "gpu": gpu,
}
TITLES = {
    "where": "Hardware and versions",
    "targets": "Targets",
    "steps": "A fast step",
    "levers": "What the levers do to the bound",
    "growth": "How cost grows",
    "gpu": "On a GPU",
}


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """By the name that marks each in a page."""
    return {name: f"{make(found)}\n" for name, make in BLOCKS.items()}


def note(found: Mapping[str, Any], date: str) -> str:
    """All of it on one dated page."""
    made = {name: make(found) for name, make in BLOCKS.items()}
    sections = [f"## {TITLES[name]}\n\n{text}" for name, text in made.items() if text]
    return "\n\n".join([f"# Speed, {date}", *sections]) + "\n"
