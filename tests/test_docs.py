"""README and docs/ stay short, their links lead somewhere, and the figures in their sentences are measured ones."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks import in_context, pages, representations_tables, results, scaling_tables, speed_short, table

ROOT = pages.ROOT
READ = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
LINKED = [*READ, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("benchmarks/notes/*.md"))]
WORDS = 15_000
LINES = {"README.md": 120, "docs/results.md": 120, "docs/speed.md": 120, "docs/decisions.md": 80}
LINES |= {"docs/use-thoughts.md": 80}
GIVEN = {
    "README.md": {"3.10", "2.0", "0.2"},  # Python, the licence, millions of parameters
    "docs/results.md": {"0.14", "0.21"},  # millions of parameters
    "docs/decisions.md": {"0.01"},  # a setting
    "docs/speed.md": {"3.5"},  # a target
    "docs/thoughts.md": {"0.01", "0.1"},  # thresholds
    "docs/diagnostics.md": {"0.7", "1.01"},  # thresholds
    "docs/many-machines.md": {"2%", "15%"},  # bounds that tests/profiling/test_simulation.py holds
    # Python, a quantile, a known dependence, and what tests/scores/test_dependence.py holds bounds of.
    "docs/benchmarks.md": {"3.11", "1.96", "0.8", "95%", "88%", "49%"},
}
"""Numbers that are no measured figures of models, by page."""


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", paths, ids=named)


@pytest.mark.parametrize(("name", "most"), LINES.items())
def test_pages_stay_short(name, most):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_all_of_it_is_read_in_an_hour():
    words = {named(page): len(page.read_text(encoding="utf-8").split()) for page in READ}
    assert sum(words.values()) <= WORDS, words


@pytest.mark.parametrize(("name", "most"), [("docs/thoughts.md", 600), ("docs/benchmarks.md", 1300)])
def test_references_stay_short(name, most):
    assert len((ROOT / name).read_text(encoding="utf-8").split()) <= most


def test_pictures_are_small():
    sizes = {named(path): path.stat().st_size for path in ROOT.glob("docs/**/*") if path.is_file()}
    assert not {name: size for name, size in sizes.items() if size > 200_000}


@cache
def anchors(page: Path) -> set[str]:
    """What a link can lead to within a page: GitHub's names of its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each(LINKED)
def test_links_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.resolve())):
            wrong.append(link)
    assert not wrong


@each([*READ, ROOT / "CONTRIBUTING.md"])
def test_files_named_in_code_exist(page):
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"`((?:benchmarks|cli|docs|examples|pyro_ltm|tests)/[\w/.-]+\.[a-z]+)`", text)
    assert not [name for name in files if "DATE" not in name and not (ROOT / name).exists()]


@each([*READ, ROOT / "CONTRIBUTING.md"])
def test_python_on_a_page_imports_what_there_is(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyro_ltm"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@cache
def measured() -> set[str]:
    """Every number in a table that is made of the committed figures."""
    protocols, speed = (pages.newest(kind) for kind in ("protocols", "speed"))
    tables = results.tables(protocols) | table.tables(speed) | speed_short.tables(speed)
    tables |= scaling_tables.tables(pages.newest("scaling")) | in_context.tables(pages.newest("in-context"))
    tables |= representations_tables.tables(pages.newest("representations"))
    return numbers("\n".join(tables.values()))


def numbers(text: str) -> set[str]:
    """Decimal numbers and percentages."""
    return set(re.findall(r"(?<![\d.])\d[\d,]*\.\d+(?![\d.])|(?<![\d.])\d+%", text))


@each(READ)
def test_figures_in_sentences_are_measured(page):
    text = page.read_text(encoding="utf-8")
    for ignored in (r"^```.*?^```", r"<!-- (.+) -->.*?<!-- end \1 -->"):
        text = re.sub(ignored, "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+|\[arXiv[^\]]*", "", text)
    assert not numbers(text) - measured() - GIVEN.get(named(page), set())


def test_the_words_of_a_sentence_are_told_from_its_numbers():
    assert numbers("0.5 of 12% in 3 and 1,234.5, see 1.2.3") == {"0.5", "12%", "1,234.5"}
