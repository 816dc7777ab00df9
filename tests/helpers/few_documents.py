"""A part of `python-docs` in place of all: to find its docstrings in the whole standard library takes seconds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyro_ltm.data import corpora
from pyro_ltm.data.documents import Document

ALL = corpora.python_docs.__wrapped__
PACKAGES = ("asyncio", "email", "http", "logging", "xml")


def use_few_documents(patch: pytest.MonkeyPatch) -> None:
    """Until the patch ends, `python-docs` is the language reference and the docstrings of `PACKAGES`."""
    patch.setattr(corpora, "python_docs", _few)


@functools.lru_cache(maxsize=1)
def _few() -> tuple[Document, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "_modules", _modules)
        return ALL()


def _modules(library: Path) -> Iterator[Path]:
    for name in PACKAGES:
        yield from (library / name).rglob("*.py")
