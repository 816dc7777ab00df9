"""Built-in corpora, so that a first run needs neither a download nor a file.

To add one, write a function that returns the documents of a source's name and add one line to `CORPORA`.
"""

from __future__ import annotations

import ast
import functools
import os
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyro_ltm.config import suggest
from pyro_ltm.data import in_context, worlds
from pyro_ltm.data.documents import Document
from pyro_ltm.data.in_context import is_in_context, read_in_context
from pyro_ltm.data.worlds import World, is_world, read_world
from pyro_ltm.errors import UserError

MIN_DOCSTRING = 200
"""Shorter docstrings, in characters, are mostly one-liners that say little."""

# Installed packages, and tests: not the standard library's own words.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")


def is_corpus(spec: str) -> bool:
    """Whether a source is a built-in corpus: its name, with or without `:options`."""
    return spec.partition(":")[0] in CORPORA


def is_drawn(spec: str) -> bool:
    """Whether a source is a corpus whose documents are drawn, each independent of the others, in few words."""
    return is_world(spec) or is_in_context(spec)


def for_scoring(spec: str, like: World | None = None) -> str:
    """The spec of documents of a drawn corpus that nobody trained on; `like` as in `worlds.for_scoring`."""
    return worlds.for_scoring(spec, like) if is_world(spec) else in_context.for_scoring(spec)


def read_corpus(spec: str) -> Iterator[Document]:
    """The documents of a built-in corpus.

    Raises:
        UserError: there is no such corpus, it has no such option, or this Python lacks what it is made of.
    """
    name = spec.partition(":")[0]
    if name not in CORPORA:
        raise UserError(f"unknown corpus '{name}'{suggest(name, CORPORA)}: choose from {', '.join(CORPORA)}")
    return iter(CORPORA[name](spec))


def _python_docs(spec: str) -> tuple[Document, ...]:
    if ":" in spec:
        raise UserError(f"{spec}: the corpus python-docs has no options")
    return python_docs()


@functools.lru_cache(maxsize=1)
def python_docs() -> tuple[Document, ...]:
    """Python's language reference, then the longer docstrings of its standard library: about 1.8 MB, 2,400 documents.

    The same for every run of one CPython release. It stays in memory after the first call, since parsing the standard
    library takes seconds and preparing data reads a corpus more than once.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "python-docs: this Python comes without pydoc_data; use a full CPython or name a file"
        ) from None
    reference = [Document(text, f"python-docs:{name}") for name, text in sorted(topics.items())]
    return (*reference, *_docstrings(Path(sysconfig.get_path("stdlib"))))


def _docstrings(library: Path) -> Iterator[Document]:
    """Docstrings of at least `MIN_DOCSTRING` characters below `library`, by path and then by line."""
    for path in sorted(_modules(library), key=lambda path: path.parts):
        relative = path.relative_to(library)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library's own code; as errors they would change the corpus
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # templates that are no Python, or unreadable: not worth a stop
            continue
        nodes: list[ast.AST] = [tree]
        for node in nodes:  # grows on the way: every statement, and no expression, for none has a docstring
            nodes += [statement for block in _BLOCKS for statement in getattr(node, block, ())]
        documented = [node for node in nodes if isinstance(node, _DOCUMENTED)]
        for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_DOCSTRING and _is_unicode(text):
                yield Document(text, f"python-docs:{relative.as_posix()}:{getattr(node, 'lineno', 1)}")


def _modules(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


CORPORA: dict[str, Callable[[str], Iterable[Document]]] = {
    "python-docs": _python_docs,
    "worlds": read_world,
    "in-context": read_in_context,
}
