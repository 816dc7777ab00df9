"""The digests that hold figures still while code is moved."""

from __future__ import annotations

from helpers import golden
from helpers.processes import without_extras


def test_the_same_code_gives_the_same_digests_and_another_seed_others(monkeypatch, capsys):
    without_extras(monkeypatch.setattr)
    name = "early stop, chi"
    first = golden.digests([name])
    assert golden.differences(first, golden.digests([name])) == 0
    assert "the same to the bit" in capsys.readouterr().out
    monkeypatch.setitem(golden.CONFIGURATIONS[name], "seed", 1)
    assert golden.differences(first, golden.digests([name])) == 1
    changed = capsys.readouterr().out.splitlines()
    assert changed == [f"{name}: {part}" for part in ("weights", "evaluate", "generate")]
