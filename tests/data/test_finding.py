"""Which files are read: each real one once, and of the others it is said why not."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm.data import Reading, prepare, read_source
from pyro_ltm.data.finding import find_files
from pyro_ltm.data.sources import find_sources
from pyro_ltm.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
CARD = "---\nlicense: mit\ndataset_info:\n  features: []\n---\n# A data set\n"


def tree(folder: Path, files: dict[str, str | bytes], links: dict[str, str] | None = None) -> Path:
    """Writes files, and links to what they name relative to their own folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, target in (links or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    return folder


def found(folder: Path, pattern: str = "", **options) -> tuple[list[str], dict[str, str]]:
    """Names of the files that are read, and of the others with the reason."""
    what = find_files(str(folder / pattern if pattern else folder), Reading(**options))
    assert what is not None
    named = {os.path.relpath(one.path, folder): one.why for one in what.skipped}
    return [os.path.relpath(path, folder) for path in what.files], named


def test_links_are_followed_and_each_file_is_read_once(tmp_path: Path) -> None:
    tree(tmp_path / "real", {"a.txt": "a", "deep/b.txt": "b"})
    links = {
        "link": "../real",
        "again": "../real",
        "loop": ".",
        "sub/up": "..",
        "same.txt": "c.txt",
        "nothing.txt": "missing",
    }
    folder = tree(tmp_path / "t", {"c.txt": "c", "sub/d.txt": "d"}, links)
    files, skipped = found(folder)
    assert len(files) == 4
    assert {Path(name).name for name in files} == {"a.txt", "b.txt", "c.txt", "d.txt"}
    assert "c.txt" in files, "a file's own name comes before that of a link to it"
    assert skipped.pop("same.txt") == f"the same file as {folder / 'c.txt'}"
    assert skipped.pop("nothing.txt") == "a link to nothing"
    assert set(skipped.values()) == {"a link to a folder that is read already"}
    assert {"loop", "sub/up"} <= set(skipped)


def test_a_glob_ends_where_links_lead_back(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"a.txt": "a", "sub/b.txt": "b"}, {"sub/up": "..", "sub/here": ".", "up": "sub"})
    files, _ = found(folder, "**/*.txt")
    assert files == ["a.txt", "sub/b.txt"]
    assert [document.text for document in read_source(f"{folder}/**/*.txt")] == ["a", "b"]


def test_a_glob_may_name_a_link(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"real/a.txt": "a", "x/b.txt": "b"}, {"x/link": "../real"})
    assert found(folder, "**/link/*.txt")[0] == ["x/link/a.txt"]
    assert found(folder, "x/*/*.txt")[0] == ["x/link/a.txt"]


def test_a_folder_that_a_glob_matches_is_named(tmp_path: Path) -> None:
    tree(tmp_path, {"a.txt": "a", "sub/b.txt": "b"})
    assert found(tmp_path, "*") == (["a.txt"], {"sub": "a folder; ** stands for any folders"})
    assert found(tmp_path, "**") == (["a.txt", "sub/b.txt"], {})


@given(st.lists(st.sampled_from(["*", "**", "a", "b*", "*.txt", "?", ".h", "[ab]"]), min_size=1, max_size=4))
def test_a_glob_finds_what_pythons_does(tmp_path_factory, parts: list[str]) -> None:
    """Where there are no links, and of what it finds the files."""
    folder = tmp_path_factory.getbasetemp() / "globbed"
    if not folder.exists():
        places = ("", "a/", "a/b/", "bb/", ".h/", "a/.h/", "a/b/a/")
        tree(folder, {f"{place}{name}": "text" for place in places for name in ("c.txt", ".d", "x")})
    pattern = str(folder.joinpath(*parts))
    expected = {os.path.normpath(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)}
    if not glob.has_magic(pattern):
        return
    if not expected:
        with pytest.raises(UserError, match="no file matches"):
            find_files(pattern, Reading())
        return
    what = find_files(pattern, Reading())
    assert what is not None
    assert [str(path) for path in what.files] == sorted(expected, key=Path)


def test_figures_of_a_run_among_text(tmp_path: Path) -> None:
    figures, records = '{"step": 1, "loss": 2.0}\n', '{"step": 1, "text": "words"}\n'
    folder = tree(tmp_path, {"a.txt": "text", "metrics.jsonl": figures, "sub/metrics.jsonl": records})
    files, skipped = found(folder)
    assert files == ["a.txt", "sub/metrics.jsonl"]
    assert skipped == {"metrics.jsonl": "the figures of a training run, not text"}


