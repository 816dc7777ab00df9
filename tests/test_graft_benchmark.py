"""The benchmark of grafts: it runs, and the note has the table of the committed figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import graft, pages

SHARED = Path(os.environ.get("PYRO_LTM_SHARED", pages.ROOT.parent / "shared"))


def test_the_note_has_the_committed_figures():
    rows = json.loads(sorted((pages.ROOT / "benchmarks").glob("graft-*.json"))[-1].read_text())["rows"]
    note = (pages.ROOT / "benchmarks" / "notes" / "graft.md").read_text(encoding="utf-8")
    assert graft.table(rows) in note


@pytest.mark.long
def test_it_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers", reason="the extra graft is not installed")
    if not (SHARED / "data" / "proposals").is_dir():
        pytest.skip("no ../shared/data/proposals")
    monkeypatch.setattr(graft, "DOCUMENTS", 40)
    monkeypatch.setattr(graft, "HELD_OUT", 3)
    options = ["--shared", str(SHARED), "--out", str(tmp_path), "--family", "mistral"]
    graft.main([*options, "--base-steps", "2", "--steps", "2"])
    (row,) = [json.loads(path.read_text()) for path in tmp_path.glob("row-*.json")]
    assert row["base"]["twin"]["nats_per_token"] > 0
    assert capsys.readouterr().out.strip() == graft.table([row])
