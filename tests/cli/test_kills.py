"""Kill -9 at random moments: the next start goes on, and what comes out is to the bit what an undisturbed one gives.

Together the long forms kill more than a hundred times.
"""

from __future__ import annotations

import random
import shutil
import sys

import pytest
from helpers import kills
from helpers.kills import Victim
from helpers.processes import Forked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

ANY, WRITE = "any moment", "a write of the checkpoint"


@pytest.fixture(scope="module")
def victims(settings, text, trained, tmp_path_factory):
    """Commands by name; each takes a second or two."""
    documents = tmp_path_factory.mktemp("documents") / "a.txt"
    documents.write_text("\n\n".join(text.read_text().splitlines()[:40]))
    longer = tmp_path_factory.mktemp("longer") / "long.txt"
    longer.write_text(text.read_text() * 40)
    often = settings(**{"slow.steps": 12, "slow.save_every": 1, "slow.eval_every": 6, "slow.average": 0.9})
    parts = ["--guides", "mean-field,low-rank:2", "--objectives", "elbo,stl", "--sequences", 8]
    cells = ["--axis", "fast.steps=2", "--equal", "tokens", "--sequences", 4, "--particles", 2]

    def copied(out):
        shutil.copytree(trained, out, ignore=shutil.ignore_patterns("evaluation.json", "plots"))

    return {
        "train": Victim(
            lambda out: ["train", "--data", text, "--out", out, "--resume", *often], kills.weights_and_metrics
        ),
        "train --init-from": Victim(
            lambda out: ["train", "--data", trained / "data", "--out", out, "--init-from", trained, "--resume", *often],
            kills.weights_and_metrics,
        ),
        "evaluate": Victim(lambda out: ["evaluate", out, "--protocol", "all"], kills.evaluation, copied),
        "compare": Victim(lambda out: ["compare", trained, "--out", out, *parts], kills.compared),
        "embed": Victim(
            lambda out: ["embed", trained, "--data", documents, "--out", out, "--batch-size", 2, "--fast-steps", 20],
            kills.embedded,
        ),
        "scale": Victim(
            lambda out: ["scale", "--data", trained / "data", "--out", out, "--resume", *cells, *often], kills.studied
        ),
        "prepare": Victim(lambda out: ["prepare", longer, "--out", out, "--vocab-size", 300], kills.files, once=True),
    }


@pytest.fixture(scope="module")
def undisturbed(victims, tmp_path_factory):
    """What a command leaves behind when nobody kills it, and the seconds that it takes."""
    found = {}
    Forked("--version").communicate(kills.PATIENCE)  # the first starts what the others are forked from

    def result(name):
        if name not in found:
            out = tmp_path_factory.mktemp("undisturbed") / "out.npz"
            seconds = victims[name].undisturbed(out)
            found[name] = victims[name].result(out), seconds
        return found[name]

    return result


def killed(victim, result, seconds, where, times, seed, tmp_path):
    """Kills, of at most `times`, and how many hit a running process; after them it ends as if there had been none."""
    draw, kills, hits = random.Random(seed), 0, 0
    out = tmp_path / "work" / "out.npz"
    out.parent.mkdir(parents=True)
    victim.begin(out)
    for _ in range(times):
        if where == ANY:
            hit = victim.kill_after(draw.uniform(0, 0.8 * seconds), out)
        else:
            hit = victim.kill_in_a_write("trainer.safetensors", draw.randint(1, 4), out, draw)
        kills, hits = kills + 1, hits + hit
        if not hit or (victim.once and out.exists()):  # it was done: it begins anew, so that the next one may hit
            assert victim.result(out) == result
            shutil.rmtree(out.parent)
            out.parent.mkdir()
            victim.begin(out)
    victim.end(out)
    assert victim.result(out) == result
    return kills, hits


@pytest.mark.parametrize(
    ("name", "where", "times"),
    [("train", WRITE, 2), ("embed", ANY, 1), ("scale", ANY, 1)],
)
def test_killed(name, where, times, victims, undisturbed, tmp_path):
    result, seconds = undisturbed(name)
    tries = (killed(victims[name], result, seconds, where, times, seed, tmp_path / f"{seed}") for seed in range(5))
    assert any(hits for _, hits in tries), "all came too late: the command had ended"


HUNDRED = [
    *[("train", ANY, 6)] * 3,
    *[("train", WRITE, 4)] * 4,
    *[("train --init-from", ANY, 6)] * 2,
    *[("evaluate", ANY, 6)] * 2,
    *[("compare", ANY, 6)] * 3,
    *[("embed", ANY, 6)] * 2,
    *[("prepare", ANY, 6)] * 2,
    *[("scale", ANY, 6)] * 2,
    *[("prepare", ANY, 6)] * 3,
]
assert sum(times for _, _, times in HUNDRED) == 130


@pytest.mark.long
@pytest.mark.parametrize("seed", range(len(HUNDRED)))
def test_killed_a_hundred_times(seed, victims, undisturbed, tmp_path):
    name, where, times = HUNDRED[seed]
    result, seconds = undisturbed(name)
    kills, hits = killed(victims[name], result, seconds, where, times, seed, tmp_path)
    print(f"{name}, {where}: {hits} of {kills} kills hit a process that ran")
    assert hits, "all came too late: the command had ended"
