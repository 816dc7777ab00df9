"""The tables of docs/results.md are those of the committed figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pyro_ltm_cli.evaluate import READS
from pyro_ltm_cli.evaluate import command as evaluate

from benchmarks import field_tables, protocols, results, twins

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def newest(kind):
    return json.loads(max(BENCHMARKS.glob(f"{kind}-????-??-??.json")).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found():
    return newest("protocols")


def test_the_page_has_the_tables_of_the_newest_files(found):
    text = results.PAGE.read_text(encoding="utf-8")
    marked = set(re.findall(r"^<!-- (?!end )([\w -]+) -->$", text, re.MULTILINE))
    assert set(found) <= set(protocols.CORPORA)
    made = {"twins": twins.table(newest("twins")), **field_tables.tables(newest("field"))}
    assert set(made) <= marked <= set(made) | set(results.tables(found))
    for name, tables in (("protocols", results.tables(found)), ("twins or benchmarks.field", made)):
        assert results.filled(text, tables) == text, f"run: python -m benchmarks.{name} --table FILE"


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
    path = max(BENCHMARKS.glob("twins-????-??-??.json"))
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


def test_errors_that_take_sequences_as_independent_are_marked(found):
    blocks = {"count": 14, "length": 7, "of": "sequences", "units": 100}
    text, world = found["wikitext-2-longer"], found["worlds-longer"]
    for make in (results.markdown, results.along_draws):
        old, new = make(with_blocks(text, None)), make(with_blocks(text, blocks))
        errors = old.count("±")
        assert old.count(results.MARK) == errors + 1, "each, and what the mark means"
        assert old.endswith(f"{results.MEANING}\n")
        assert results.MARK not in new
        assert new.count("±") == errors
        # A world's documents are a sequence each, and independent.
        assert results.MARK not in make(with_blocks(world, None))
    assert "of the bound over 100 sequences in 14 independent blocks of 7" in results.markdown(
        with_blocks(text, blocks)
    )
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
