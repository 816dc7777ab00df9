"""Tokenizer files from strangers are read in bounded time and memory, or refused in a line when they are loaded."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.tokenizer_kinds import byte_level, kinds, llama, split, words

from pyro_ltm.data import Tokenizer
from pyro_ltm.data.tokenizer import expressions, safety
from pyro_ltm.data.tokenizer.expressions import KNOWN, refusal
from pyro_ltm.errors import UserError

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def replace(found: str, put: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: found}, "content": put}


def several(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def normalizer(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": several("normalizers", *steps)}


def splitting(expression: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": several("pretokenizers", step, LEVEL)}


def charsmap(replacement: bytes, trie: bytes = b"\0" * 8) -> dict[str, Any]:
    raw = struct.pack("<I", len(trie)) + trie + replacement + b"\0"
    return normalizer({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()})


def write(path: Path, backend: Any, change: dict[str, Any]) -> Path:
    """A tokenizer's file with some of its entries changed; those of `model` and `vocab` one by one."""
    content = json.loads(backend.to_str())
    content["model"]["vocab"] |= change.pop("vocab", {})
    content["model"] |= change.pop("model", {})
    path.write_text(json.dumps(content | change))
    return path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vocab": {"zzz": 4_000_000_000}}, "token 'zzz' has the id 4,000,000,000 among 301 tokens"),
        (normalizer(*[replace("e", "e" * 1000)] * 3), "can make a text 1,000,000,000 times as long"),
        (normalizer(*[replace("e", "ee")] * 8), "can make a text 256 times as long"),
        (normalizer(replace("[a-z]", "x" * 128, "Regex")), "can make a text 129 times as long"),
        (normalizer({"type": "Prepend", "prepend": "x" * 1000}), "can make a text 1,001 times as long"),
        (normalizer(replace("", "x")), "looks for the empty string"),
        (normalizer(*[{"type": "NFC"}] * 65), "it has 65 steps"),
        (charsmap(b"a" * 100_000), "can make a text 100,000 times as long"),
        ({"decoder": several("decoders", *[replace("e", "e" * 1000)] * 3)}, "1,000,000,000 times as long"),
        (splitting("(a+)+$"), "'(a+)+$': it repeats a group that holds a repetition or a choice"),
        (normalizer(replace("(a|a)*b", "", "Regex")), "it repeats a group that holds a repetition or a choice"),
        ({"decoder": replace(r"(\w+)\1", "", "Regex")}, "it refers back to what it found"),
        ({"model": {"max_input_chars_per_word": 10**9}}, "max_input_chars_per_word is over 1024"),
        ({"model": {"end_of_word_suffix": "x" * 10**6}}, "end_of_word_suffix has over 64 characters"),
        ({"vocab": {"x" * 20_000: 300}}, "a token has 20,000 characters"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9}},
            "post_processor.single does not hold the text once",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_refused(refused, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = write(tmp_path / "tokenizer.json", byte_level(), change)
    message = refused(Tokenizer.load, path)
    assert message.startswith(f"{path}: refused, for it could take endless time or memory: ")
    assert why in message


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"normalizer":' * 5000 + "1" + "}" * 5000, "nested too deep"),
        ('{"version": "1.0", "version": "1.0"}', "'version' is there twice"),
        ('{"model": {"type": "BPE", "vocab": {"a": 1e20}, "merges": []}}', "floating point"),
        ('{"model": null}', "not those of a tokenizer"),
        ("[]", "not those of a tokenizer"),
        ('"text"', "not those of a tokenizer"),
        ("nothing", "Expecting value"),
    ],
    ids=range(8),
)
def test_not_readable(refused, tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    message = refused(Tokenizer.load, path)
    assert message.startswith(f"{path}: not a readable tokenizer.json: ")
    assert why in message


def test_a_huge_file_and_a_folder(refused, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(safety, "SIZE", 1000)
    path = write(tmp_path / "tokenizer.json", byte_level(), {})
    assert "larger than" in refused(Tokenizer.load, path)
    (tmp_path / "other" / "tokenizer.json").mkdir(parents=True)
    assert "not a regular file" in refused(Tokenizer.load, tmp_path / "other")


@pytest.mark.parametrize(
    ("backend", "change"),
    [
        (words(), {"model": {"unk_token": "nope"}}),
        (byte_level(), {"pre_tokenizer": several("pretokenizers", {"type": "FixedLength", "length": 0}, LEVEL)}),
        (llama(), {"decoder": {"type": "Strip", "content": "e", "start": 10**18, "stop": 10**18}}),
    ],
    ids=["no unknown token", "nothing at a time", "more than all"],
)
def test_what_the_library_fails_on_is_an_error_of_a_line(refused, tmp_path: Path, backend: Any, change: dict) -> None:
    """Also where its code panics, which no `except Exception` would see."""
    path = write(tmp_path / "tokenizer.json", backend, change)

    def read() -> None:
        tokenizer = Tokenizer.load(path)
        tokenizer.decode(tokenizer.encode("Hello strange World"))

    assert refused(read).startswith("the tokenizer fails on")


def test_every_kind_that_is_in_use_is_read(tmp_path: Path) -> None:
    for tokenizer in kinds().values():
        tokenizer.save(tmp_path / "tokenizer.json")
        assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    usual = charsmap("ﷺ".encode() * 18)["normalizer"]["normalizers"]
    change = normalizer({"type": "Prepend", "prepend": "▁"}, *usual, replace(" {2,}", " ", "Regex"))
    path = write(tmp_path / "tokenizer.json", byte_level(), change)
    assert Tokenizer.load(path).pipeline.normalizers


def test_dropout_is_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path / "tokenizer.json", byte_level(), {"model": {"dropout": 0.9}}))
    assert tokenizer.encode("Hello World") == kinds()["bytes"].encode("Hello World")


