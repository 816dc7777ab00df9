"""Data sets of the Hugging Face Hub, row by row."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.readers.fields import Fields, no_column
from pyro_ltm.errors import UserError, one_line

HUB = "hf:"
"""Before the name of a data set."""

SECONDS = 5.0
"""To wait for the Hub's answer; its own client tries for half a minute or more."""


def open_hub(spec: str, reading: Reading) -> Callable[[], Iterator[Document]]:
    """A function that reads the data set `hf:name` or `hf:name:config` from its first row on, each time it is called.

    Raises:
        UserError: at once where there is no such data set, split or column, or the Hub cannot be reached.
    """
    name, config = spec[len(HUB) :], None
    if ":" in name and not Path(name).is_dir():
        name, config = name.split(":", 1)
    if not name:
        raise UserError(f"{spec}: expected a data set such as {HUB}org/name or {HUB}org/name:config")
    check_hub(spec, name)
    import datasets  # here, because it takes a second

    try:
        with quiet_loggers("huggingface_hub", "datasets"):  # they log a line for every retry
            rows: Any = datasets.load_dataset(name, config, split=reading.split, streaming=reading.streaming)
        columns = list(rows.column_names or [])
    except Exception as error:  # the library raises dozens of classes, from three packages
        raise UserError(
            f"{spec}: cannot be loaded: {one_line(error)} (check its name, split '{reading.split}' and the network)"
        ) from None
    if columns and reading.column not in columns and reading.column.split(".")[0] not in columns:
        raise no_column(spec, reading.column, columns)
    return lambda: _documents(rows, spec, Fields(reading))


def check_hub(spec: str, name: str) -> None:
    """Raises UserError, beginning with `spec`, when the data set `name` is on the Hub and that does not answer.

    A local folder needs none; nor does who works offline (HF_HUB_OFFLINE) from what was downloaded before.
    """
    from huggingface_hub import constants, get_session  # here, because it takes a while

    if Path(name).is_dir() or constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)  # whatever it answers, it is there
    except Exception as error:  # the client's classes changed with its releases
        raise UserError(
            f"{spec}: {constants.ENDPOINT} cannot be reached: {one_line(error)}; check the network, or set "
            "HF_HUB_OFFLINE=1 to read what was downloaded before"
        ) from None


@contextlib.contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Keeps loggers from printing warnings and errors in the block."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _documents(rows: Any, spec: str, fields: Fields) -> Iterator[Document]:
    numbered = enumerate(rows, 1)
    while True:
        try:
            number, row = next(numbered)
        except StopIteration:
            fields.check_column_seen()
            return
        except Exception as error:  # a network that goes away, a damaged shard
            raise UserError(f"{spec}: reading stopped: {one_line(error)}") from None
        yield fields.document(row, f"{spec}: row {number}")
