"""Tokens that the tests of training learn from."""

from __future__ import annotations

import pytest

import pyro_ltm as ltm


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder of sequences of 16 tokens about birds, from birds.txt beside it."""
    text = tmp_path_factory.mktemp("text") / "birds.txt"
    text.write_text("".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400)))
    return ltm.prepare([str(text)], text.parent / "tokens", vocab_size=280, sequence_length=16).path
