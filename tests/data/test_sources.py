"""Reading text: every kind of source, and what is said when it is bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm.data import Document, Reading, read_source
from pyro_ltm.data.readers import streams
from pyro_ltm.data.readers.plain import cut_place
from pyro_ltm.data.readers.streams import PIECE


def texts(spec: str | Path, **options) -> list[str]:
    return [document.text for document in read_source(str(spec), Reading(**options))]


def write_parquet(path: Path, **columns: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# What can be read


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Grüße,\n\nzwei Absätze.\n", encoding="utf-8")
    assert list(read_source(str(path))) == [Document("Grüße,\n\nzwei Absätze.\n", str(path))]


@pytest.mark.parametrize("name", ["README.md", "wiki.test.tokens", "wiki.raw", "NOTES", "a.log"])
def test_a_named_file_of_any_other_suffix_is_plain_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("some text")
    assert texts(tmp_path / name) == ["some text"]


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert texts(path) == ["one\ntwo\nthree\n"]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one\\r\\n", "n": 1}\n\n  \n{"text": "", "n": 2}\r\n{"text": "three"}')
    documents = list(read_source(str(path)))
    assert [document.text for document in documents] == ["one\r\n", "", "three"]
    assert [document.origin for document in documents] == [f"{path}:1", f"{path}:4", f"{path}:5"]
    assert not any(document.continues for document in documents)


def test_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "why?", "text": "no"}\n')
    assert texts(path, text_column="question") == ["why?"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffid,text\n1,"two\nlines, ""quoted"""\n\n2,plain\n', encoding="utf-8")
    documents = list(read_source(str(path)))
    assert [document.text for document in documents] == ['two\nlines, "quoted"', "plain"]
    assert [document.origin for document in documents] == [f"{path}:2", f"{path}:5"]


def test_csv_with_a_long_field(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"' + "word " * 100_000 + '"\n')
    assert texts(path) == ["word " * 100_000]


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", n=[1, 2], text=["one", "two"])
    assert list(read_source(str(path))) == [Document("one", f"{path}: row 1"), Document("two", f"{path}: row 2")]


def test_folder_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "c.txt").write_text("c")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "z.jsonl").write_text('{"text": "z"}')
    (tmp_path / "empty.txt").touch()
    for other in ("a.png", ".hidden/x.txt", ".x.txt", "a.py"):
        (tmp_path / other).write_bytes(b"\0")
    assert texts(tmp_path) == ["a", "c", "z"]


def test_glob(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.tokens", "a.tokens", "sub/c.tokens", "d.txt"):
        (tmp_path / name).write_text(name)
    assert texts(f"{tmp_path}/*.tokens") == ["a.tokens", "b.tokens"]
    assert texts(f"{tmp_path}/**/*.tokens") == ["a.tokens", "b.tokens", "sub/c.tokens"]


def test_a_file_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("bracket")
    assert texts(tmp_path / "a[1].txt") == ["bracket"]


def test_hub_from_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "three", "n": 3}\n')
    spec = f"hf:{tmp_path}"
    assert list(read_source(spec)) == [Document("one", f"{spec}: row 1"), Document("two", f"{spec}: row 2")]
    assert texts(spec, split="test") == ["three"]
    assert texts(spec, streaming=False) == ["one", "two"]


