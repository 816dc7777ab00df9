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


def killed(victim, result, seconds, where, hits, seed, tmp_path):
    """Killed until so many kills hit a process that ran, or a write; then it ends as if there had been none."""
    draw = random.Random(seed)
    out = tmp_path / "work" / "out.npz"
    out.parent.mkdir(parents=True)
    victim.begin(out)

    def kill():
        if where == ANY:
            ran = hit = victim.kill_after(draw.uniform(0, 0.8 * seconds), out)
        else:
            ran, hit = victim.kill_in_a_write("trainer.safetensors", draw.randint(1, 4), out, draw)
        if not ran or (victim.once and out.exists()):  # it was done: it begins anew, so that the next one may hit
            assert victim.result(out) == result
            shutil.rmtree(out.parent)
            out.parent.mkdir()
            victim.begin(out)
        return hit

    kills.until_hit(hits, kill)
    victim.end(out)
    assert victim.result(out) == result


@pytest.mark.parametrize(("name", "where"), [("train", WRITE), ("embed", ANY), ("scale", ANY)])
def test_killed(name, where, victims, undisturbed, tmp_path):
    killed(victims[name], *undisturbed(name), where, 1, 0, tmp_path)


HITS = 5
HUNDRED = [("train", ANY)] * 3 + [("train", WRITE)] * 4 + [("train --init-from", ANY)] * 2 + [("evaluate", ANY)] * 2
HUNDRED += [("compare", ANY)] * 3 + [("embed", ANY)] * 2 + [("scale", ANY)] * 2 + [("prepare", ANY)] * 5


@pytest.mark.long
@pytest.mark.parametrize("seed", range(len(HUNDRED)))
def test_killed_a_hundred_times(seed, victims, undisturbed, tmp_path):
    name, where = HUNDRED[seed]
    killed(victims[name], *undisturbed(name), where, HITS, seed, tmp_path)
