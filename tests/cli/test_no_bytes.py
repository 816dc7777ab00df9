"""Where tokens do not determine the text, no command gives a figure by the byte or the word, and each says why."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from helpers.tiny import tiny_config
from helpers.tokenizer_kinds import kinds

from pyro_ltm.config import Config, ModelConfig
from pyro_ltm.data import prepare
from pyro_ltm.inference.build import build
from pyro_ltm.integrations.harness_tasks import leave_out
from pyro_ltm.runs import Run

TEXTS = [f"Hello World, {word} Text" for word in ("some", "more", "this", "indeed")]
WHY = "the tokens do not determine the text: 4 of 4 texts come back changed"
FIGURES = ("bits_per_byte", "bits_per_byte_stderr", "word_perplexity", "word_perplexity_stderr", "nats_per_word")


def make(folder, kind: str, *, thoughts: int = 2) -> Run:
    """A run that has learned nothing, on data of its own."""
    tokenizer = kinds()[kind]
    model = tiny_config(vocab_size=tokenizer.vocab_size, max_length=16, thoughts=thoughts, layers=1)
    assert isinstance(model, ModelConfig)
    config = Config(model=model)
    return Run.create(folder, config, *build(config), tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of either kind, the text, and tasks of it."""
    folder = tmp_path_factory.mktemp("folded")
    for kind, name in (("bytes, case folded", "folded"), ("bytes", "exact"), ("llama", "llama")):
        make(folder / name, kind)
        make(folder / f"{name}-twin", kind, thoughts=0)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "texts.jsonl").write_text(lines)
    (folder / "tasks.toml").write_text('[tasks.mine]\nsource = "texts.jsonl"\n[tasks.again]\nsource = "texts.jsonl"\n')
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    (folder / "mine.yaml").write_text(json.dumps(task))
    return folder


def figures(found: Any) -> list[Any]:
    """Every figure by the byte or the word that stands anywhere in an answer."""
    if isinstance(found, dict):
        own = [value for key, value in found.items() if key.partition(",")[0] in FIGURES and type(value) is float]
        return own + [value for inner in found.values() for value in figures(inner)]
    return [value for inner in found for value in figures(inner)] if isinstance(found, list) else []


FAST = ("--fast-steps", 1, "--particles", 2)


@pytest.mark.parametrize("name", ["folded", "exact", "llama"])
def test_every_command(place, ask, invoke, tmp_path, name):
    twin = ("--twin", place / f"{name}-twin")
    commands = [
        ("evaluate", place / name, "--data", place / "texts.jsonl", *twin, *FAST),
        ("zero-shot", place / name, place / "tasks.toml", *twin, *FAST, "--out", tmp_path / "table.csv"),
        ("score-samples", "--texts", place / "texts.jsonl", "--scorer", place / name, *FAST),
    ]
    for command in commands:
        found, spoken = ask(*command), invoke(*command).stdout
        known = figures(found)
        if name == "folded":
            assert not known, command[0]
            assert WHY in json.dumps(found), command[0]
            assert WHY in " ".join(spoken.split()), command[0]
            assert not [line for line in spoken.splitlines() if "bits a byte" in line and "No bits" not in line]
        else:
            assert known, command[0]
            assert all(math.isfinite(value) and value > 0 for value in known)
            assert "determine" not in json.dumps(found) + spoken
    table = (tmp_path / "table.csv").read_text()
    assert (WHY in table) is (name == "folded")


def test_the_harness(place, ask, invoke):
    """Its rolling tasks are by the word and the byte, and nothing else."""
    command = ("lm-eval", place / "folded", "--tasks", "mine", "--include-path", place, *FAST)
    found, spoken = ask(*command), " ".join(invoke(*command).stdout.split())
    assert found["no_bytes"] == {"mine": WHY}
    metrics = {key: value for key, value in found["results"]["mine"].items() if "per" in key}
    assert set(metrics.values()) == {None}
    assert {"word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"} <= metrics.keys()
    assert f"mine: no figures by the byte or the word: {WHY}." in spoken
    assert "perplexity" not in spoken


def test_groups_of_the_harness_lose_what_their_tasks_lose():
    def tables():
        return {
            "results": {name: {"bits_per_byte,none": 1.0, "bits_per_byte_stderr,none": 0.1} for name in "abg"},
            "groups": {name: {"bits_per_byte,none": 1.0, "acc,none": 0.5} for name in "gh"},
            "group_subtasks": {"g": ["i"], "i": ["a"], "h": ["b"]},
        }

    found = tables()
    leave_out(found, ["a"])
    nothing = {"bits_per_byte,none": None, "bits_per_byte_stderr,none": None}
    assert found["results"] == {"a": nothing, "g": nothing, "b": tables()["results"]["b"]}
    assert found["groups"] == {"g": {"bits_per_byte,none": None, "acc,none": 0.5}, "h": tables()["groups"]["h"]}


def test_figures_by_the_byte_do_not_count_the_space_that_a_tokenizer_adds(place, ask):
    """The bytes are those of the text, whichever command reads it."""
    nats, size = {}, sum(len(text.encode()) for text in TEXTS)
    evaluated = ask("evaluate", place / "llama-twin", "--data", place / "texts.jsonl")["bound"]
    scored = ask("zero-shot", place / "llama-twin", place / "tasks.toml", "--only", "mine")["tasks"]["mine"]["bound"]
    for name, found in (("evaluate", evaluated), ("zero-shot", scored)):
        nats[name] = found["nats_per_token"] * evaluated["tokens"]
        assert found["bits_per_byte"] == pytest.approx(nats[name] / math.log(2) / size, rel=1e-6)


def test_prepare_says_it(place, ask, invoke, tmp_path):
    for name in ("folded", "exact"):
        tokenizer = ("--tokenizer", place / name, "--validation-fraction", 0)
        command = ("prepare", place / "texts.jsonl", *tokenizer, "--overwrite", "--out", tmp_path / name)
        found, spoken = ask(*command), " ".join(invoke(*command).stdout.split())
        changed = 4 if name == "folded" else 0
        assert found["splits"]["train"]["changed_documents"] == changed
        assert found["splits"]["train"]["unknown_tokens"] == 0
        assert found["no_bytes"] == ({"train": WHY} if changed else {})
        expected = f"{WHY}, so there are no figures" if changed else "each text comes back from its tokens"
        assert f"Text and tokens of train: {expected}" in spoken


def test_an_upper_and_a_lower_text_are_not_told_apart_by_figures(place, ask, tmp_path):
    """They have the same tokens, so what is said of the one would be said of the other."""
    found = {}
    for name, change in (("as it is", str), ("upper", str.upper), ("lower", str.lower)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": change(text)}) + "\n" for text in TEXTS))
        found[name] = ask("evaluate", place / "folded", "--data", path, *FAST)["bound"]
    assert found["as it is"]["nats_per_token"] == found["upper"]["nats_per_token"] == found["lower"]["nats_per_token"]
    assert [one["bits_per_byte"] is None for one in found.values()] == [True, True, False]
    data = prepare([str(tmp_path / "lower.jsonl")], tmp_path / "out", tokenizer=kinds()["bytes, case folded"])
    assert data.meta["splits"]["train"]["changed_documents"] == 0
