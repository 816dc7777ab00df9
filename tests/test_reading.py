"""Files are read within bounds: what is too large, too deep or of another kind is refused in a line that says where."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyro_ltm.config import Config, apply_settings, dump_toml, load_toml
from pyro_ltm.errors import LONGEST, UserError, one_line, visible
from pyro_ltm.reading import (
    Count,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    read_npy,
    read_npz,
    read_safetensors,
    read_toml,
)


class Part(msgspec.Struct):
    count: Count
    level: float | None = None


class Whole(msgspec.Struct):
    name: str
    parts: dict[str, Part]
    shares: list[Annotated[float, msgspec.Meta(ge=0, le=1)]] = []


JSON = [
    ("{", "not valid JSON"),
    ("[" * 100_000, "nested more than 32 deep"),
    ('{"a":' * 33 + "1" + "}" * 33, "nested more than 32 deep"),
    ('{"name": "x", "parts": {}, "later": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 deep"),
    ("[]", "expected object, got array"),
    ('{"name": "x"}', "parts is missing"),
    ('{"name": 1, "parts": {}}', "name: expected str, got int"),
    ('{"name": "x", "parts": {"a": {"count": -1}}}', "parts[...].count: expected int >= 0"),
    ('{"name": "x", "parts": {"a": {"count": true}}}', "parts[...].count: expected int, got bool"),
    ('{"name": "x", "parts": {"a": {"count": 1, "level": NaN}}}', "not valid JSON"),
    ('{"name": "x", "parts": {"a": {"count": 1, "level": 1e999}}}', "number out of range"),
    ('{"name": "x", "parts": {"a": {"count": ' + "9" * 20 + "}}}", "count: expected int <= "),
    ('{"name": "x", "parts": {}, "later": -' + "9" * 200 + "}", "a number beyond 1e+100"),
    ('{"name": "x", "parts": {"a": {"count": ' + "9" * 5000 + "}}}", "out of range"),
    ('{"name": "x", "parts": {}, "shares": [0.5, 2]}', "shares[1]: expected float <= 1.0"),
    ('{"name": "\\ud800", "parts": {}}', "not valid JSON"),
    (b"\xff", "not valid JSON"),
]


@pytest.mark.parametrize(("content", "says"), JSON, ids=[says for _, says in JSON])
def test_json_that_does_not_fit(content, says, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_json(path, Whole)
    assert str(caught.value).startswith(f"{path}: damaged: ")
    assert says in str(caught.value)


def test_json_that_fits():
    """1 is a fine way to write 1.0, and what a later release added is passed over."""
    found = parse_json('{"name": "x", "parts": {"a": {"count": 3, "level": 1}}, "later": {"b": [2]}}', Whole)
    assert found == Whole("x", {"a": Part(3, 1.0)})


def test_a_name_that_is_no_utf8_is_not_called_damage(tmp_path):
    with pytest.raises(UserError, match=r"caf\\udce9/a.safetensors: its name is not UTF-8"):
        read_safetensors(tmp_path / "caf\udce9" / "a.safetensors")


def test_names_of_files_that_are_no_utf8_come_back(tmp_path):
    """A note of sources names whatever files there were: a folder whose note could not be read again was of no use."""
    (tmp_path / "file.json").write_text(json.dumps({"a": "caf\udce9.txt", "b": "\U0001f600", "c": 1}))
    assert read_json(tmp_path / "file.json", dict) == {"a": "caf\udce9.txt", "b": "\U0001f600", "c": 1}
    for damaged in ('"\\ud800"', '{"a": "\\udce9"', '{"a": "\\udce9", "b": NaN}'):
        with pytest.raises(UserError, match="not valid JSON"):
            parse_json(damaged, dict)


TOML = [
    ("a = 1\na = 2", "line 2: a is there twice"),
    ("[b]\nlr = 1\n\nlr = 2\nc = 3", "line 4: lr is there twice"),
    ("[a]\nb.c = 1\n[a.b]\nd = 2", "line 3"),
    ("[a]\n[a]\n", "twice"),
    ("a = " + "[" * 100_000, "nested more than 32 deep"),
    ("a = " + "{a = " * 50 + "1" + "}" * 50, "nested more than 32 deep"),
    (".".join("a" * 40) + " = 1", "nested more than 32 deep"),
    (".".join("a" * 100_000) + " = 1", "nested more than 32 deep"),
    ("[" + ".".join("a" * 100_000) + "]", "nested more than 32 deep"),
    ("a = {b" + ".b" * 100_000 + " = 1}", "nested more than 32 deep"),
    ("a = " + "9" * 5000, "4300 digits"),
    ("a = " + "9" * 20, "a number beyond 9.2e+18"),
    ("a = '\udc80'", "utf-8"),
    ("#" + " " * (1 << 18), "larger than 0.25 MiB"),
]


@pytest.mark.parametrize(("content", "says"), TOML, ids=range(len(TOML)))
def test_toml_that_cannot_be_read(content, says, tmp_path):
    path = tmp_path / "file.toml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"file\.toml: ") as caught:
        read_toml(path)
    assert says in str(caught.value)
    with pytest.raises(UserError):
        load_toml(path)


def test_toml_holds_the_numbers_that_a_field_may_refuse():
    assert parse_toml("a = 1e30\nb = inf\nc = -9_223_372_036_854_775_808")["a"] == 1e30
    assert apply_settings(Config(), ["slow.lr=1e30"]).slow.lr == 1e30


def test_toml_keeps_what_looks_deep_and_is_not():
    assert parse_toml("# " + "." * 999 + "\na = '...'")["a"] == "..."


@pytest.mark.parametrize("text", ["1\nseed = 3", "[" * 99_999, "{a.a", "9" * 5000, '"', "\x1b", "1979-05-27", "nan"])
def test_a_setting_that_is_no_value(text):
    with pytest.raises(UserError, match=r"--set .*slow\.steps"):
        apply_settings(Config(), [f"slow.steps={text}"])


def test_a_configuration_comes_back_whole(tmp_path):
    (tmp_path / "c.toml").write_text(dump_toml(Config()), encoding="utf-8")
    assert load_toml(tmp_path / "c.toml", whole=True) == Config()


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    assert read_bytes(tmp_path / "f", 5) == b"12345"
    with pytest.raises(UserError, match="larger than"):
        read_bytes(tmp_path / "f", 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "f" / "g", 4)
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path, 4)


def test_tensors_and_arrays_that_are_none(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "t", metadata={"a": "b"})
    tensors, meta = read_safetensors(tmp_path / "t")
    assert tensors["x"].tolist() == [1, 1, 1]
    assert meta == {"a": "b"}
    np.save(tmp_path / "a.npy", np.arange(3))
    for mapped in (False, True):
        assert read_npy(tmp_path / "a.npy", mapped=mapped).tolist() == [0, 1, 2]
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    for name in ("t", "a.npy"):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:-3])
    with pytest.raises(UserError, match="no safetensors file"):
        read_safetensors(tmp_path / "cut-t")
    for name in ("o.npy", "cut-a.npy", "t", "no"):
        for mapped in (False, True):
            with pytest.raises(UserError, match=r"not a readable \.npy file"):
                read_npy(tmp_path / name, mapped=mapped)


def test_an_archive_of_arrays(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.arange(3.0))
    assert read_npz(tmp_path / "a.npz", "x").tolist() == [0, 1, 2]
    assert read_npz(tmp_path / "a.npz", "y") is None
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(1 << 20))
    assert read_npz(tmp_path / "zeros.npz", "x").sum() == 0
    monkeypatch.setattr("pyro_ltm.reading.UNPACKED", 1 << 20)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-9])
    for name, says in (("o", "allow_pickle"), ("cut", "not a zip file"), ("zeros", "x unpacks to 8388736 bytes")):
        with pytest.raises(UserError, match=rf"{name}\.npz: damaged, or no \.npz file: .*{says}"):
            read_npz(tmp_path / f"{name}.npz", "x")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "missing.npz", "x")


def test_an_error_is_one_line_whatever_it_quotes():
    """A path, key or value of an attacker's choosing neither moves the cursor nor fills the screen."""
    error = UserError("a \x1b[2J\x9b\x07\rb\n  c\u202e\ud800")
    assert str(error) == r"a \x1b[2J\x9b\x07 b c\u202e\ud800"
    assert len(str(UserError("x" * 10**6))) == LONGEST
    assert one_line("a\x1b\n b\0", 9) == r"a\x1b b\x00"[:6] + "..."


def test_visible_text_keeps_its_lines():
    assert visible("na\u00efve\t\u4e2d\U0001f600\n") == "na\u00efve\t\u4e2d\U0001f600\n"
    assert visible("a\r\n\x1b]0;title\x07") == "a\\r\n\\x1b]0;title\\x07"
