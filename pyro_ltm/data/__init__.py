"""Text to token sequences: sources, tokenizer, packing, memory-mapped datasets, built-in corpora.

The names below are loaded on first use, so that reading text or training a tokenizer never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_ltm.data.corpora import CORPORA, read_corpus
    from pyro_ltm.data.dataset import TokenDataset, unigram_nats
    from pyro_ltm.data.documents import Document, Reading
    from pyro_ltm.data.folder import TokenFolder
    from pyro_ltm.data.order import DataOrder
    from pyro_ltm.data.preparation import Preparation, append, check, prepare
    from pyro_ltm.data.sources import read_source
    from pyro_ltm.data.tokenizer import Tokenizer
    from pyro_ltm.data.worlds import Story, World

__all__ = [
    "CORPORA",
    "DataOrder",
    "Document",
    "Preparation",
    "Reading",
    "Story",
    "TokenDataset",
    "TokenFolder",
    "Tokenizer",
    "World",
    "append",
    "check",
    "prepare",
    "read_corpus",
    "read_source",
    "unigram_nats",
]

# Where each name lives. No module may share its name with an export: importing it would hide the export.
_HOME = {
    "CORPORA": "corpora",
    "read_corpus": "corpora",
    "TokenDataset": "dataset",
    "unigram_nats": "dataset",
    "Document": "documents",
    "TokenFolder": "folder",
    "DataOrder": "order",
    "Preparation": "preparation",
    "append": "preparation",
    "check": "preparation",
    "prepare": "preparation",
    "Reading": "documents",
    "read_source": "sources",
    "Tokenizer": "tokenizer",
    "Story": "worlds",
    "World": "worlds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
