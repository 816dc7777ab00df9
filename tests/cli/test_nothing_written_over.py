"""A command writes over nothing that is not its own, and not into what another one is writing."""

from __future__ import annotations

import threading

import pytest

from pyro_ltm.locks import locked
from pyro_ltm.runs import Run
from pyro_ltm.runs.evaluation_file import read_evaluation, write_evaluation


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors"])
def test_thoughts_are_not_written_over_a_part_of_a_run(name, refuse, own_run):
    before = (own_run / name).read_bytes()
    refuse("infer", own_run, "--text", "a", "--out", own_run / name, says=("is a part of", "name another file"))
    assert (own_run / name).read_bytes() == before


def test_texts_are_not_written_over_those_they_are_compared_with(refuse, own_run, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"text": "one"}\n{"text": "two"}\n')
    refuse("score-samples", "--run", own_run, "--reference", mine, "--texts-out", mine, says=("read by this command",))


@pytest.mark.parametrize("name", ["report.html", "report.json", "holiday.png"])
def test_a_report_leaves_the_files_of_others_alone(name, refuse, own_run, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / name).write_text("mine")
    options = ["--sequences", 4, "--particles", 1, "--out", tmp_path / "page"]
    refuse("report", own_run, *options, says=(f"has a {name} that is of no report",), quiet=False)


@pytest.mark.parametrize(
    "command",
    [
        lambda run, out: ["report", run, "--out", out],
        lambda run, out: ["train", "--data", run / "data", "--out", out],
        lambda run, out: ["prepare", "python-docs", "--out", out],
        lambda run, out: ["compare", run, "--guides", "delta", "--objectives", "map", "--out", out],
    ],
    ids=["report", "train", "prepare", "compare"],
)
def test_a_folder_that_is_being_written_is_refused(command, refuse, own_run, tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "out"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        says = ("out: is being written by process", "wait for it")
        refuse(*command(own_run, tmp_path / "out"), says=says, quiet=False)
    finally:
        done.set()
        thread.join()


def test_an_evaluation_is_recorded_while_the_run_trains_and_waits_for_another_record(ask, own_run):
    found = ask("evaluate", own_run, "--sequences", 3, "--particles", 1)
    (own_run / "evaluation.json").unlink()
    run = Run.load(own_run)
    with locked(own_run):  # the training
        with locked(own_run / "evaluation.json"):
            thread = threading.Thread(target=write_evaluation, args=(run, found))
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()
            assert read_evaluation(run) is None
        thread.join(60)
    kept = read_evaluation(run)
    assert kept is not None
    assert kept["bound"] == found["bound"]


def test_a_run_that_began_with_the_weights_of_another_says_so(ask, invoke, own_run, tmp_path):
    options = ["--data", own_run / "data", "--init-from", own_run, "--steps", 1, "--out", tmp_path / "new"]
    assert ask("train", *options)["step"] == 1
    found = ask("info", tmp_path / "new")
    assert found["origin"] == {"run": "../run", "step": 4, "parts": ["model", "guide"]}
    assert found["config"]["model"] == ask("info", own_run)["config"]["model"], "without a preset, its settings"
    assert "It began with the weights of ../run at step 4." in invoke("info", tmp_path / "new").stdout
    assert ask("info", own_run)["origin"] is None