def test_neither_torch_nor_datasets_is_imported_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    script = (
        "import sys; from pyro_ltm.data import Tokenizer, prepare, read_source; "
        "list(read_source(sys.argv[1])); "
        "print([name for name in ('torch', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "a.txt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# Long files come in pieces that tokenize as the whole does


def test_a_long_file_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "".join(f"line {number} ünïcödé\n" for number in range(20_000))
    path.write_text(text, encoding="utf-8")
    documents = list(read_source(str(path)))
    assert "".join(document.text for document in documents) == text
    assert len(documents) > 2
    assert [document.continues for document in documents] == [False] + [True] * (len(documents) - 1)
    assert max(len(document.text) for document in documents) <= 2 * PIECE


@given(st.lists(st.sampled_from(["a", "b'll", " ", "\n", "\n\n", "\n ", "\t", ".", "1", "é", "\u00a0", "\x1c"])))
def test_cut_place_keeps_the_tokens(gpt2, parts: list[str]) -> None:
    text = "".join(parts)
    cut = cut_place(text)
    assert gpt2.encode(text[:cut]) + gpt2.encode(text[cut:]) == gpt2.encode(text)


@pytest.mark.parametrize(
    ("text", "cut"),
    [("a\nb", 0), ("a\nbc", 2), ("a\n bc", 2), ("a\n\nbc", 2), ("a\nbc\n\nde", 2), ("a\n  bc", 0), ("abc", 0), ("", 0)],
)
def test_cut_place(text: str, cut: int) -> None:
    assert cut_place(text) == cut


@pytest.mark.parametrize(
    "name", ["tinyshakespeare/input.txt", "wikitext-2/wiki.test.tokens", "tinystories/tiny_stories.txt"]
)
def test_pieces_of_real_text_tokenize_as_the_whole(gpt2, shared_data: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 10_000)
    pieces = texts(shared_data / name)
    assert len(pieces) > 80
    tokens = [token for ids in gpt2.encode_batch(pieces) for token in ids]
    assert tokens == gpt2.encode((shared_data / name).read_text(encoding="utf-8"))
    if "shakespeare" in name:
        assert len(tokens) == 338_025


def test_utf8_and_line_ends_across_reads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 1)
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\nß😀\r\n\r\nx".encode())
    assert "".join(texts(tmp_path / "a.txt")) == "é\nß😀\n\nx"


# What is refused, and how


def test_nothing_of_that_name(refused, tmp_path: Path) -> None:
    message = refused(read_source, "python-dcs")
    assert message.startswith("python-dcs: no such file, folder or corpus (did you mean 'python-docs'?)")
    assert "'hf:org/data' for a Hugging Face data set" in refused(read_source, "org/data")
    assert "hf:org/name" in refused(read_source, str(tmp_path / "missing.txt"))
    assert "no such file" in refused(read_source, "x\0y")
    refused(read_source, "x" * 5000)
    refused(read_source, "two\nlines")
    assert refused(read_source, "").startswith("a source without a name"), "a path without a name is the folder at hand"