def test_what_is_skipped_in_a_folder(tmp_path: Path, small_tokenizer) -> None:
    files = {
        "a.txt": "text",
        "card.md": CARD,
        "README.md": CARD,
        "pointer.txt": POINTER,
        "pointer.parquet": POINTER,
        "page.txt": "<!DOCTYPE html><html><body>Not found</body></html>",
        "paper.txt": b"%PDF-1.7\n...",
        "zipped.txt": b"\x1f\x8b\x08",
        "picture.png": b"\x89PNG",
        "settings.json": '{\n  "vocab_size": 3\n}\n',
        "small.json": '{"vocab_size": 3}\n',
        "rows.json": '[{"text": "rows"}]',
        "lines.json": '{"text": "one"}\n{"text": "two"}\n',
        ".hidden.txt": "no",
        ".git/x.txt": "no",
        "archive.tar.gz": b"\x1f\x8b\x08",
        "run/config.toml": "seed = 0\n",
        "run/metrics.jsonl": '{"step": 1}\n',
        "run/report/report.json": "{}",
        "config/config.toml": "mine",
        "config/notes.txt": "notes",
    }
    folder = tree(tmp_path / "t", files)
    source = tree(tmp_path / "s", {"s.txt": "some text to prepare " * 9})
    prepare([str(source)], folder / "tokens", tokenizer=small_tokenizer, validation_fraction=0)
    read, skipped = found(folder)
    assert read == ["a.txt", "card.md", "config/notes.txt", "lines.json", "rows.json"]
    assert set(skipped) == {
        *(name for name in files if "/" not in name and name not in read),
        *("config/config.toml", ".git", "run", "tokens"),
    }
    for name, why in {
        "README.md": "the card of a data set",
        "pointer.txt": "a pointer of Git LFS",
        "pointer.parquet": "a pointer of Git LFS",
        "page.txt": "a page of HTML",
        "paper.txt": "a PDF document",
        "zipped.txt": "compressed by gzip",
        "picture.png": "read only where it is named itself",
        "settings.json": "one JSON object",
        "small.json": "one JSON object",
        ".git": "hidden",
        "archive.tar.gz": "read only where it is named itself",
        "run": "a run folder",
        "tokens": "a prepared folder",
    }.items():
        assert why in skipped[name]


def test_a_long_first_record_is_no_lone_object(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": "word " * 20_000}) + "\n" for _ in range(2))
    assert found(tree(tmp_path, {"a.json": lines})) == (["a.json"], {})


def test_with_a_column_named_plain_text_is_skipped(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"a.txt": "text", "b.jsonl": '{"body": "b"}\n'})
    assert found(folder, text_column="body") == (["b.jsonl"], {"a.txt": "plain text, which has no column 'body'"})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", POINTER, "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"),
        ("a.jsonl", POINTER, "a pointer of Git LFS"),
        ("a.txt", "<html>", "a page of HTML"),
        ("a.pdf", b"%PDF-1.4", "a PDF document, not plain text"),
        ("a.docx", b"PK\x03\x04", "a ZIP archive, as office documents are too, not plain text"),
        ("a.tar", b"x", "an archive; unpack it"),
        ("a.tar.gz", b"\x1f\x8b", "an archive; unpack it"),
        ("a.data", '{"text": "a"}\n{"text": "b"}\n', "JSON records, not plain text: name it .jsonl"),
        ("a.json", '{"a": 1,\n"b": 2}', "neither an array of records"),
    ],
)
def test_a_named_file_that_is_no_text(refused, tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    path = tree(tmp_path, {name: content}) / name
    assert refused(read_source, str(path)).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(("name", "content"), [("a.html", "<html>x"), ("README.md", CARD), ("a.txt", '{"a": 1}\n')])
def test_a_named_file_that_may_be_text(tmp_path: Path, name: str, content: str) -> None:
    tree(tmp_path, {name: content})
    assert [document.text for document in read_source(str(tmp_path / name))] == [content]


def test_a_folder_of_pointers_says_so(refused, tmp_path: Path) -> None:
    tree(tmp_path, {f"{number}.txt": POINTER for number in range(40)})
    message = refused(read_source, str(tmp_path))
    assert f"{tmp_path / '0.txt'}" in message
    assert "and 37 more: a pointer of Git LFS" in message


def test_a_source_that_was_read_already(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"a.txt": "a", "b.txt": "b"})
    first, second, third = find_sources([str(folder / "a.txt"), str(folder), str(folder / "b.txt")], Reading())
    assert [path.name for source in (first, second, third) for path in source.files] == ["a.txt", "b.txt"]
    assert [document.text for source in (first, second, third) for document in source.read()] == ["a", "b"]
    assert third.skipped[0].why == f"the same file as {folder / 'b.txt'}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tree(tmp_path, {"a.txt": "a"}) / "pipe.txt")
    assert found(tmp_path) == (["a.txt"], {"pipe.txt": "not a regular file"})


def test_a_link_out_of_the_folder_to_one_above_is_named_and_not_followed(tmp_path: Path) -> None:
    tree(tmp_path, {"secret.txt": "not named", "t/a.txt": "a"}, {"t/up": "..", "t/sub/far": "../../.."})
    why = "a link to a folder above the one that is read"
    assert found(tmp_path / "t") == (["a.txt"], {"up": why, "sub/far": why})
    assert found(tmp_path / "t", "**/*.txt") == (["a.txt"], {"up": why, "sub/far": why})


def test_links_that_lead_to_themselves_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = tree(tmp_path / "t", {"a.txt": "a"}, {"self": "self", "one.txt": "other.txt", "other.txt": "one.txt"})
    files, skipped = found(folder)
    assert files == ["a.txt"]
    assert set(skipped) == {"self", "one.txt", "other.txt"}
    assert found(folder, "*.txt")[0] == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = tree(tmp_path / "t", {"a.txt": "a", "b.txt": "b", "sub/c.txt": "c"})
    (folder / "b.txt").chmod(0)
    (folder / "sub").chmod(0)
    try:
        files, skipped = found(folder)
    finally:
        (folder / "sub").chmod(0o700)
    assert files == ["a.txt"]
    assert set(skipped) == {"b.txt", "sub"}
    assert all("cannot be read" in why for why in skipped.values())
