"""What is said of the sources of text, and how the thoughts of documents are joined to them again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import torch
from safetensors import safe_open

from pyro_ltm.data import Tokenizer


@pytest.fixture
def documents(tmp_path):
    """Records of which the first has no text, the second one is long."""
    rows = [
        {"key": "a", "text": ""},
        {"key": "b", "text": "kalo miter son vedu " * 30},
        {"key": "c", "text": "ter son"},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_thoughts_are_joined_to_their_documents(ask, trained, documents, tmp_path):
    out = tmp_path / "thoughts.safetensors"
    result = ask("infer", trained, "--input", documents, "--id-column", "key", "--out", out)
    assert result["documents"] == 2
    with safe_open(out, framework="pt") as file:
        numbers = file.get_tensor("document")
        listed = json.loads(file.metadata()["pyro-ltm thoughts 1"])["documents"]
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [1] * (result["sequences"] - 1) + [2]
    assert listed == [
        {"document": 1, "origin": f"{documents}:2", "id": "b"},
        {"document": 2, "origin": f"{documents}:3", "id": "c"},
    ]


def test_more_names_than_a_file_holds(invoke, trained, documents, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_ltm.runs.documents.MOST_NAMED", len(f"{documents}:2"))
    result = invoke("infer", trained, "--input", documents, "--out", tmp_path / "z.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "The file names the first 1 documents; `document` numbers all of them." in result.stderr
    with safe_open(tmp_path / "z.safetensors", framework="pt") as file:
        assert [one["document"] for one in json.loads(file.metadata()["pyro-ltm thoughts 1"])["documents"]] == [1]


def test_an_npz_holds_the_same(ask, trained, documents, tmp_path):
    for suffix in ("safetensors", "npz"):
        ask("infer", trained, "--input", documents, "--out", tmp_path / f"z.{suffix}")
    with np.load(tmp_path / "z.npz") as arrays, safe_open(tmp_path / "z.safetensors", framework="np") as file:
        assert set(arrays) == {*file.keys(), "meta"}
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            np.testing.assert_array_equal(arrays[name], file.get_tensor(name))
        meta = json.loads(str(arrays["meta"]))
        assert meta.pop("format") == "pyro-ltm thoughts 1"
        kept = json.loads(file.metadata()["pyro-ltm thoughts 1"])
        kept.pop("crc32")  # of that file; an archive has checksums of its own
        assert meta == kept
    written = [
        ask("generate", trained, "--thoughts", tmp_path / f"z.{suffix}", "--num", 2, "--max-new-tokens", 3)["texts"]
        for suffix in ("safetensors", "npz")
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\x00"])
def test_an_npz_that_is_none(refuse, trained, tmp_path, content):
    path = tmp_path / "z.npz"
    path.write_bytes(content)
    refuse("generate", trained, "--thoughts", path, says=("damaged, or no .npz file",))


@pytest.mark.parametrize("name", ["z", "z.pt", "z.npy", "z.json"])
def test_a_suffix_that_infer_does_not_write(refuse, trained, documents, tmp_path, name):
    says = ("expected a name that ends in .safetensors or .npz",)
    refuse("infer", trained, "--input", documents, "--out", tmp_path / name, says=says)


def test_prepare_says_what_it_read(ask, invoke, text, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(text.read_bytes())
    (folder / "c.png").touch()
    (folder / "d.jsonl").write_text('{"text": null}\n{"text": "kalo"}\n')
    options = ["--vocab-size", 300, "--skip-empty"]
    result = ask("prepare", folder, "--out", tmp_path / "json", *options)
    assert result["files_read"]["count"] == 3
    assert [one["path"] for one in result["files_skipped"]["first"]] == [str(folder / "c.png")]
    assert result["documents_without_text"] == 1
    assert result["duplicate_documents"] == {"train": 1, "validation": 1}
    shown = invoke("prepare", folder, "--out", tmp_path / "shown", *options).stdout
    for line in (
        "Files read: 3; not read: 1.",
        f"  {folder / 'c.png'}: of a kind that is read only where it is named itself",
        "Left out: 1 documents without text.",
        "Duplicates: 1 documents of the train split have the text of an earlier one.",
    ):
        assert f"\n{line}\n" in shown


def test_other_commands_say_what_they_left_out(invoke, trained, text, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(text.read_text()[:900])
    (tmp_path / "in" / "b.png").touch()
    result = invoke("evaluate", trained, "--data", tmp_path / "in", "--sequences", 2)
    assert result.exit_code == 0
    assert "Files read: 1; not read: 1." in result.stderr


def test_options_of_reading_reach_the_readers(ask, refuse, text, trained, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "id:body\n" + "".join(f"{number}:{line}\n" for number, line in enumerate(text.read_text().splitlines()))
    )
    options = ["--delimiter", ":", "--text-column", "body"]
    result = ask("prepare", path, *options, "--vocab-size", 300, "--out", tmp_path / "data")
    assert result["text_column"] == "body"
    refuse("prepare", path, *options, "--record-limit", 1e-5, "--out", tmp_path / "no", says=("a line of over",))
    refuse("prepare", path, "--delimiter", "::", "--out", tmp_path / "no", says=("expected one character",))
    says = ("is prepared already",)
    refuse("evaluate", trained, "--data", tmp_path / "data", "--text-column", "body", says=says)
    refuse(
        "prepare", text, "--text-column", "body", "--out", tmp_path / "no", says=("plain text, which has no column",)
    )


def test_a_named_end_of_text_stays_with_the_run(ask, refuse, settings, text, trained, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    backend.add_special_tokens(["<stop>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    options = ["--tokenizer", tmp_path / "tokenizer.json", "--end-of-text"]
    ask("prepare", text, *options, "<stop>", "--sequence-length", 32, "--out", tmp_path / "data")
    ask("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *settings(**{"slow.steps": 1}))
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    assert meta["end_of_text"] == 300
    assert Tokenizer.load(tmp_path / "run").end_of_text == 300
    refuse("prepare", text, *options, "<end>", "--out", tmp_path / "no", says=("tokenizer.json: the tokenizer has no",))
    refuse("prepare", text, "--end-of-text", "<stop>", "--out", tmp_path / "no", says=("is of --tokenizer",))


def test_infer_and_zero_shot_say_what_they_did_not_read(ask, invoke, trained, text, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(text.read_text()[:200])
    (tmp_path / "in" / "b.png").touch()
    result = ask("infer", trained, "--input", tmp_path / "in", "--out", tmp_path / "z.npz")
    assert result["files_read"] == {"count": 1, "first": [str(tmp_path / "in" / "a.txt")]}
    assert result["files_skipped"]["count"] == 1
    (tmp_path / "tasks.toml").write_text('[tasks.mine]\nsource = "in"\n')
    shown = invoke("zero-shot", trained, tmp_path / "tasks.toml", "--particles", 1)
    assert shown.exit_code == 0, shown.stderr
    assert "mine: Files read: 1; not read: 1." in shown.stderr


def test_tasks_take_the_options_of_reading(ask, trained, text, tmp_path):
    lines = text.read_text().splitlines()[:9]
    (tmp_path / "a.csv").write_text("id:text\n" + "".join(f"{n}:{line}\n" for n, line in enumerate(lines)))
    (tmp_path / "b.jsonl").write_text('{"text": null}\n' + json.dumps({"text": "\n".join(lines)}) + "\n")
    (tmp_path / "tasks.toml").write_text(
        '[tasks.a]\nsource = "a.csv"\ndelimiter = ":"\n[tasks.b]\nsource = "b.jsonl"\nskip_empty = true\n'
    )
    tasks = ask("zero-shot", trained, tmp_path / "tasks.toml", "--particles", 1)["tasks"]
    assert tasks["a"]["words"] == tasks["b"]["words"] == sum(len(line.split()) for line in lines)
