"""The corpora that come with Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyro_ltm.data import prepare, read_source
from pyro_ltm.data.corpora import CORPORA, MIN_DOCSTRING, python_docs, read_corpus


def test_python_docs_is_large_and_ordered() -> None:
    documents = python_docs()
    assert len(documents) > 1000
    assert 1_000_000 < sum(len(document.text) for document in documents) < 4_000_000
    topics = [document for document in documents if ".py" not in document.origin]
    assert [document.origin for document in topics] == sorted(document.origin for document in topics)
    assert documents[: len(topics)] == tuple(topics)
    assert all(len(document.text) >= MIN_DOCSTRING for document in documents[len(topics) :])
    assert len({document.origin for document in documents}) == len(documents)


def test_python_docs_leaves_out_installed_packages_and_tests() -> None:
    origins = [document.origin for document in python_docs()]
    for folder in ("site-packages", "dist-packages", "/test/", "/tests/", "idle_test"):
        assert not any(folder in origin for origin in origins)


def test_python_docs_is_the_same_in_another_process() -> None:
    script = "from pyro_ltm.data.corpora import python_docs; print(hash_(python_docs()))"
    script = "import hashlib; hash_ = lambda x: hashlib.sha256(repr(x).encode()).hexdigest(); " + script
    output = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    import hashlib

    assert output.stdout.strip() == hashlib.sha256(repr(python_docs()).encode()).hexdigest()


def test_prepared(tmp_path: Path) -> None:
    folder = prepare(["python-docs"], tmp_path / "out", vocab_size=400)
    assert folder.meta["python"].startswith("CPython 3.")
    assert folder.meta["splits"]["validation"]["documents"] > 100


def test_read_by_name() -> None:
    assert list(read_source("python-docs")) == list(python_docs())
    assert list(CORPORA) == ["python-docs", "worlds", "in-context"]


def test_unknown_corpus(refused) -> None:
    message = refused(read_corpus, "python-doc")
    assert "unknown corpus 'python-doc' (did you mean 'python-docs'?)" in message
