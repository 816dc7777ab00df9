"""The few rows of README and docs/speed.md, made from a file of figures of speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages import table
from benchmarks.table import parameter_bytes, percent, raced, times, verdict


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """By the name that marks each in a page."""
    return {
        "speed in short": _processors([found[part]["found"] for part in ("speed", "float32") if part in found]),
        "gpu in short": _gpu([part["found"] for name, part in found.items() if name.startswith("gpu-")]),
        "nano in short": _nano(found),
        "speed in a line": _in_a_line(found),
        "rivals in short": _rivals(found),
    }


def _processors(parts: list[Mapping[str, Any]]) -> str:
    """`medium`, a column for each processor."""
    steps, trains = [part["fast_step"] for part in parts], [part["training_step"] for part in parts]
    writing = [part["generation"] for part in parts]
    written = f"writing {writing[0]['new_tokens']} tokens in a batch of {writing[0]['sequences']}, against plain"
    rows = [
        ["one fast step, against plain", *(times(one["faster_than_plain"]["ours"]) for one in steps)],
        ["... on a quarter of the tokens", *(times(one["faster_than_plain"]["quarter"]) for one in steps)],
        ["a training step, 16 fast steps, against plain", *(times(one["faster_than_plain"]["ours"]) for one in trains)],
        [written, *(times(one["faster_than_plain"]) for one in writing)],
        ["one fast step, share of the roofline", *(percent(one["roofline"]["ours"]["share_of_it"]) for one in steps)],
        ["peak memory of a training step, share of plain's", *map(_memory, parts)],
    ]
    return table([parts[0]["preset"], *(f"in {one['dtype']}" for one in steps)], rows)


def _memory(part: Mapping[str, Any]) -> str:
    """With weights and optimizer, and what the step holds beyond them."""
    peaks, own = part["training_step"]["peak_bytes"], parameter_bytes(part)
    beyond, whole = ((peaks["ours, 2 fast steps"] + more) / (peaks["plain"] + more) for more in (0, own))
    return f"{whole:.2f} ({beyond:.2f} beyond weights and optimizer)"


def _gpu(parts: list[Mapping[str, Any]]) -> str:
    """A training step of each of the paper's presets."""
    rows = []
    for part in parts:
        one = part["training"]
        against = one["faster_than_plain"]
        shares = [f"{one['share_of_peak'][way]['nominal']:.0%}" for way in ("ours", "ours, compiled")]
        compiled = one["faster_than_compiled_plain"]["ours, compiled"]
        cells = [f"{part['preset']}, {part['fast_steps']} fast steps", times(against["ours"])]
        rows.append([*cells, times(against["ours, compiled"]), times(compiled), " and ".join(shares)])
    columns = ["a training step, bfloat16", "ours, against plain", "`compile=true`, against plain"]
    return table([*columns, "... against plain, compiled", "of the GPU's nominal peak"], rows)


def _nano(found: Mapping[str, Any]) -> str:
    """Cost of the small preset and of the command line."""
    step, races = found["nano"]["found"]["fast_step"], found["race"]["found"]
    pipeline = found["pipeline"]["found"]
    waits = pipeline["waiting"]["data_seconds"] / pipeline["waiting"]["step_seconds"]
    rows = [
        ["time of a fast step with Pyro, against none", times(step["time_of_tensor"], 3)],
        ["one fast step, share of the roofline", percent(step["roofline"]["ours"]["share_of_it"])],
        ["time to the bound of plain's training", raced([one["racers"]["default"] for one in races])[0]],
        ["`pyro-ltm --help`", f"{pipeline['start_up']['pyro-ltm --help']['median']:.2f} s"],
        ["waiting for data", f"{waits:.1%} of a training step"],
    ]
    return table(["`nano`", ""], rows)


def _rivals(found: Mapping[str, Any]) -> str:
    """Targets that stand on one thread: `nano` against an earlier commit, the twin against `transformers`."""
    before, rival = found["before"]["found"], found["mistral"]["found"]
    rows = []
    least = before["targets"]["faster_than_before"]
    for name, what in (("now", "one fast step, `nano`, float32"), ("compiled", "... with `compile=true`")):
        ratio = before["faster_than_before"][name]
        rows += [[what, f"commit {before['commit']}", f"{least}x", times(ratio), verdict(ratio["median"] >= least)]]
    shares, least = before["share_of_the_roofline"], before["targets"]["share_of_the_roofline"]
    measured = f"{percent(shares['now'])}, {percent(shares['compiled'])}"
    good = max(shares[name]["median"] for name in ("now", "compiled")) >= least
    rows += [["the products' share of both", "roofline", f"{least:.0%}", measured, verdict(good)]]
    size = f"{rival['preset']} without thoughts, float32"
    for name, what in (
        ("training_step", f"a training step, {size}"),
        ("scoring", f"scoring {rival['sequences_scored']} sequences"),
        ("writing", f"writing {rival['new_tokens']} tokens, batch {rival['texts']}"),
    ):
        one = rival[name]
        good = one["faster"]["median"] >= one["target"]
        rows += [[what, "Mistral", f"{one['target']}x", times(one["faster"]), verdict(good)]]
    return table(["", "against", "target", "measured", "reached"], rows)


def _in_a_line(found: Mapping[str, Any]) -> str:
    """README's figure: a training step on a processor."""
    ours, on = found["speed"]["found"], found["speed"]["machine"]
    ratio = times(ours["training_step"]["faster_than_plain"]["ours"])
    return f"{ratio} (`{ours['preset']}`, {ours['fast_step']['dtype']}, {on['threads']} threads of {on['processor']})\n"