def test_folder_or_glob_without_text(refused, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    kinds = ".txt, .md, .jsonl, .ndjson, .json, .csv, .tsv, .parquet"
    why = f"{tmp_path / 'a.png'}: of a kind that is read only where it is named itself"
    assert refused(read_source, str(tmp_path)) == f"{tmp_path}: no {kinds} file in it; not read: {why}"
    assert refused(read_source, f"{tmp_path}/*.txt") == f"{tmp_path}/*.txt: no file matches"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.txt", " \n \n"),
        ("a.txt", "\ufeff"),
        ("a.jsonl", ""),
        ("a.jsonl", '{"text": ""}'),
        ("a.csv", ""),
        ("a.csv", "text\n"),
        ("a.parquet", ""),
    ],
)
def test_empty(refused, tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert refused(read_source, str(path)) == f"{path}: empty; expected some text"
    assert refused(read_source, str(tmp_path)) == f"{tmp_path}: empty; expected some text"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_binary(refused, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"text": "a"}\n{"te\0xt": "b"}\n')
    text_column = '{"text": "a"}' if name == "a.csv" else None
    message = refused(read_source, str(path), Reading(text_column=text_column))
    assert message.startswith(f"{path}:2: a NUL byte, so this is a binary file or UTF-16")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_not_utf8(refused, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(
        b'text\n{"a": 1}\ncaf\xe9 au lait\n' if name != "a.jsonl" else b'{"text":0}\n'.replace(b"0", b'"\xe9"')
    )
    place = ":1: byte 9" if name == "a.jsonl" else ":3: byte 17"
    assert refused(read_source, str(path)).startswith(f"{path}{place} is not UTF-8; expected text in UTF-8")


@pytest.mark.parametrize("head", ["", "\ufeff"])
@pytest.mark.parametrize("tail", [b"\xe9 tail", b"\xf0\x9f"])
def test_not_utf8_far_into_a_file(refused, tmp_path: Path, monkeypatch, head: str, tail: bytes) -> None:
    monkeypatch.setattr(streams, "PIECE", 64)
    path = tmp_path / "a.txt"
    content = (head + "é line\n" * 100).encode()
    path.write_bytes(content + tail)
    assert f"{path}:101: byte {len(content)} is not UTF-8" in refused(read_source, str(path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"', ":2: not valid JSON: "),
        ("plain", ":2: not valid JSON: "),
        ("[" * 100_000, ":2: not valid JSON: "),
        ("[1]", ':2: a JSON list; expected an object such as {"text": ...}'),
        ('"x"', ":2: a JSON str; expected an object"),
        ('{"text": 3}', ":2: 'text' is int; expected a string"),
        ('{"text": null}', ":2: 'text' is empty (null); expected a string (--skip-empty leaves such records out)"),
        ('{"txt": "a", "n": 1}', ":2: no column 'text' (did you mean 'txt'?): its columns are txt, n"),
        ("{}", ":2: no column 'text': its columns are none"),
        ('{"text": "a\\ud800b"}', ":2: 'text' holds half a character (surrogate U+D800 at 1)"),
    ],
)
def test_bad_json_line(refused, tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    assert refused(read_source, str(path)).startswith(f"{path}{expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "id,body\n1,x\n",
            ":1: no column 'text' (the delimiter is a comma; --delimiter names another): its",
        ),
        ("id,text\n1,x\n2\n", ":3: 1 fields; the header has 2 (id, text)"),
        ("id,text\n1,x,y\n", ":2: 3 fields; the header has 2 (id, text)"),
        ('text\n"open\nfor ever\n', ":2: not valid CSV: unexpected end of data"),
        ('text\n"a"b\n', ":2: not valid CSV: ',' expected after '\"'"),
    ],
)
def test_bad_csv(refused, tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert refused(read_source, str(path)).startswith(f"{path}{expected}")


def test_bad_parquet(refused, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["x"], n=[1])
    assert refused(read_source, str(path)) == f"{path}: no column 'text': its columns are body, n"
    assert refused(read_source, str(path), Reading(text_column="n")) == f"{path}: row 1: 'n' is int; expected a string"
    write_parquet(path, text=["x", None])
    assert (
        refused(read_source, str(path))
        == f"{path}: row 2: 'text' is empty (null); expected a string (--skip-empty leaves such records out)"
    )
    content = path.read_bytes()
    for damaged in (b"not parquet at all", content[:-20], b"PAR1" + b"\xff" * (len(content) - 100) + content[-96:]):
        path.write_bytes(damaged)
        assert refused(read_source, str(path)).startswith(f"{path}: not a readable Parquet file: ")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_an_endless_line_is_refused_before_its_end(refused, tmp_path: Path, name: str) -> None:
    """To read its terabyte would take longer than a test may."""
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(b"text\n" if name != "a.jsonl" else b'{"text": "x"}\n')
        file.write(b"x" * (20 << 20))
        file.truncate(1 << 40)  # a hole: it takes no space
    what = "a line without a space to cut it at, of over 16 MiB" if name == "a.txt" else "a line of over 16 MiB"
    assert refused(read_source, str(path)).startswith(f"{path}:2: {what}; --record-limit allows longer ones")


def test_a_csv_quote_left_open_is_refused_before_it_fills_memory(refused, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"' + ("x" * 99 + "\n") * 200_000)
    assert "a field, perhaps for a quote that is left open, of over 16 MiB" in refused(read_source, str(path))


def test_permission_denied(refused, tmp_path: Path, monkeypatch) -> None:
    """Root may read everything, so the refusal is played."""
    path = tmp_path / "a.txt"
    path.write_text("secret")
    path.chmod(0)
    if os.access(path, os.R_OK):

        def deny(*args: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", deny)
    assert refused(read_source, str(path)) == f"{path}: cannot be read: permission denied"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused(refused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(read_source, str(tmp_path / "pipe"))


def test_bad_hub_sources(refused, tmp_path: Path, caplog) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"body": "one"}) + "\n" + json.dumps({"body": None}) + "\n")
    spec = f"hf:{tmp_path}"
    assert refused(read_source, spec) == f"{spec}: no column 'text': its columns are body"
    message = refused(read_source, spec, Reading(text_column="body"))
    assert message == f"{spec}: row 2: 'body' is empty (null); expected a string (--skip-empty leaves such records out)"
    assert "split 'other'" in refused(read_source, spec, Reading(split="other"))
    assert refused(read_source, "hf:").startswith("hf:: expected a data set such as hf:org/name")
    message = refused(read_source, "hf:org/name:config")  # no network in tests
    assert message.startswith("hf:org/name:config: cannot be loaded: ")
    assert not caplog.records
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"te\n')
    assert refused(read_source, spec).startswith(f"{spec}: ")
