"""A `prepare` that was stopped, killed or ran out of disk goes on; by one process or several; to the same bytes."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import fuzz
from helpers.processes import FORKS

from pyro_ltm.data import TokenFolder, Tokenizer, append, encoding, filling, packing, prepare
from pyro_ltm.data.encoding import Encoded, encode_groups
from pyro_ltm.data.packing import SplitWriter
from pyro_ltm.digests import with_digest, without_digest
from pyro_ltm.files import process_lives, unfinished

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, kills and limits of another system")

PATIENCE = 100


@pytest.fixture(autouse=True)
def small_steps(monkeypatch) -> None:
    make_small(monkeypatch.setattr)


def make_small(put: Callable[[Any, str, int], None]) -> None:
    """Groups, shards and what is saved at a time, so small that a short text has many."""
    put(filling, "GROUP", 300)
    put(filling, "SAVED", 1000)
    put(packing, "SHARD", 700)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents of one line to many pieces, some without text, some twice."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "a.jsonl"
    texts = [
        " ".join(draw.choices(["cats", "dogs", "mice", "and", "7", "naïve"], k=draw.randint(0, 60))) for _ in range(90)
    ]
    texts += ["one two three four " * 2500, "", *texts[:5], "", "the end"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def options(packing_name: str, tokenizer: object) -> dict[str, Any]:
    return {"tokenizer": tokenizer, "sequence_length": 16, "packing": packing_name}


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


class Stop(Exception):
    pass


def stop_after(calls: int) -> Callable[..., None]:
    """A report that stops the work once so many groups were encoded."""
    seen = []

    def report(what: str, pieces: int, characters: int) -> None:
        if what == "encode":
            seen.append(what)
            if len(seen) == calls:
                raise Stop

    return report


# Stopped


@pytest.mark.parametrize(
    ("kind", "packing_name"), [("given", "contiguous"), ("trained", "document"), ("whole documents", "document")]
)
def test_stopped_anywhere_it_goes_on_to_the_same_folder(
    source: str, tmp_path: Path, small_tokenizer: Tokenizer, packing_name: str, kind: str
) -> None:
    how = options(packing_name, small_tokenizer if kind == "given" else None)
    how |= {"vocab_size": 280} if kind == "trained" else {}
    if kind == "whole documents":  # whose tokens do not give back the text: folds case
        how["tokenizer"] = folding(small_tokenizer, tmp_path)
    whole = files_of(prepare([source], tmp_path / "whole", **how).path)
    said: list[str] = []
    for calls in (4, 1, 9, 15, 2):
        with pytest.raises(Stop):
            prepare([source], tmp_path / "out", progress=stop_after(calls), **how)
        assert not (tmp_path / "out").exists()
        assert (unfinished(tmp_path / "out") / "progress.json").is_file()
    prepare([source], tmp_path / "out", progress=lambda what, *done: said.append(what), **how)
    assert said[0] == "skip"
    assert "tokenizer" not in said
    assert said.count("encode") < said.count("skip") * 4
    assert files_of(tmp_path / "out") == whole
    assert not unfinished(tmp_path / "out").exists()


def folding(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    content = json.loads(tokenizer.to_json())
    content["normalizer"] = {"type": "Lowercase"}
    path = folder / "folding.json"
    path.write_text(json.dumps(content))
    return Tokenizer.load(path)


def test_what_is_appended_goes_on_too(source: str, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    folders = [prepare([source], tmp_path / name, **options("document", small_tokenizer)).path for name in "ab"]
    append([source], folders[0])
    with pytest.raises(Stop):
        append([source], folders[1], progress=stop_after(9))
    assert TokenFolder.open(folders[1]).appended == (), "nothing is there before all of it is"
    append([source], folders[1])
    assert files_of(folders[0] / "appended-0001") == files_of(folders[1] / "appended-0001")
    assert sorted(os.listdir(folders[0])) == sorted(os.listdir(folders[1]))


@pytest.fixture(scope="module")
def left(source: str, tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Tokenizer) -> tuple[Path, Path]:
    """A folder in which a `prepare` to `out` was stopped in the middle, and what it would have written."""
    folder, how = tmp_path_factory.mktemp("left"), options("contiguous", small_tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch.setattr)
        with pytest.raises(Stop):
            prepare([source], folder / "out", progress=stop_after(20), **how)
        return folder, prepare([source], tmp_path_factory.mktemp("whole") / "out", **how).path


def forged(note: str) -> str:
    """A note with a checksum of its own, whose counts do not fit the files."""
    content = without_digest(json.loads(note))
    content["splits"]["train"]["position"] += 1000
    return json.dumps(with_digest(content))


def damages(place: Path) -> dict[str, Callable[[], object]]:
    """What may happen to what was left."""
    partial = place / "out.partial"
    first, note = partial / "train.bin", place / "progress.json"

    def flip() -> None:
        content = bytearray(first.read_bytes())
        content[7] ^= 1
        first.write_bytes(content)

    return {
        "a bit": flip,
        "cut short": lambda: os.truncate(first, 10),
        "a shard less": first.unlink,
        "no tokenizer": (partial / "tokenizer.json").unlink,
        "another tokenizer": lambda: (partial / "tokenizer.json").write_text("{}"),
        "half a note": lambda: os.truncate(note, 30),
        "a wrong note": lambda: note.write_text('{"recipe": 7}'),
        "a bit of the note": lambda: note.write_text(note.read_text().replace('"position": ', '"position": 1', 1)),
        "another's note": lambda: note.write_text(forged(note.read_text())),
    }


@pytest.mark.parametrize("damage", list(damages(Path())))
def test_what_was_left_and_is_damaged_is_not_used(
    source: str, left: tuple[Path, Path], tmp_path: Path, small_tokenizer: Tokenizer, damage: str
) -> None:
    shutil.copytree(left[0], tmp_path, dirs_exist_ok=True)
    damages(unfinished(tmp_path / "out"))[damage]()
    said: list[str] = []
    how = options("contiguous", small_tokenizer)
    prepare([source], tmp_path / "out", progress=lambda what, *done: said.append(what), **how)
    assert said[0] == "restart"
    assert files_of(tmp_path / "out") == files_of(left[1])


def test_other_settings_or_another_text_begin_anew(
    source: str, left: tuple[Path, Path], tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    how, said = options("contiguous", small_tokenizer), []
    shutil.copytree(left[0], tmp_path, dirs_exist_ok=True)
    other = {**how, "sequence_length": 20, "progress": lambda what, *done: said.append(what)}
    assert prepare([source], tmp_path / "out", **other).sequence_length == 20
    assert "skip" not in said
    text, out = tmp_path / "a.jsonl", tmp_path / "changed"
    text.write_text(Path(source).read_text())
    with pytest.raises(Stop):
        prepare([str(text)], out, progress=stop_after(20), **how)
    text.write_text(Path(source).read_text().replace("cats", "bats", 1))
    prepare([str(text)], out, **{**other, **how})
    assert "restart" in said
    assert files_of(out) == files_of(prepare([str(text)], tmp_path / "whole", **how).path)


def test_files_of_text_that_is_gone_on_with_no_more_do_not_stay(
    source: str, left: tuple[Path, Path], tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    """Such as the next shard, begun just before the kill, where the end of the text was cut off since."""
    shutil.copytree(left[0], tmp_path, dirs_exist_ok=True)
    (unfinished(tmp_path / "out") / "out.partial/train.0099.bin").write_bytes(b"ab")
    said: list[str] = []
    how = options("contiguous", small_tokenizer)
    prepare([source], tmp_path / "out", progress=lambda what, *done: said.append(what), **how)
    assert "restart" not in said
    assert files_of(tmp_path / "out") == files_of(left[1])


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("notes", [6, pytest.param(100, marks=pytest.mark.long)])
def test_whatever_a_note_says_it_is_read_or_not_used(
    source: str, left: tuple[Path, Path], tmp_path: Path, small_tokenizer: Tokenizer, notes: int
) -> None:
    """Wrong entries under a right checksum: no crash, no hang, and nothing is written elsewhere."""
    draw, how = random.Random(0), options("contiguous", small_tokenizer)
    for number in range(notes):
        folder = tmp_path / str(number)
        shutil.copytree(left[0], folder)
        note = unfinished(folder / "out") / "progress.json"
        content = note.read_bytes()
        if number % 2:  # as a disk damages it
            note.write_bytes(fuzz.mutate_json(draw, content))
        else:
            changed = fuzz.mutate_json(draw, json.dumps(without_digest(json.loads(content))).encode())
            with contextlib.suppress(ValueError, TypeError):
                changed = json.dumps(with_digest(json.loads(changed))).encode()
            note.write_bytes(changed)
        fuzz.answer(functools.partial(prepare, [source], folder / "out", **how))
        assert os.listdir(folder) == ["out"]
        if number % 2:
            assert files_of(folder / "out") == files_of(left[1])
        shutil.rmtree(folder)


# Killed


def prepare_until_killed(source: str, out: Path, workers: int, how: dict[str, Any], groups: int, delay: float) -> None:
    """In a process of its own: dies by SIGKILL some moments after it has encoded so many more groups."""
    make_small(setattr)
    left = [groups]

    def report(what: str, pieces: int, characters: int) -> None:
        left[0] -= what == "encode"
        if left[0] == 0:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    prepare([source], out, workers=workers, progress=report, **how)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_any_moment_it_goes_on_to_the_same_folder(
    source: str, tmp_path: Path, small_tokenizer: Tokenizer, kills: int
) -> None:
    draw, killed, out = random.Random(kills), 0, tmp_path / "out"
    small_tokenizer.save(tmp_path / "tokenizer.json")
    hows = [options(name, tmp_path / "tokenizer.json") for name in ("contiguous", "document")]
    wholes = [files_of(prepare([source], tmp_path / str(number), **how).path) for number, how in enumerate(hows)]
    while killed < kills:
        kind, workers = draw.randrange(2), draw.choice([1, 1, 2]) if kills > 2 else 1
        while killed < kills and not out.exists():
            moment = draw.randint(5, 30), draw.uniform(0, 0.02)
            process = FORKS.Process(target=prepare_until_killed, args=(source, out, workers, hows[kind], *moment))
            process.start()
            process.join(PATIENCE)
            assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
            killed += process.exitcode != 0
        if not out.exists():
            prepare([source], out, **hows[kind])
        assert files_of(out) == wholes[kind]
        shutil.rmtree(out)
        shutil.rmtree(unfinished(out), ignore_errors=True)


# Out of disk


def test_a_full_disk_leaves_what_is_done(
    refused, source: str, left: tuple[Path, Path], tmp_path: Path, small_tokenizer: Tokenizer, monkeypatch
) -> None:
    how, write, room = options("contiguous", small_tokenizer), SplitWriter._write, [3000]

    def until_full(writer: SplitWriter, ids: Any) -> None:
        room[0] -= len(ids)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, ids)

    out = tmp_path / "out"
    with monkeypatch.context() as full:
        full.setattr(SplitWriter, "_write", until_full)
        message = refused(prepare, [source], out, **how)
    assert message == (
        f"{out}: no space left to write it; what is done stays in {unfinished(out)}: free some, and the same command "
        "goes on from there"
    )
    said: list[str] = []
    prepare([source], out, progress=lambda what, *done: said.append(what), **how)
    assert said[0] == "skip"
    assert files_of(out) == files_of(left[1])


# Several processes


@pytest.fixture
def workers_are_small(monkeypatch) -> None:
    """Processes that are forked from one that has imported all: seconds less."""
    monkeypatch.setattr(encoding, "CONTEXT", FORKS)


def test_several_processes_write_the_same_folder(
    source: str, left: tuple[Path, Path], tmp_path: Path, small_tokenizer: Tokenizer, workers_are_small
) -> None:
    how, whole = options("contiguous", small_tokenizer), files_of(left[1])
    assert files_of(prepare([source], tmp_path / "3", workers=3, **how).path) == whole
    with pytest.raises(Stop):
        prepare([source], tmp_path / "out", progress=stop_after(20), workers=3, **how)
    assert files_of(prepare([source], tmp_path / "out", workers=2, **how).path) == whole


def test_a_worker_that_fails_or_dies(refused, small_tokenizer: Tokenizer, workers_are_small) -> None:
    assert refused(prepare, ["a"], "b", workers=0) == "workers = 0: must be at least 1"
    groups = ((number, ["some words", "more"]) for number in range(100))
    results = encode_groups(small_tokenizer, groups, 2)
    assert next(results)[0] == 0
    for child in multiprocessing.active_children():
        child.kill()
    assert "was killed by signal 9, perhaps for want of memory; take fewer --workers" in refused(list, results)


def test_workers_end_with_their_parent(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    ours, theirs = FORKS.Pipe(duplex=False)
    parent = FORKS.Process(target=begin_and_wait, args=(small_tokenizer, theirs))
    parent.start()
    pids = ours.recv()
    assert len(pids) == 2
    parent.kill()
    parent.join(PATIENCE)
    end = time.monotonic() + PATIENCE
    while any(map(process_lives, pids)):
        assert time.monotonic() < end
        time.sleep(0.02)


def begin_and_wait(tokenizer: Tokenizer, pipe: Any) -> None:
    """In a process of its own: starts two workers, names them, and waits for its end."""
    results = encode_groups(tokenizer, ((n, ["words"]) for n in range(9)), 2)
    next(results)
    pipe.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(PATIENCE)


def test_encoded_of_a_text(small_tokenizer: Tokenizer) -> None:
    [(group, encoded)] = encode_groups(small_tokenizer, iter([("x", ["naïve cats", ""])]), 1)
    assert group == "x"
    assert encoded[0].ids.tolist() == small_tokenizer.encode("naïve cats")
    assert (encoded[0].bytes, encoded[0].at_start, encoded[0].unknown, encoded[0].gives_back) == (11, 0, 0, True)
    assert encoded[1] == Encoded(encoded[1].ids, 0, 0, 0, True)
