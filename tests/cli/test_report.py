"""`pyro-ltm report`."""

from __future__ import annotations

import json

import pytest


def test_report_of_a_run(ask, trained, tmp_path):
    result = ask("report", trained, "--sequences", 12, "--out", tmp_path / "page")
    assert set(result["thoughts"]) >= {"rate", "mutual_information", "ceiling", "active", "distortion", "by_layer"}
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "Progressive reconstruction" in page
    assert "http" not in page.replace("http-equiv", "")
    saved = json.loads((tmp_path / "page" / "report.json").read_text())
    assert saved == {key: value for key, value in result.items() if key != "page"}
    assert (tmp_path / "page" / "distortion.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "page").glob(".*"))


def test_report_of_a_twin(ask, twin, tmp_path):
    result = ask("report", twin, "--out", tmp_path / "page")
    assert "thoughts" not in result
    assert "no thoughts" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")


def test_labels_from_a_file(ask, invoke, trained, tmp_path):
    rows = [{"text": f"kalo {'mira' if n % 2 else 'tove'} {n}", "kind": "odd" if n % 2 else "even"} for n in range(20)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["report", trained, "--labels", path, "--label-column", "kind", "--out", tmp_path / "page"]
    (probe,) = ask(*options)["probes"]
    assert (probe["label"], probe["classes"], probe["texts"]) == ("kind", 2, 20)
    assert (tmp_path / "page" / "map-kind.png").exists()
    assert "probe of kind" in invoke(*options).stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "missing.jsonl", "--label-column", "kind"], "missing.jsonl"),
        (["--labels", "texts.txt", "--label-column", "kind"], "expected a .jsonl, .csv or .parquet file"),
        (["--labels", "texts.jsonl"], "--labels and --label-column go together"),
    ],
)
def test_bad_labels(refuse, trained, options, says):
    refuse("report", trained, *options, says=says)
