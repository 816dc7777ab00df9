"""The corpora that come with Python."""

from __future__ import annotations

import hashlib
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from helpers.processes import FORKS

from pyro_ltm.data import prepare, read_source
from pyro_ltm.data.corpora import CORPORA, MIN_DOCSTRING, python_docs, read_corpus

pytestmark = pytest.mark.xdist_group("python-docs")  # one process reads Python's library for all


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


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_python_docs_is_the_same_in_another_process() -> None:
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=send_digest, args=(theirs,))
    process.start()
    theirs.close()
    digest, seed = ours.recv()
    process.join()
    assert seed != hash("a"), "sets are ordered otherwise there"
    assert digest == digest_of_documents()


def send_digest(pipe: Connection) -> None:
    warnings.simplefilter("error")
    pipe.send((digest_of_documents(), hash("a")))


def digest_of_documents() -> str:
    return hashlib.sha256(repr(python_docs()).encode()).hexdigest()


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
