"""What the tests of the data room share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_ltm.data import Tokenizer
from pyro_ltm.errors import UserError

LINES = "".join(f"line {number} tells of cats, dogs, mice and numbers.\n" for number in range(400))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; skips where there is none."""
    shared = Path(os.environ.get("PYRO_LTM_SHARED", Path(__file__).parents[3] / "shared"))
    for folder in (shared / "data", shared):
        if (folder / "gpt2-tokenizer").is_dir():
            return folder
    pytest.skip("no shared data beside the repository (PYRO_LTM_SHARED may point to it)")


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "gpt2-tokenizer")


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of 300 tokens."""
    return Tokenizer.train([LINES], 300)


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls a function that must raise a UserError of one line; returns that line."""

    def call(function: Callable[..., object], *args: object, **options: object) -> str:
        def consume() -> None:
            result = function(*args, **options)
            if hasattr(result, "__next__"):
                list(result)

        with pytest.raises(UserError) as caught:
            consume()
        message = str(caught.value)
        assert "\n" not in message
        assert message
        return message

    return call
