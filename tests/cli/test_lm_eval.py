"""`pyro-ltm lm-eval`: the harness through the command line, on tasks of the test's own."""

from __future__ import annotations

import json
import math

import pytest


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, text):
    """A folder with three kinds of tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = text.read_text(encoding="utf-8").splitlines()[:4]
    rows = [{"q": line[:20], "options": [line[20:24], "zzzz"], "a": 0} for line in lines]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    kinds = {
        "my-choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "a",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "my-texts": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{q}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "my-answers": {
            "output_type": "generate_until",
            "doc_to_text": "{{q}}",
            "doc_to_target": "{{options[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 0.7},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in kinds.items():
        # JSON is YAML as well.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}), encoding="utf-8")
    return folder


ALL = "my-choices,my-texts,my-answers"


def test_json_is_one_object_and_a_file(ask, trained, tasks, tmp_path):
    out = tmp_path / "results.json"
    found = ask(
        *("lm-eval", trained, "--tasks", ALL, "--include-path", tasks, "--particles", 3, "--limit", 3, "--out", out)
    )
    results = found["results"]
    assert set(results) == set(ALL.split(","))
    assert 0 <= results["my-choices"]["acc,none"] <= 1
    assert results["my-texts"]["bits_per_byte,none"] > 0
    assert math.isfinite(results["my-texts"]["word_perplexity,none"])
    assert found["n-samples"]["my-texts"] == {"original": 4, "effective": 3}
    assert (found["config"]["particles"], found["config"]["fast_steps"], found["step"]) == (3, 2, 4)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    again = ask(
        *("lm-eval", trained, "--tasks", ALL, "--include-path", tasks, "--particles", 3, "--limit", 3),
        *("--batch-size", 1),
    )
    assert again["settings"] == []
    fitted = ["--tasks", "my-texts", "--include-path", tasks, "--particles", 3, "--limit", 3]
    other = ask("lm-eval", trained, *fitted, "--set", "fast.steps=9", "--set", "optimizer.lr=1")
    assert (other["config"]["fast_steps"], other["settings"]) == (9, ["fast.steps=9", "optimizer.lr=1"])
    assert other["results"]["my-texts"]["bits_per_byte,none"] != results["my-texts"]["bits_per_byte,none"]
    for metric, value in results["my-texts"].items():
        if isinstance(value, float):
            assert again["results"]["my-texts"][metric] == pytest.approx(value, rel=1e-3)


def test_table(invoke, twin, tasks):
    result = invoke("lm-eval", twin, "--tasks", ALL, "--include-path", tasks, "--num-fewshot", 3)
    assert result.exit_code == 0, result.stderr
    for words in (
        "Evaluation harness",
        "acc_norm",
        "word_perplexity",
        "exact_match",
        "cut from the left",
        "lm-eval 0.",
    ):
        assert words in result.stdout


def test_a_real_process_writes_json_alone(spawn, trained, tasks):
    process = spawn("lm-eval", trained, "--tasks", "my-choices", "--include-path", tasks, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "my-choices" in json.loads(out)["results"]
    assert all(line.startswith("loglikelihood: ") for line in err.splitlines())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tasks", "nowhere.yaml"), "--tasks nowhere.yaml: no such file"),
        (("--tasks", ","), "names no task"),
        (("--tasks", "my-texts", "--include-path", "nowhere"), "--include-path nowhere: no such folder"),
        (("--tasks", "my-texts", "--out", "nowhere/x.json"), "there is no folder"),
        (("--tasks", "my-texts", "--stride", "33"), "stride"),
        (("--tasks", "my-texts", "--set", "slow.lr=1"), "only the fast loop can change"),
    ],
)
def test_bad_input(refuse, trained, options, says):
    refuse("lm-eval", trained, *options, says=(says,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "cannot be loaded"),
        ({"generation_kwargs": {"num_beams": 3}, "output_type": "generate_until"}, "num_beams is not known here"),
    ],
)
def test_bad_tasks(refuse, trained, tasks, tmp_path, change, says):
    task = json.loads((tasks / "my-texts.yaml").read_text(encoding="utf-8")) | {"task": "bad"} | change
    if "generation_kwargs" in change:
        task |= {"doc_to_text": "{{q}}", "metric_list": [{"metric": "exact_match"}]}
    (tmp_path / "bad.yaml").write_text(json.dumps(task), encoding="utf-8")
    refuse("lm-eval", trained, "--tasks", "bad", "--include-path", tmp_path, says=(says,), quiet=False)
