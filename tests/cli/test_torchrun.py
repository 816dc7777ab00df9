"""Commands in several processes: one of them speaks, and all end together."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.kills import eager, evaluation, until_hit
from helpers.processes import Forked
from helpers.ranks import PATIENCE, Ranks, rows, wait_for_step, wait_until
from safetensors.torch import load_file

from pyro_ltm.runs.partial_fits import PartialFits

LOST = "Error: another process of this command has ended before its time; a training goes on with --resume"


def told(codes, out, err):
    """The one line of error with which all ended."""
    assert codes == [2, 2], err
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def command(settings, trained, tmp_path):
    changed = settings(**{"slow.steps": 200, "slow.save_every": 5, "slow.eval_every": 0})
    return ["train", "--data", trained / "data", "--out", tmp_path / "run", *changed]


@pytest.fixture
def documents(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "a.txt"
    path.write_text("\n\n".join(text.read_text().splitlines()[:40]))
    return path


def test_what_is_of_one_process_is_refused(trained):
    assert "generate runs in one process: start it without torchrun" in told(*Ranks("generate", trained).end())


def connect_slowly():
    connect = dist.init_process_group

    def slowly(*arguments, **options):
        connect(*arguments, **options)
        if os.environ["RANK"] == "1":
            time.sleep(0.5)  # as if the last connection took so long
            Path("connected").touch()

    dist.init_process_group = slowly


def test_none_ends_before_all_are_connected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranks = Ranks("--version", first=connect_slowly)
    ranks.processes[0].communicate(timeout=PATIENCE)
    assert Path("connected").exists()
    assert ranks.end()[0] == [0, 0]


def test_others_that_cannot_be_reached(refused, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    process = Forked("train", "--resume", "--out", "run")
    said = process.communicate(timeout=PATIENCE)
    refused(process.returncode, *said, "process 0 of 2 cannot reach the others", "MASTER_PORT")


def test_bad_input_is_told_once(tmp_path):
    line = told(*Ranks("train", "--data", tmp_path / "nothing.txt", "--out", tmp_path / "run").end())
    assert "nothing.txt" in line
    assert list(tmp_path.iterdir()) == []


def test_what_the_first_alone_finds_is_told_once(trained, tmp_path):
    """It looks at what it is to write: for the others that might be what it has written meanwhile."""
    (tmp_path / "thesis.txt").write_text("precious")
    parts = ["--guides", "mean-field", "--objectives", "elbo"]
    assert "holds something else" in told(*Ranks("compare", trained, *parts, "--out", tmp_path).end())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_of_the_first_ends_all(command, tmp_path):
    line = told(*Ranks(*command, file_size=60_000).end())
    assert "no space left to write it" in line
    assert not (tmp_path / ".run.lock").exists()


def test_killed_alone_and_begun_again(command, tmp_path):
    """Who is left says so, and ends; the run goes on from its last checkpoint."""
    ranks = Ranks(*command)
    wait_for_step(7, tmp_path / "run", *ranks.processes)
    ranks.processes[1].kill()
    codes, _, err = ranks.end()
    assert codes == [2, -9]
    assert err.splitlines()[-1] == LOST
    ranks = Ranks("train", "--resume", "--out", tmp_path / "run", "--json")
    wait_for_step(rows(tmp_path / "run")[-1]["step"] + 1, tmp_path / "run", *ranks.processes)
    ranks.processes[1].send_signal(15)
    codes, out, err = ranks.end()
    assert (codes, out) == ([0, 0], "")
    assert "Stopped: at step" in err
    assert err.count("goes on from step") == 1


def test_the_first_killed_where_no_agent_keeps_the_store(command, tmp_path):
    """As `srun` starts them. What could be asked who speaks died with it, so each of the others does."""
    ranks = Ranks(*command, size=3)
    wait_for_step(7, tmp_path / "run", *ranks.processes)
    ranks.processes[0].kill()
    codes, _, err = ranks.end()
    assert codes == [-9, 2, 2]
    assert err.count(LOST) == 2


def held_up_in_a_write():
    os.replace = lambda *_: time.sleep(PATIENCE)


def test_scored_and_fitted_together(own_run, trained, ask, tmp_path):
    """With the figures of one process, in one file; nothing is left of an earlier start, killed while it wrote that."""
    ranks = Ranks("evaluate", own_run, "--sequences", 4, first=held_up_in_a_write)
    wait_until(lambda: list(own_run.glob(".evaluation.json.*/*")), ranks.processes[0])
    ranks.kill()
    assert not (own_run / "evaluation.json").exists()
    codes, out, err = Ranks("evaluate", own_run, "--sequences", 6, "--batch-size", 3, "--json").end()
    assert codes == [0, 0], err
    bound, alone = json.loads(out)["bound"], ask("evaluate", trained, "--sequences", 6, "--batch-size", 3)["bound"]
    assert bound.keys() == alone.keys()
    same = {key for key in bound if bound[key] == alone[key]}
    assert bound.keys() - same <= {"distortion_shuffled"}, "its sum is in another order"
    assert bound["distortion_shuffled"] == pytest.approx(alone["distortion_shuffled"], rel=1e-6)
    assert [path.name for path in own_run.glob(".*")] == []
    texts = tmp_path / "texts.txt"
    texts.write_text("mison dulo.\nlomika.\n" * 4)
    for command in ("infer --input", "embed --data"):
        name, option = command.split()
        codes, _, err = Ranks(name, own_run, option, texts, "--out", tmp_path / f"{name}.safetensors").end()
        assert codes == [0, 0], err
        ask(name, trained, option, texts, "--out", tmp_path / f"alone-{name}.safetensors")
        ours, theirs = (load_file(tmp_path / f"{which}{name}.safetensors") for which in ("", "alone-"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def fits_of(name, trained, text, out, steps=2):
    """A command that fits thoughts to 20 batches of documents."""
    words = [name, trained, {"infer": "--input", "embed": "--data"}[name], text, "--batch-size", 2]
    return [*words, "--fast-steps", steps, "--out", out]


def held_up():
    """Each process keeps two batches of fits, and then gets no further."""
    eager()
    add = PartialFits.add

    def add_and_wait(self, first, fits):
        add(self, first, fits)
        time.sleep(PATIENCE if first >= 4 else 0)

    PartialFits.add = add_and_wait


def test_fits_of_two_that_were_killed_are_not_done_again(trained, documents, ask, tmp_path):
    """What each of them had done is kept in its own file, and the table is that of one that nobody disturbed."""
    words = fits_of("embed", trained, documents, tmp_path / "e.safetensors")
    kept = tmp_path / ".e.safetensors.fits", tmp_path / ".e.safetensors.1.fits"
    ranks = Ranks(*words, first=held_up)
    wait_until(lambda: all(one.exists() and len(load_file(one)["places"]) == 4 for one in kept), *ranks.processes)
    assert ranks.kill()
    codes, _, err = Ranks(*words).end()
    assert codes == [0, 0], err
    assert err.count("Went on from 8 sequences that an earlier process had fitted.") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]
    ask(*fits_of("embed", trained, documents, tmp_path / "alone.safetensors"))
    ours, theirs = (load_file(tmp_path / f"{which}.safetensors") for which in ("e", "alone"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def pairs_in(out):
    return json.loads((out / "compare.json").read_text())["pairs"] if (out / "compare.json").exists() else []


def signalled_in_the_second_pair():
    """The second process alone."""
    from pyro_ltm.comparison import posteriors

    score, begun = posteriors.score_pair, []

    def score_and_signal(*arguments, **options):
        begun.append(None)
        if os.environ["RANK"] == "1" and len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*arguments, **options)

    posteriors.score_pair = score_and_signal


def test_compared_together(trained, ask, tmp_path):
    """Ended by a signal to one process, and gone on with by the same command; the pairs are those of one process."""
    parts = ["--guides", "mean-field", "--objectives", "analytic-elbo", "--fast-steps", "2,4,3"]
    words = ["compare", trained, *parts, "--sequences", 6, "--batch-size", 3, "--particles", 2, "--out"]
    codes, out, err = Ranks(*words, tmp_path / "c", first=signalled_in_the_second_pair).end()
    assert (codes, out) == ([0, 0], ""), err
    assert "Stopped: interrupted; what is scored is in" in err
    assert err.endswith("go on with the same command\n")
    assert len(pairs_in(tmp_path / "c")) == 1
    codes, out, err = Ranks(*words, tmp_path / "c", "--json").end()
    assert codes == [0, 0], err
    alone = ask(*words, tmp_path / "alone")["pairs"]
    for pair, other in zip(json.loads(out)["pairs"], alone, strict=True):
        for name in ("fast_steps", "elbo", "iwae", "ess", "rate", "distortion", "nats_by_sequence", "steps_to_1pct"):
            assert pair[name] == other[name], name
    assert (tmp_path / "c" / "compare.html").is_file()


@pytest.mark.long
def test_a_study_of_two_is_killed_and_gone_on_with_by_one(trained, settings, ask, tmp_path):
    changed = settings(**{"slow.steps": 6, "slow.save_every": 1})
    words = ["scale", "--data", trained / "data", *changed, "--axis", "fast.steps=1,2", "--rivals", "none"]
    words += ["--sequences", 4, "--particles", 2, "--resume", "--out"]
    second = tmp_path / "s" / "runs" / "ltm--seed=0"
    ranks = Ranks(*words, tmp_path / "s")
    wait_until((second / "trainer.safetensors").exists, *ranks.processes)
    ranks.kill()
    first = json.loads((tmp_path / "s" / "runs" / "ltm--fast.steps=1--seed=0" / "cell.json").read_text())
    assert first["machine"]["processes"] == 2
    found, alone = (ask(*words, tmp_path / name)["cells"] for name in ("s", "alone"))
    assert [cell["worker"] == first["worker"] for cell in found] == [True, False]
    for cell, other in zip(found, alone, strict=True):
        assert cell["tokens"] == other["tokens"]
        assert cell["bound"]["nats_per_token"] == pytest.approx(other["bound"]["nats_per_token"], rel=1e-5)
        assert [look["step"] for look in cell["curve"]] == [look["step"] for look in other["curve"]]


def weights_of(out):
    return [load_file(out / name) for name in ("model.safetensors", "trainer.safetensors")]


def kill_and_go_on(words, step):
    """Two processes, killed after a step, and the same command again."""
    ranks = Ranks(*words)
    wait_for_step(step, words[words.index("--out") + 1], *ranks.processes)
    assert ranks.kill()
    codes, _, err = Ranks(*words).end()
    assert codes == [0, 0], err
    assert "goes on from step" in err


def streamed(text, folder, settings):
    """A command that trains on the first sequences of a text, by the path that it writes."""
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
    changed = settings(**{"slow.steps": 16, "slow.save_every": 1, "slow.eval_every": 0})
    return lambda out: ["train", "--data", lines, "--stream", "--resume", *changed, "--out", out]


def test_a_stream_of_two_that_were_killed_has_the_losses_of_one(text, settings, invoke, tmp_path):
    words = streamed(text, tmp_path, settings)
    kill_and_go_on(words(tmp_path / "two"), 4)
    assert invoke(*words(tmp_path / "one")).exit_code == 0
    ours, theirs = (
        [row["bound_nats_per_token"] for row in rows(tmp_path / name) if row["kind"] == "train"]
        for name in ("two", "one")
    )
    assert len(theirs) == 16
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.long
def test_a_stream_of_two_goes_on_to_the_bit(text, settings, tmp_path):
    words = streamed(text, tmp_path, settings)
    assert Ranks(*words(tmp_path / "whole")).end()[0] == [0, 0]
    for step in (2, 9):
        kill_and_go_on(words(tmp_path / f"killed at {step}"), step)
        for killed, whole in zip(
            weights_of(tmp_path / f"killed at {step}"), weights_of(tmp_path / "whole"), strict=True
        ):
            assert all(torch.equal(killed[name], value) for name, value in whole.items())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["compare", "scale"])
def test_killed_at_any_moment_it_goes_on_in_any_number(name, kind, trained, settings, ask, tmp_path):
    """All processes at once, by turns two and one; it ends with the figures of undisturbed ones, of two and of one."""
    changed = settings(**{"slow.steps": 8, "slow.save_every": 1, "distributed.kind": kind})
    parts = {
        "compare": ["--train", "--guides", "mean-field,delta", "--objectives", "elbo,map", "--twin"],
        "scale": ["--axis", "fast.steps=1,2", "--equal", "tokens", "--resume"],
    }[name]
    words = [name, "--data", trained / "data", *changed, *parts, "--sequences", 4, "--particles", 2, "--out"]
    Ranks("--version").end()  # the first starts what the others are forked from
    began = time.monotonic()
    codes, out, err = Ranks(*words, tmp_path / "whole", "--json").end()
    assert codes == [0, 0], err
    draw, seconds, sizes = random.Random(0), time.monotonic() - began, itertools.cycle((2, 1))
    key, figure = {"compare": ("pairs", "elbo"), "scale": ("cells", "bound")}[name]
    expected = [pytest.approx(row[figure]["nats_per_token"], rel=1e-5) for row in json.loads(out)[key]]

    def levels(folder):
        return [row[figure]["nats_per_token"] for row in ask(*words, folder)[key]]

    def kill():
        ranks = Ranks(*words, tmp_path / "killed", size=next(sizes))
        time.sleep(draw.uniform(0.1, 0.4) * seconds)
        if not (hit := ranks.kill()):  # it was done: it begins anew, so that the next one may hit
            assert levels(tmp_path / "killed") == expected
            shutil.rmtree(tmp_path / "killed")
        return hit

    until_hit(5, kill)
    assert levels(tmp_path / "killed") == expected
    assert levels(tmp_path / "one") == expected
    assert [path.name for path in tmp_path.rglob(".*")] == []


@pytest.mark.long
def test_an_evaluation_killed_at_any_moment_begins_anew(trained, tmp_path):
    """Nothing half-written is left, and its figures are to the bit those of two that nobody disturbed."""
    whole, killed = (tmp_path / name / "run" for name in ("whole", "killed"))
    for run in (whole, killed):
        shutil.copytree(trained, run, ignore=shutil.ignore_patterns("evaluation.json", "plots"))
    words = ["--protocol", "all", "--particles", 8]
    Ranks("--version").end()  # the first starts what the others are forked from
    began = time.monotonic()
    codes, _, err = Ranks("evaluate", whole, *words).end()
    assert codes == [0, 0], err
    draw, seconds, expected = random.Random(0), time.monotonic() - began, evaluation(whole)

    def kill():
        ranks = Ranks("evaluate", killed, *words)
        time.sleep(draw.uniform(0.3, 0.9) * seconds)
        hit = ranks.kill()
        if (killed / "evaluation.json").exists():  # as it is written at the end, or by one that came too late
            assert evaluation(killed) == expected
            (killed / "evaluation.json").unlink()
        return hit

    until_hit(10, kill)
    codes, _, err = Ranks("evaluate", killed, *words).end()
    assert codes == [0, 0], err
    assert evaluation(killed) == expected
    left, right = ({path.relative_to(run.parent) for path in run.parent.rglob("*")} for run in (killed, whole))
    assert left == right


@pytest.mark.long
@pytest.mark.parametrize("name", ["infer", "embed"])
def test_fits_killed_at_any_moment_go_on_in_any_number(name, trained, documents, ask, tmp_path):
    """To the bit as one process that nobody disturbed has them."""
    Ranks("--version").end()  # the first starts what the others are forked from
    began = time.monotonic()
    codes, _, err = Ranks(*fits_of(name, trained, documents, tmp_path / "whole.safetensors", 10), first=eager).end()
    assert codes == [0, 0], err
    ask(*fits_of(name, trained, documents, tmp_path / "alone.safetensors", 10))
    alone, killed = load_file(tmp_path / "alone.safetensors"), tmp_path / "killed.safetensors"
    draw, seconds, sizes = random.Random(name), time.monotonic() - began, itertools.cycle((2, 1, 3))
    words = fits_of(name, trained, documents, killed, 10)

    def assert_same(path):
        found = load_file(path)
        assert all(torch.equal(found[key], alone[key]) for key in alone)

    def kill():
        ranks = Ranks(*words, size=next(sizes), first=eager)
        time.sleep(draw.uniform(0.2, 0.7) * seconds)
        hit = ranks.kill()
        if killed.exists():  # it was done: it begins anew, so that the next one may hit
            assert_same(killed)
            killed.unlink()
        return hit

    until_hit(5, kill)
    ask(*words)
    assert_same(killed)
    assert_same(tmp_path / "whole.safetensors")
    assert [path.name for path in tmp_path.rglob(".*")] == []
