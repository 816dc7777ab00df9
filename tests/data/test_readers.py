"""Every kind of file, plain and compressed, gives the same documents; what is none of them is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm.data import Document, Reading, prepare, read_source
from pyro_ltm.data.readers import SUFFIXES, has_columns, plain, read_file, records, streams
from pyro_ltm.data.readers.separated import find_delimiter
from pyro_ltm.errors import UserError

ROWS = [
    {"id": "a-1", "text": "Grüße, Welt; eins\tzwei|drei.\n", "by": {"name": "Anna"}},
    {"id": "a-2", "text": 'He said "no".', "by": {"name": "Ben"}},
    {"id": "a-3", "text": "", "by": {"name": "Cem"}},
]
TEXTS = [row["text"] for row in ROWS]


def separated(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text", "by.name"], *([row["id"], row["text"], row["by"]["name"]] for row in ROWS)])
    return out.getvalue().encode()


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
KINDS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES.replace(b"\n", b"\r\n"),
    "lines.json": LINES,
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=2, ensure_ascii=False).encode() + b"\n",
    "comma.csv": separated(","),
    "semicolon.csv": separated(";"),
    "tab.csv": separated("\t"),
    "bar.csv": separated("|"),
    "a.tsv": separated("\t"),
    "a.parquet": parquet(ROWS),
}
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".GZ": gzip.compress,
}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in read_source(str(path), Reading(**options))]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_documents(tmp_path: Path, name: str, compression: str) -> None:
    path = write(tmp_path / (name + compression), COMPRESS[compression](KINDS[name]))
    documents = list(read_source(str(path)))
    assert [document.text for document in documents] == TEXTS
    assert [document.id for document in documents] == ["a-1", "a-2", "a-3"]
    assert all(document.origin.startswith(str(path)) and not document.continues for document in documents)
    assert texts(path, text_column="by.name") == ["Anna", "Ben", "Cem"]
    assert next(iter(read_source(str(path), Reading(id_column="by.name")))).id == "Anna"
    carried = [document.columns for document in read_source(str(path), Reading(columns=("id", "by.name")))]
    assert carried == [{"id": f"a-{n}", "by.name": name} for n, name in enumerate(["Anna", "Ben", "Cem"], 1)]
    with pytest.raises(UserError, match=r"no column 'by[.]nam' [(]did you mean"):
        list(read_source(str(path), Reading(columns=("by.nam",))))


def test_no_kind_is_forgotten() -> None:
    kinds = {Path(name).suffix for name in KINDS}
    assert kinds == {suffix for suffix in SUFFIXES if has_columns(Path(f"a{suffix}"))}
    assert {suffix.lower() for suffix in COMPRESS if suffix} == set(streams.COMPRESSIONS)


@pytest.mark.parametrize("compression", COMPRESS)
def test_plain_text_is_read_the_same_way_compressed(tmp_path: Path, compression: str) -> None:
    text = "".join(f"line {number} ünïcödé\n" for number in range(3000))
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](text.encode()))
    assert "".join(texts(path)) == text
    assert len(texts(path)) > 1


@pytest.mark.parametrize("compression", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "other", "flipped"])
def test_a_compression_that_is_not_what_it_says(
    refused, tmp_path: Path, compression: str, name: str, damage: str
) -> None:
    content = b'[{"text": "' + bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"") * 400 + b'"}]'
    whole = COMPRESS[compression](content)
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "other": b"not compressed at all\n" * 9,
        "flipped": whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 9]) + whole[middle + 9 :],
    }[damage]
    path = write(tmp_path / (name + compression), damaged)
    message = refused(read_source, str(path))
    assert message.startswith(str(path))
    if (compression, damage) != (".zst", "flipped"):  # its frames need not have a checksum, so the text is what fails
        assert message.startswith(f"{path}: damaged, or not {compression.lower()} at all: ")


@pytest.mark.parametrize("compression", [suffix for suffix in COMPRESS if suffix])
def test_what_was_compressed_in_parts_is_read_whole_or_refused(refused, tmp_path: Path, compression: str) -> None:
    compress, name = COMPRESS[compression], f"a.txt{compression}"
    content = [f"{number}\n" * 9000 for number in range(3)]
    parts = [compress(text.encode()) for text in (*content, "")]
    assert "".join(texts(write(tmp_path / name, b"".join(parts)))) == "".join(content)
    path = write(tmp_path / name, parts[0] + b"damaged " + parts[1][8:] + parts[2])
    assert refused(read_source, str(path)).startswith(f"{path}: damaged, or not {compression.lower()} at all: ")
    if compression != ".zst":  # zeros that fill up a block of a tape
        assert "".join(texts(write(tmp_path / name, parts[0] + bytes(512)))) == content[0]


# JSON arrays


@given(st.data())
def test_an_array_is_read_as_json_reads_it(tmp_path_factory, data) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    elements = data.draw(st.lists(values, max_size=6))
    indent, ascii_only = data.draw(st.sampled_from([None, 1])), data.draw(st.booleans())
    size = data.draw(st.integers(1, 9))
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK", size)
        try:
            content.encode()
        except UnicodeEncodeError:
            return
        assert list(records.elements(path, 1 << 20)) == elements


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "a"}, {"text": "b"', ": record 2: not valid JSON: Expecting"),
        ('[{"text": "a"}', ": record 1: not valid JSON: the file ends inside the array"),
        ('[{"text": "a"} {"text": "b"}]', ": record 1: not valid JSON: '{' where a comma or ] has to stand"),
        ('[{"text": "a"},]', ": record 2: not valid JSON: Expecting value"),
        ('[{"text": "a"}] x', ": record 1: not valid JSON: 'x' after the end of the array"),
        ('[{"text": "a"}, 3]', ": record 2: a JSON int; expected an object such as"),
        ('[{"text": nope}' + " " * 99 + "]", ": record 1: not valid JSON: Expecting value"),
        ("[" * 100_000, ": record 1: not valid JSON: "),
        ('[{"text": "' + "a" * 5000 + '"}]', ":1: a record of over 0.0009766 MiB; --record-limit allows longer ones"),
        ('{"data": [{"text": "a"}],\n "n": 1}', ': neither an array of records, [{"text": ...}, ...], nor one record'),
        ('"text"', ": neither an array of records"),
        ("[]", ": empty; expected some text"),
        ("", ": empty; expected some text"),
    ],
)
def test_bad_json(refused, tmp_path: Path, monkeypatch, content: str, expected: str) -> None:
    monkeypatch.setattr(records, "CHUNK", 64)
    path = write(tmp_path / "a.json", content)
    limit = 1024 if "aaaa" in content else 1 << 24
    assert refused(read_source, str(path), Reading(record_limit=limit)).startswith(f"{path}{expected}")


# Delimiters


@pytest.mark.parametrize(
    ("lines", "column", "delimiter"),
    [
        (["id;text\n", "1;a, b and c\n"], "text", ";"),
        (["id;text\n", "1;a\n"], "id;text", ";"),
        (["id,text\n", "1,a;b\n"], "text", ","),
        (["text\n", "one\n"], "text", ","),
        (["id|text\n", "1|a;b,c\n"], "missing", "|"),
        (["id;text\n", "1;a;b\n"], "text", ";"),
        (["id;text\n", '1;"open\n'], "text", ";"),
        ([], "text", ","),
    ],
)
def test_the_delimiter_is_found(lines: list[str], column: str, delimiter: str) -> None:
    assert find_delimiter(lines, column) == delimiter


def test_a_delimiter_may_be_given(refused, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id:text\n1:a;b\n")
    assert texts(path, delimiter=":") == ["a;b"]
    message = refused(read_source, str(write(tmp_path / "b.csv", "id;body\n1;x\n")))
    assert message.startswith(f"{tmp_path / 'b.csv'}:1: no column 'text' (the delimiter is a semicolon; --delimiter")
    assert message.endswith("its columns are id, body")
    for bad in ("", "ab", '"', "\n"):
        assert refused(Reading, delimiter=bad).startswith(f"delimiter = {bad!r}: expected one character")


def test_a_delimiter_is_noted_and_has_a_use(refused, tmp_path: Path, small_tokenizer) -> None:
    table, plain = write(tmp_path / "a.csv", "id;text\n1;a b\n"), write(tmp_path / "b.txt", "words")
    options = {"tokenizer": small_tokenizer, "validation_fraction": 0}
    assert prepare([str(table)], tmp_path / "one", **options).meta["delimiters"] == [";"]
    given = Reading(delimiter=";")
    assert prepare([str(table), str(plain)], tmp_path / "two", reading=given, **options).meta["delimiters"] == [";"]
    assert prepare([str(plain)], tmp_path / "none", **options).meta["delimiters"] == []
    for function, arguments in ((read_source, [str(plain), given]), (prepare, [[str(plain)], tmp_path / "three"])):
        reading = {"reading": given} if function is prepare else {}
        assert refused(function, *arguments, **reading).startswith("delimiter = ';': there is no .csv or .tsv file")


def test_the_limit_of_a_field_is_not_that_of_others_who_read_csv(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    rows = read_source(str(write(tmp_path / "a.csv", "id,text\n1,ab\n2,cd\n")), Reading(record_limit=10))
    assert next(iter(rows)).text == "ab"
    assert csv.field_size_limit() == before, "in the middle of a file, too"


# Columns


def test_a_record_without_the_column_can_be_left_out(refused, tmp_path: Path) -> None:
    """But a column that no record has is a mistake."""
    path = write(tmp_path / "a.jsonl", '{"id": 1}\n{"text": "one"}\n{"id": 2}\n')
    assert "a.jsonl:1: no column 'text'" in refused(read_source, str(path))
    assert texts(path, skip_empty=True) == ["", "one", ""]
    message = refused(read_source, str(path), Reading(text_column="txt", skip_empty=True))
    assert message.startswith(f"{path}:1: no column 'txt'")


def test_a_column_inside_another(refused, tmp_path: Path) -> None:
    rows = [{"a": {"b": {"c": "one"}}}, {"a": {"b": {"c": "two"}}, "d": 1}, {"a": None}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert texts(path, text_column="a.b.c") == ["one", "two"]
    assert "did you mean 'a.b'?" in refused(read_source, str(path), Reading(text_column="a.x"))
    assert "no column 'a.b.c.d'" in refused(read_source, str(path), Reading(text_column="a.b.c.d"))
    assert "'a.b' is dict; expected a string" in refused(read_source, str(path), Reading(text_column="a.b"))
    path = write(tmp_path / "a.parquet", parquet(rows))
    assert texts(path, text_column="a.b.c", skip_empty=True) == ["one", "two", ""]
    message = refused(read_source, str(path), Reading(text_column="a.b.x"))
    assert message == f"{path}: no column 'a.b.x' (did you mean 'a.b.c'?): its columns are a.b.c"


def test_a_dotted_name_may_be_a_columns_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a.b": "whole", "a": {"b": "part"}}\n')
    assert texts(path, text_column="a.b") == ["whole"]
    assert texts(write(tmp_path / "a.parquet", parquet([{"a.b": "whole"}])), text_column="a.b") == ["whole"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_nulls_are_refused_or_left_out(refused, tmp_path: Path, name: str) -> None:
    rows = [{"text": "one", "id": 1}, {"text": None, "id": 2}, {"text": "three", "id": 3}]
    content = {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "a.json": json.dumps(rows)}
    path = write(tmp_path / name, content.get(name) or parquet(rows))
    assert "'text' is empty (null); expected a string (--skip-empty" in refused(read_source, str(path))
    documents = list(read_source(str(path), Reading(skip_empty=True)))
    assert [(document.text, document.id) for document in documents] == [("one", 1), ("", 2), ("three", 3)]


def test_ids(refused, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x", "n": 7, "id": [1]}\n')
    assert next(iter(read_source(str(path)))).id is None
    assert next(iter(read_source(str(path), Reading(id_column="n")))).id == 7
    assert "no column 'm'" in refused(read_source, str(path), Reading(id_column="m"))
    assert "'id' is list; an id is a string or a whole number" in refused(
        read_source, str(path), Reading(id_column="id")
    )


def test_parquet_that_is_no_utf8(refused, tmp_path: Path) -> None:
    column = pyarrow.array([b"fine", b"na\xefve"], pyarrow.binary()).view(pyarrow.string())
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    assert (
        refused(read_source, str(path)) == f"{path}: row 2: 'text' is not UTF-8 at byte 2 of it; expected text in UTF-8"
    )
    pyarrow.parquet.write_table(pyarrow.table({"by": pyarrow.StructArray.from_arrays([column], ["name"])}), path)
    assert refused(read_source, str(path), Reading(text_column="by.name")).startswith(
        f"{path}: row 2: 'by' is not UTF-8"
    )


@pytest.mark.parametrize("name", ["a.txt", "a.md", "NOTES", "a.txt.gz"])
def test_plain_text_has_no_column(refused, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, gzip.compress(b"some text") if name.endswith("gz") else "some text")
    assert (
        refused(read_source, str(path), Reading(text_column="text"))
        == f"{path}: plain text, which has no column 'text'"
    )
    assert "has no column 'body'" in refused(read_source, "python-docs", Reading(text_column="body"))


def test_the_limit_of_a_record(refused, tmp_path: Path) -> None:
    line = json.dumps({"text": "word " * 1000}) + "\n"
    path = write(tmp_path / "a.jsonl", line * 3)
    assert texts(path, record_limit=6000) == ["word " * 1000] * 3
    assert refused(read_source, str(path), Reading(record_limit=4000)).startswith(
        f"{path}:1: a line of over 0.003815 MiB"
    )
    assert refused(Reading, record_limit=0) == "record_limit = 0: must be at least 1 byte"


# One long line


def test_text_on_one_line_is_cut_between_words(tmp_path: Path, gpt2, monkeypatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 1000)
    monkeypatch.setattr(plain, "LONG_LINE", 2000)
    text = "".join(f"word {number}, of  one line\u00a0- it's " for number in range(2000))
    pieces = texts(write(tmp_path / "a.txt", text))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 4000
    assert [token for piece in gpt2.encode_batch(pieces) for token in piece] == gpt2.encode(text)


def test_an_origin_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"text": "x"}]))
    assert list(read_file(path)) == [Document("x", f"{path}: record 1")]


def test_a_record_that_is_null_itself_is_refused_or_left_out(refused, tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "a.ndjson", 'null\n{"text": "one"}\n'),
        write(tmp_path / "a.json", '[null, {"text": "one"}]'),
    ):
        assert "a JSON null; expected an object" in refused(read_source, str(path))
        assert texts(path, skip_empty=True) == ["", "one"]


def test_two_columns_of_the_name_are_refused(refused, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,id,text\none,1,two\n")
    assert "2 columns 'text'" in refused(read_source, str(path))
    assert texts(path, text_column="id") == ["1"]
    columns = [pyarrow.array([text]) for text in ("one", "1", "two")]
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "id", "text"]), table)
    assert f"{table}: 2 columns 'text'" in refused(read_source, str(table))
    assert texts(table, text_column="id") == ["1"]
