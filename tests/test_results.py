"""The tables of docs/results.md are those of the committed figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pyro_ltm_cli.evaluate import READS
from pyro_ltm_cli.evaluate import command as evaluate

from benchmarks import protocols, results

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("protocols-*.json"))


@pytest.fixture(scope="module")
def found():
    return json.loads(FILES[-1].read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_the_newest_file(found):
    text = results.PAGE.read_text(encoding="utf-8")
    marked = set(re.findall(r"^<!-- (?!end )([\w -]+) -->$", text, re.MULTILINE))
    assert {name.removesuffix(" along K") for name in marked} - {"shares"} <= set(found) <= set(protocols.CORPORA)
    assert "shares" in marked
    assert results.filled(text, found) == text, "run: python -m benchmarks.protocols --table FILE"


def test_figures_are_of_runs_that_their_twins_fit(found):
    for one in found.values():
        assert [row["seed"] for row in one["rows"]] == sorted({row["seed"] for row in one["rows"]})
        for row in one["rows"]:
            assert row["twin"].get("differs", []) == [], "the same tokens in the same order"
            for path in (row["run"], row["twin_run"], row["data"]):
                assert not path.startswith("/"), "a folder of the machine that measured it"


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
