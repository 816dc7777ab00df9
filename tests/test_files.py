"""Files and folders appear whole or not at all, at whatever moment the process dies, and nothing else stays."""

from __future__ import annotations

import contextlib
import os

import pytest

from pyro_ltm import files
from pyro_ltm.files import new_folder, write_text
from pyro_ltm.locks import locked

DEAD = 2**22 + 1
"""No process has this number: Linux gives none above 2^22."""


class Killed(BaseException):
    """As if the process died: nothing that would tidy up runs."""


def calls_that_change_names(monkeypatch, die_at):
    """Makes the process die just before its `die_at`-th change of names in the file system; -1: just counts."""
    seen = []

    def dying(name, function):
        def call(*arguments, **options):
            if len(seen) == die_at or "dead" in seen:
                seen.append("dead")
                raise Killed
            seen.append(name)
            return function(*arguments, **options)

        return call

    for owner, name in ((os, "rename"), (os, "replace"), (files, "_exchange"), (files.shutil, "rmtree")):
        monkeypatch.setattr(owner, name, dying(name, getattr(owner, name)))
    return seen


def replace(out, text):
    with locked(out), new_folder(out) as partial:
        (partial / "inner").mkdir()
        (partial / "inner/file").write_text(text)


@pytest.mark.parametrize("exchanges", [True, False], ids=["at once", "in two steps"])
@pytest.mark.parametrize("die_at", range(5))
def test_a_folder_replaced_by_a_process_that_dies(exchanges, die_at, tmp_path, monkeypatch):
    out = tmp_path / "out"
    replace(out, "old")
    with monkeypatch.context() as patch:
        if not exchanges:
            patch.setattr(files, "_exchange", lambda one, other: False)
        seen = calls_that_change_names(patch, die_at)
        with contextlib.suppress(Killed):
            replace(out, "new")
        died = "dead" in seen
    assert died or die_at >= 3
    with locked(out):  # what anyone does who is to write it
        assert (out / "inner/file").read_text() in ("old", "new")
    replace(out, "newer")
    assert (out / "inner/file").read_text() == "newer"
    assert os.listdir(tmp_path) == ["out"]


def test_the_system_exchanges_names(tmp_path):
    """Where it cannot, the test above is all there is."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("no renameat2 on this system or file system")
    assert os.listdir(tmp_path / "one") == ["other"]


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("sync", "_replace_folder"):
        function = getattr(files, name)
        monkeypatch.setattr(
            files, name, lambda *paths, name=name, call=function: (done.append((name, paths[0].name)), call(*paths))
        )
    replace(tmp_path / "out", "text")
    names = [path if path in ("file", "inner") else "partial" for name, path in done[:3] if name == "sync"]
    assert sorted(names) == ["file", "inner", "partial"]
    assert [name for name, _ in done] == ["sync"] * 3 + ["_replace_folder", "sync"]


def test_temporaries_of_dead_processes_are_swept_and_no_others(tmp_path):
    stays = [".a.txt.tmp", f".b.txt.{DEAD}.tmp", f".a.txt.{DEAD}.tmp.txt", f".a.txt.{os.getppid()}.tmp", ".a.txt.x.tmp"]
    for name in [*stays, f".a.txt.{DEAD}.tmp", f".a.txt.{DEAD + 7}.tmp"]:
        (tmp_path / name).write_text("half of")
    (tmp_path / f".a.txt.{DEAD + 9}.tmp").mkdir()
    (tmp_path / f".a.txt.{DEAD + 9}.tmp" / ".tmpHalfOf").write_text("a writer's own temporary")
    write_text(tmp_path / "a.txt", "whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*stays, "a.txt"])


def test_what_a_killed_writer_makes_beside_its_file_is_swept_with_it(tmp_path, monkeypatch):
    def killed(temporary):
        (temporary.parent / ".tmpA1b2C3").write_text("as safetensors does")
        assert os.listdir(tmp_path) == [temporary.parent.name], "all that is unfinished lies in one place"
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(files.os, "getpid", lambda: DEAD)
        dying.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            files.write_atomically(tmp_path / "a", killed)
    write_text(tmp_path / "a", "whole")
    assert os.listdir(tmp_path) == ["a"]


def test_folders_of_dead_processes_are_swept_and_no_others(tmp_path):
    stays = [".out.0123456789ab.partial.d", ".out.0123.partial", ".other.0123456789ab.partial", ".out.old", "out"]
    for name in [*stays, ".out.0123456789ab.partial", ".out.0123456789ab.old"]:
        (tmp_path / name).mkdir()
    replace(tmp_path / "out", "new")
    assert sorted(os.listdir(tmp_path)) == sorted(stays)
