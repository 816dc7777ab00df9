"""Texts to token ids, in this process or by several at a time, with the same result."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.manifest import token_dtype
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.interruption import ENDING

Group = TypeVar("Group")

CONTEXT = multiprocessing.get_context("spawn")
"""How processes are started: not by a fork, which may hang where there are threads."""


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: as they are stored, uint16 or uint32 [n].
        bytes: UTF-8 bytes that they stand for, inside of a document. at_start: how many more at its beginning.
        unknown: how many of them stand for text that the tokenizer does not know.
        gives_back: whether they determine the text to the byte.
    """

    ids: npt.NDArray[Any]
    bytes: int
    at_start: int
    unknown: int
    gives_back: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> Encoded:
        """Of a text and its tokens."""
        tokens, sizes = np.asarray(ids, dtype=np.int64), tokenizer.token_bytes
        at_start = int(tokenizer.first_token_bytes[tokens[0]] - sizes[tokens[0]]) if len(tokens) else 0
        unknown = 0 if tokenizer.unknown is None else int((tokens == tokenizer.unknown).sum())
        stored, gives_back = tokens.astype(token_dtype(len(sizes))), tokenizer.gives_back(text, ids)
        return cls(stored, int(sizes[tokens].sum()), at_start, unknown, gives_back)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """The tokens of each text. Raises UserError where the tokenizer fails on one."""
    return [Encoded.of(tokenizer, text, ids) for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)]


def encode_groups(
    tokenizer: Tokenizer, groups: Iterator[tuple[Group, Sequence[str]]], workers: int
) -> Iterator[tuple[Group, list[Encoded]]]:
    """The tokens of groups of texts, in their order.

    Args:
        groups: what each is, which is given back, and its texts.
        workers: processes to encode them; 1: this one, by the tokenizer's own threads.

    Raises:
        UserError: the tokenizer fails on a text, or a process was killed.
    """
    if workers == 1:
        yield from ((group, encode(tokenizer, texts)) for group, texts in groups)
        return
    with contextlib.ExitStack() as running:
        idle: list[_Worker] = []
        busy: deque[tuple[_Worker, Group]] = deque()
        for group, texts in groups:
            result = None
            if idle or len(busy) < workers:
                worker = idle.pop() if idle else running.enter_context(_Worker(tokenizer))
            else:
                worker, earlier = busy.popleft()
                result = earlier, worker.result()
            worker.begin(texts)  # before what it did is written, so that it does not wait for that
            busy.append((worker, group))
            if result:
                yield result
        for worker, group in busy:
            yield group, worker.result()


class _Worker:
    """A process that encodes one list of texts at a time. Use as a context manager."""

    def __init__(self, tokenizer: Tokenizer):
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_work, args=(theirs, tokenizer), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.kill()  # which holds nothing, and hears no other signal
        self._process.join()

    def begin(self, texts: Sequence[str]) -> None:
        """Gives it the next texts; the result of those before has to be taken first."""
        with self._alive():
            self._pipe.send(texts)

    def result(self) -> list[Encoded]:
        """The tokens of the texts; waits for them. Raises UserError."""
        with self._alive():
            result = self._pipe.recv()
        if isinstance(result, str):
            raise UserError(result)
        return list(result)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            why = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
            raise UserError(
                f"a process that encodes text {why}, perhaps for want of memory; take fewer --workers"
            ) from None


def _work(pipe: Connection, tokenizer: Tokenizer) -> None:
    """Encodes what comes until the other end is closed, as it is when its process dies."""
    for number in ENDING:  # Ctrl-C, a closed terminal and whoever stops all processes mean the one who reads
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            texts = pipe.recv()
            try:
                result: list[Encoded] | str = encode(tokenizer, texts)
            except UserError as error:
                result = str(error)
            pipe.send(result)
