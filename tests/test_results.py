"""Tables and the picture in README, docs/ and the notes are those of the committed figures."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from pyro_ltm_cli.commands.evaluate import READS
from pyro_ltm_cli.commands.evaluate import command as evaluate

from benchmarks import (
    claim_picture,
    claim_tables,
    continuations,
    distributed,
    epochs,
    fewer_steps,
    field_tables,
    in_context,
    late,
    options,
    pages,
    pictures,
    priors,
    protocols,
    rate_picture,
    representations_tables,
    results,
    rethinking,
    scaling_pictures,
    scaling_tables,
    speed_short,
    table,
    test_time,
    twins,
)
from benchmarks.pages import newest
from benchmarks.rows import earlier

HOW = {
    "protocols": "benchmarks.protocols",
    "twins": "benchmarks.twins",
    "field": "benchmarks.field",
    "claim": "benchmarks.claim",
    "rethinking": "benchmarks.rethinking",
    "speed": "benchmarks",
    "representations": "benchmarks.representations",
    "priors": "benchmarks.priors",
    "in-context": "benchmarks.in_context",
    "test-time": "benchmarks.test_time",
    "scaling": "benchmarks.scaling",
    "epochs": "benchmarks.epochs",
    "late": "benchmarks.late",
    "options": "benchmarks.options",
    "fewer-steps": "benchmarks.fewer_steps",
    "distributed": "benchmarks.distributed",
    "continuations": "benchmarks.continuations",
}
"""What makes and publishes each kind of figures."""


@cache
def made(kind):
    """The tables of the newest figures of a kind."""
    makers = {
        "protocols": [results.tables],
        "twins": [twins.tables],
        "field": [field_tables.tables],
        "claim": [claim_tables.tables],
        "rethinking": [rethinking.tables],
        "speed": [table.tables, speed_short.tables],
        "representations": [representations_tables.tables],
        "priors": [priors.tables],
        "in-context": [in_context.tables],
        "test-time": [test_time.tables],
        "scaling": [scaling_tables.tables],
        "epochs": [epochs.tables],
        "late": [late.tables],
        "options": [options.tables],
        "fewer-steps": [fewer_steps.tables],
        "distributed": [distributed.tables],
        "continuations": [continuations.tables],
    }
    return {name: text for make in makers[kind] for name, text in make(earlier(kind)).items()}


@pytest.fixture(scope="module")
def found():
    return newest("protocols")


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.relative_to(pages.ROOT).as_posix())
def test_pages_have_the_tables_of_the_newest_files(page):
    text = page.read_text(encoding="utf-8")
    marked = set(re.findall(r"^<!-- (?!end )(.+) -->$", text, re.MULTILINE))
    assert marked <= {name for kind in HOW for name in made(kind)}
    for kind, module in HOW.items():
        file = max(pages.FIGURES.glob(f"{kind}-????-??-??.json"), default=Path("FOLDER"))
        newer = f"run: python -m {module} --table {file.name}"
        assert pages.filled(text, made(kind)) == text, newer


def test_every_table_of_a_benchmark_has_its_place(found):
    text = "".join(page.read_text(encoding="utf-8") for page in pages.pages())
    marked = set(re.findall(r"^<!-- (?!end )(.+) -->$", text, re.MULTILINE))
    assert set(found) <= set(protocols.CORPORA)
    assert marked >= {"twins", "shares", *made("field"), *made("speed")}


def test_the_picture_is_of_the_newest_figures(found, tmp_path):
    """It carries a digest of what it shows."""
    shown = pictures.digest(pictures.plotted(found))
    assert Image.open(pictures.RESULTS).text["Description"] == shown, "run: python -m benchmarks.protocols --table FILE"
    pictures.draw(found, tmp_path / "again.png")
    assert Image.open(tmp_path / "again.png").text["Description"] == shown


def test_the_pictures_of_scaling_are_of_the_newest_figures(tmp_path):
    found = newest("scaling")
    scaling_pictures.draw(found, tmp_path / "operations.png", tmp_path / "sizes.png")
    for path, again, places in (
        (scaling_pictures.OPERATIONS, "operations.png", scaling_pictures.by_operations(found)),
        (scaling_pictures.SIZES, "sizes.png", scaling_pictures.by_size(found)),
    ):
        shown = claim_picture.digest(places)
        assert Image.open(path).text["Description"] == shown, "run: python -m benchmarks.scaling --pictures"
        assert Image.open(tmp_path / again).text["Description"] == shown
    assert scaling_pictures.frontier([[1, 3.0], [2, 4.0], [3, 2.0]]) == [[1, 3.0], [3, 2.0]]


def test_the_picture_of_the_claim_is_of_the_newest_figures():
    shown = claim_picture.digest(claim_picture.plotted(newest("claim")))
    assert Image.open(claim_picture.CLAIM).text["Description"] == shown, (
        "run: python -m benchmarks.claim --table FOLDER"
    )


def test_the_picture_of_the_rate_is_of_the_newest_figures(tmp_path):
    found = newest("representations")
    shown = claim_picture.digest(rate_picture.plotted(found))
    assert Image.open(rate_picture.RATE).text["Description"] == shown, (
        "run: python -m benchmarks.representations --table FOLDER"
    )
    rate_picture.draw(found, tmp_path / "again.png")
    assert Image.open(tmp_path / "again.png").text["Description"] == shown


def test_new_figures_take_the_place_of_the_old_by_one_command(tmp_path, monkeypatch):
    figures, page = tmp_path / "benchmarks", tmp_path / "README.md"
    figures.mkdir()
    page.write_text("before\n<!-- a -->\nold\n<!-- end a -->\n<!-- b -->\nold\n<!-- end b -->\n")
    (figures / "protocols-2026-01-01.json").write_text('{"a": 1, "b": 2}\n')
    for name, value in (("ROOT", tmp_path), ("FIGURES", figures)):
        monkeypatch.setattr(pages, name, value)
    out = tmp_path / "out"
    out.mkdir()
    (out / "protocols.json").write_text(json.dumps({"a": [f"{out}/a/ltm-0"]}))
    found = pages.publish(
        "protocols", out / "protocols.json", lambda found: {name: f"{found[name]}\n" for name in found}
    )
    assert found == {"a": ["runs/protocols/a/ltm-0"], "b": 2} == pages.newest("protocols")
    assert len(list(figures.glob("*.json"))) == 2
    assert "<!-- a -->\n['runs/protocols/a/ltm-0']\n<!-- end a -->\n<!-- b -->\n2\n<!-- end b -->" in page.read_text()
    # Figures that are there already make no new file.
    pages.publish("protocols", out / "protocols.json", lambda found: {})
    assert len(list(figures.glob("*.json"))) == 2
    with pytest.raises(ValueError, match="begins more often than it ends"):
        pages.filled("<!-- a -->\n", {"a": "1\n"})


def test_what_was_measured_of_a_seed_outlives_the_next_one(tmp_path, monkeypatch):
    def killed_at_seed_1(name, data, out, seed, *_):
        if seed == 1:
            raise KeyboardInterrupt
        return {"rows": [{"seed": seed}]}

    monkeypatch.setattr(protocols, "measure", killed_at_seed_1)
    monkeypatch.setattr("sys.argv", ["protocols", "--out", str(tmp_path), "--only", "worlds", "--seeds", "0,1"])
    with pytest.raises(KeyboardInterrupt):
        protocols.main()
    assert json.loads((tmp_path / "protocols.json").read_text()) == {"worlds": {"rows": [{"seed": 0}]}}


def test_short_tables_are_short(found):
    for name, tables in (("results", made("protocols")), ("speed", made("speed"))):
        for key, text in tables.items():
            if key.endswith("in short"):
                assert text.count("\n|") <= 1 + 6, (name, key)


def test_figures_are_of_runs_that_their_twins_fit(found):
    for one in found.values():
        assert [row["seed"] for row in one["rows"]] == sorted({row["seed"] for row in one["rows"]})
        for row in one["rows"]:
            assert row["twin"].get("differs", []) == [], "the same tokens in the same order"
    for one in newest("field").values():
        assert [row["zero-shot"]["twin_differs"] for row in one["rows"]] == [[]] * len(one["rows"])


def test_no_file_names_a_folder_of_the_machine_that_measured_it():
    for kind in ("protocols", "field", "twins"):
        assert not re.search(r'[" ]/\w', json.dumps(newest(kind))), kind


def test_the_twins_are_compared_with_those_of_the_tables():
    """The same run on the same text, by the library and by the command line, comes to the same figure."""
    path = max(pages.FIGURES.glob("twins-????-??-??.json"))
    found = json.loads(path.with_name(path.name.replace("twins", "protocols")).read_text(encoding="utf-8"))
    for name, one in json.loads(path.read_text(encoding="utf-8")).items():
        rows = {row["seed"]: row for row in found[name]["rows"]}
        for row in one["rows"]:
            its = rows[row["seed"]]
            assert row["ltm"]["nats_per_token"] == pytest.approx(its["bound"]["nats_per_token"], abs=2e-6)
            if row["twin"] == twins.TABLES:
                assert row["nats_per_token"] == pytest.approx(its["twin"]["nats_per_token"], abs=2e-6)
                for key in ("nats_per_token", "stderr"):
                    assert row["ltm_below"][key] == pytest.approx(its["below_twin"]["bound"][key], abs=2e-6)


def with_blocks(one, blocks):
    """What was measured, as a release writes it that keeps `blocks` with each error; None: as one that does not."""
    if isinstance(one, list):
        return [with_blocks(value, blocks) for value in one]
    if not isinstance(one, dict):
        return one
    told = {key: with_blocks(value, blocks) for key, value in one.items() if key != "blocks"}
    errors = ("share", "nats_per_token_stderr") if "particles" in one else ("stderr", "nats_per_token_stderr")
    return {**told, "blocks": blocks} if blocks and set(errors) & set(told) else told


def test_errors_that_take_sequences_as_independent_are_not_shown(found):
    blocks = {"count": 14, "length": 7, "of": "sequences", "units": 100}
    text, world = found["wikitext-2-longer"], found["worlds-longer"]
    for make in (results.markdown, results.along_draws, results.short):
        old, new = make(with_blocks(text, None)), make(with_blocks(text, blocks))
        assert "±" not in old
        assert "standard errors:" not in old.lower()
        assert old.endswith(f"{results.MEANING}\n")
        assert results.MARK not in new
        # The reference protocol is shown at its own rate alone.
        of_reference = 0 if make is results.along_draws else len(text["rows"])
        assert new.count("±") == old.count(results.MARK) - 1 + of_reference, "each, but for what the mark means"
        # A world's documents are a sequence each, and independent.
        assert results.MARK not in make(with_blocks(world, None))
    known = pictures.plotted(found | {"wikitext-2-longer": with_blocks(text, blocks)})["below the twin"]
    assert set(known) - set(pictures.plotted(found)["below the twin"]) == {"WikiText-2"}
    over = "of the bound over 100 sequences in 14 independent blocks of 7"
    assert f"Standard errors: {over}; of its distance" in results.markdown(with_blocks(text, blocks))
    few = results.markdown(with_blocks(text, blocks | {"count": 9, "length": 11}))
    assert "in 9 independent blocks of 11 (a rough error: fewer than ten); of" in few
    shares = {"wikitext-2-longer": with_blocks(text, blocks), "wikitext-2-longer-half": with_blocks(text, None)}
    lines = results.shares(shares).splitlines()
    assert [results.MARK in line for line in lines if " 0.1 |" in line] == [False] * len(text["rows"])
    assert [results.MARK in line for line in lines if " 0.5 |" in line] == [True] * len(text["rows"])
    measured = newest("twins")
    assert results.MARK in twins.table(with_blocks(measured, None))
    assert results.MARK not in twins.table(with_blocks(measured, blocks))
    measured = newest("field")
    assert results.MARK in field_tables.tables(with_blocks(measured, None))["whole file"]
    assert results.MARK not in field_tables.tables(with_blocks(measured, blocks))["whole file"]


@pytest.mark.parametrize("protocol", ["bound", "prefix", "reference", "all"])
def test_plans_give_a_protocol_the_options_that_it_reads(protocol):
    for plan in protocols.CORPORA.values():
        given = evaluate.make_context("evaluate", ["run", *protocols.judging(plan, protocol)]).params
        assert given["protocol"] == protocol
        for option, theirs in READS.items():
            if given["prefixes" if option == "prefix" else option]:
                assert protocol in (*theirs, "all")
        assert bool(given["prefixes"]) == (protocol in ("prefix", "all"))


def test_a_table_says_what_the_figures_say(found):
    row = found["worlds-longer"]["rows"][0]
    table = results.markdown(found["worlds-longer"])
    assert f"{row['floor']['nats_per_token']:.4f}" in table
    whole = row["above_floor"]["twin"]["nats_per_token"]
    for name, told in (("bound", "ELBO"), ("importance-weighted", "importance-weighted")):
        closed = row["closed"][name]
        assert closed["share"] == pytest.approx(row["below_twin"][name]["nats_per_token"] / whole)
        assert f"{told} {100 * closed['share']:.1f} ± {100 * closed['stderr']:.1f}%" in table
    bits = row["bound"]["bits_per_byte"], row["twin"]["bits_per_byte"]
    assert f"below it by {bits[1] - bits[0]:.4f}" in table