# Expressions


@pytest.mark.parametrize(
    "expression",
    [
        *("(a+)+$", "(.*)*x", "([^x]|[^y])*z", "^(([a-z])+.)+[A-Z]([a-z])+$", "(?:a?){50}a{50}", "(x+x+)+y"),
        *("(?<a>a+)+b", "(?>a+)+b", "((a*)*)*b", "(?=(a+))a*b\\1", "(a{1,100}){1,100}b", "(?i)(a+)+", "(?~a)"),
        *("(?:(?:a|b)c)*d", "(?:ab?)+", "[(]((b|c))+", "[]a](b*)+", "[a[b]](c|d)+", "\\((a|b)+", "(?<x>\\g<x>)"),
    ],
)
def test_what_could_take_exponential_time_is_refused_unseen(expression: str, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert refusal(expression)


def test_every_known_expression_is_one_that_would_be_read() -> None:
    probes = [expressions._repeats_what_varies(expression) for expression in KNOWN]
    assert not any(probes)


def test_known_expressions_are_not_tried(monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert not any(map(refusal, KNOWN))


@pytest.mark.parametrize(
    "expression",
    [
        r"\p{Han}+|[^\s\p{Han}]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+(?i:'s|'t)?|\s+",
    ],
    ids=["Han", "class of classes"],
)
def test_other_expressions_are_tried_and_read(expression: str, monkeypatch) -> None:
    monkeypatch.setattr(expressions, "_LENGTH", 1 << 12)
    assert refusal(expression) == ""


@pytest.mark.parametrize("expression", [r"[\s\S]*[\s\S]*[\s\S]*[\x{1F000}-\x{1FFFF}]{9}", r"\s*\S", "("])
def test_what_takes_long_is_refused(expression: str, monkeypatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT", 0.6)
    expressions._measured.cache_clear()
    assert refusal(expression)
    expressions._measured.cache_clear()


def test_an_expression_that_runs_away_on_a_text_is_an_error_of_a_line() -> None:
    tokenizer = Tokenizer(byte_level(split(r"(?:a|a)+(?:a|a)+c{2}|."), regex=False))
    with pytest.raises(UserError, match="the tokenizer fails on this text"):
        tokenizer.encode("a" * 40 + "b" + "cc")
