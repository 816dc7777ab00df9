"""What new tokens add to a prompt's text, for every kind of tokenizer."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import tiny_config
from helpers.tokenizer_kinds import kinds
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_ltm.config import Config
from pyro_ltm.inference import build, continuation, generate
from pyro_ltm.inference.codec import INCOMPLETE
from pyro_ltm.model import program

token = st.integers(0, 10**6)


@settings(max_examples=30)
@pytest.mark.parametrize("name", kinds())
@given(before=st.lists(token, max_size=6), new=st.lists(token, max_size=6))
def test_prompt_and_continuation_are_the_whole(name: str, before: list[int], new: list[int]) -> None:
    """Of any tokens; but for a character that begins in the one and ends in the other, which is new."""
    codec = kinds()[name]
    before, new = ([one % codec.vocab_size for one in ids] for ids in (before, new))
    told = [one for one in before if one != codec.end_of_text]
    start, whole = codec.decode(told), codec.decode([*told, *new])
    added = continuation(codec, [codec.end_of_text, *before], new)
    if whole.startswith(start):
        assert start + added == whole
    elif start.endswith(INCOMPLETE):
        assert whole.endswith(added)
        assert start.startswith(whole[: len(whole) - len(added)])
        assert set(start[len(whole) - len(added) :]) <= {INCOMPLETE}
    else:
        assert INCOMPLETE in whole
        assert added == codec.decode(new)


@settings(max_examples=30)
@pytest.mark.parametrize("name", kinds())
@given(words=st.lists(st.sampled_from(["Hello", "text", "world", "a", "7", "é", "你"]), min_size=2, max_size=5))
def test_a_text_cut_between_tokens_comes_together_again(name: str, words: list[str]) -> None:
    codec, text = kinds()[name], " ".join(words)
    ids = codec.encode(text)
    whole = codec.decode(ids)
    for cut in range(1, len(ids)):
        start = codec.decode(ids[:cut]).rstrip(INCOMPLETE)
        assert start + continuation(codec, ids[:cut], ids[cut:]) == whole
    assert continuation(codec, [codec.end_of_text], ids) == whole


@pytest.mark.parametrize("name", ["llama", "unigram", "wordpiece", "words", "bytes"])
def test_the_space_before_the_first_new_word_stays(name: str) -> None:
    codec = kinds()[name]
    before, whole = codec.encode("Hello some"), codec.encode("Hello some more")
    assert whole[: len(before)] == before
    assert continuation(codec, before, whole[len(before) :]) == " more"


def test_half_a_character_belongs_to_what_is_new() -> None:
    codec = kinds()["bytes"]
    before, after = codec.encode("a é")[:-1], codec.encode("a é")[-1:]
    assert codec.decode(before) == "a " + INCOMPLETE
    assert continuation(codec, before, after) == "é"


@pytest.mark.parametrize("prompt", ["Hello some", ""])
def test_generated_texts_go_on_from_their_prompts(prompt: str, monkeypatch) -> None:
    """All tokens that were written, decoded together; alone they would lack the space between prompt and text."""
    codec = kinds()["llama"]
    word = codec.encode("Hello more")[len(codec.encode("Hello")) :]
    model, loop = build(Config(model=tiny_config(vocab_size=codec.vocab_size, max_length=24)))

    def write(decoder, thoughts, tokens, count, **options):
        return torch.cat([tokens, torch.tensor([[*word, codec.end_of_text]] * len(tokens))], 1)

    monkeypatch.setattr(program, "sample_tokens", write)
    found = generate(model, loop, codec, prompt=prompt, num=2, seed=1)
    assert [one.text for one in found] == [" more" if prompt else "more"] * 2
    assert all(one.ended and one.tokens == len(word) for one in found)
