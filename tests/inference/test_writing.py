"""Continuations of many prompts, and rethinking: what is fitted to what, what is written from it, what is kept."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny import tiny_config, tiny_model

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.inference import FastLoop, Rethinking, generate
from pyro_ltm.inference.writing import Writer
from pyro_ltm.model import DecodingOptions
from pyro_ltm.objectives import MAP, AnalyticELBO

PROMPTS = ["abca", "d", "hgfedcba", "d", "ab"]
GREEDY = DecodingOptions(temperature=0)


class Letters:
    """One token a letter, and the end."""

    end_of_text = 0

    def encode(self, text):
        return [ord(letter) - ord("a") + 1 for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i - 1) for i in ids if i)


@pytest.fixture
def writes():
    """`generate` of a model in double precision, so that rounding moves no draw to another token."""
    torch.set_default_dtype(torch.float64)
    model = tiny_model(tiny_config(vocab_size=21, max_length=16, layers=1, thoughts=2))
    model.decoder.tok_embeddings.weight.data[0] = 0  # the end, never the likeliest token, is drawn at times
    loop = FastLoop(MeanField(2, 16), AnalyticELBO(), steps=3)

    def write(*, model=model, loop=loop, **options):
        return generate(model, loop, Letters(), **{"max_new_tokens": 6, "seed": 5} | options)

    write.model, write.loop = model, loop
    return write


def test_what_follows_a_prompt_does_not_depend_on_the_others(writes):
    seen = []
    together = writes(prompts=PROMPTS, num=2, progress=seen.append)
    assert [one.prompt for one in together] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert together[2:4] != together[6:8], "the same prompt again, on other noise"
    assert writes(prompts=PROMPTS, num=2, batch_size=1) == together
    assert writes(prompts=PROMPTS, num=2, batch_size=5) == together
    assert writes(prompts=PROMPTS[2:3], num=2) == together[4:6]
    assert writes(prompts=PROMPTS[::-1], num=1) == together[::2][::-1][:1] + writes(prompts=PROMPTS[::-1])[1:]
    assert writes(prompts=PROMPTS[:2], num=1) == together[:4:2]
    assert writes(prompts=PROMPTS[:2], num=1, seed=6) != together[:4:2]
    assert seen == [10]


@pytest.mark.parametrize("rethinking", [Rethinking(refit_every=2), Rethinking(rounds=1, refit_every=2)])
def test_what_follows_a_prompt_with_refits_does_not_depend_on_the_others(rethinking, writes):
    together, alone = (writes(prompts=PROMPTS, rethinking=rethinking, batch_size=size) for size in (32, 1))
    assert [(one.text, one.drafts) for one in together] == [(one.text, one.drafts) for one in alone]


def test_each_prompt_has_the_thoughts_that_were_fitted_to_it_alone(writes, monkeypatch):
    """To rounding, for a batch of another shape sums in another order; one at a time to the bit."""
    given = {}
    write = Writer.write

    def spy(self, rows, thoughts):
        given.update({row.key: z for row, z in zip(rows, thoughts, strict=True)})
        return write(self, rows, thoughts)

    def thoughts(prompts, batch_size):
        given.clear()
        writes(prompts=prompts, num=2, batch_size=batch_size, max_new_tokens=1)
        return dict(given)

    monkeypatch.setattr(Writer, "write", spy)
    together, apart, alone = thoughts(PROMPTS, 32), thoughts(PROMPTS, 1), thoughts(PROMPTS[2:3], 32)
    assert (len(together), len(apart), len(alone)) == (10, 10, 2)
    for key, z in alone.items():
        torch.testing.assert_close(together[key], z, rtol=0, atol=1e-9)
        assert torch.equal(apart[key], z)


def test_no_rethinking_and_no_refit_change_nothing(writes):
    plain = writes(prompt="abc", num=6)
    assert writes(prompt="abc", num=6, rethinking=Rethinking(rounds=0)) == plain
    assert writes(prompt="abc", num=6, rethinking=Rethinking(refit_every=6)) == plain
    assert writes(prompt="abc", num=6, rethinking=Rethinking(refit_every=2)) != plain


@pytest.mark.parametrize(("keep", "fits"), [(None, 3), (lambda z, text: 0.0, 2)])
def test_thoughts_are_fitted_to_prompt_and_continuation(keep, fits, writes, monkeypatch):
    """And each round's text is the likeliest under the thoughts drawn from that fit, by a decoder without a cache."""
    fitted, drawn = [], []
    fit, draw = Writer._fit, Writer._draw

    def spy_on_fit(self, rows, written, *key):
        fitted.append([[*row.prompt, *one.tokens] for row, one in zip(rows, written, strict=True)])
        return fit(self, rows, written, *key)

    def spy_on_draw(self, posterior, *key):
        drawn.append(draw(self, posterior, *key))
        return drawn[-1]

    monkeypatch.setattr(Writer, "_fit", spy_on_fit)
    monkeypatch.setattr(Writer, "_draw", spy_on_draw)
    writes(prompts=["abca", "d"], sampler=GREEDY, rethinking=Rethinking(rounds=2, keep=keep))
    assert len(fitted) == fits
    assert len(drawn) == 2
    prompts = [[0, 4], [0, 1, 2, 3, 1]]  # the shorter one first
    for z, texts in zip(drawn, fitted[1:], strict=False):
        for row, text in enumerate(texts):
            assert text[: len(prompts[row])] == prompts[row]
            assert text == argmax(writes.model, z[row : row + 1], prompts[row], len(text))


def test_refitting_while_a_text_is_written(writes, monkeypatch):
    """Every piece is the likeliest under thoughts fitted to all before it: no key or value of old ones is left."""
    fitted, drawn = [], []
    fit, draw = Writer._fit, Writer._draw

    def spy_on_fit(self, rows, written, *key):
        fitted.append([*rows[0].prompt, *written[0].tokens])
        return fit(self, rows, written, *key)

    def spy_on_draw(self, posterior, *key):
        drawn.append(draw(self, posterior, *key))
        return drawn[-1]

    monkeypatch.setattr(Writer, "_fit", spy_on_fit)
    monkeypatch.setattr(Writer, "_draw", spy_on_draw)
    (found,) = writes(prompt="ab", max_new_tokens=7, sampler=GREEDY, rethinking=Rethinking(refit_every=3))
    whole = [0, *Letters().encode("ab" + found.text), *([0] if found.ended else [])]
    assert len(whole) == 3 + 7, "the seed writes a text that is long enough"
    assert fitted == [whole[:6], whole[:9]]
    for z, before in zip(drawn, fitted, strict=True):
        end = min(len(before) + 3, len(whole))
        assert whole[:end] == argmax(writes.model, z, before, end)


def argmax(model, thoughts, before, length):
    """`before` and the likeliest tokens after it, all read anew for each; up to the end of the text."""
    tokens = list(before)
    with torch.no_grad():
        while len(tokens) < length:
            hidden = model.decoder(model.decoder.context(torch.tensor([tokens])), thoughts)
            tokens.append(int(model.decoder.logits(hidden)[0, -1].argmax()))
    return tokens


def test_the_bound_by_which_is_kept(writes):
    """Where the decoder does not look at its thoughts, q stays at the prior and the bound is the likelihood itself."""
    model = writes.model
    model.decoder.layers[0].cross_attention.wo.weight.data.zero_()
    options = {"model": model, "prompts": ["abca", "d"], "num": 2}
    kept = writes(**options, rethinking=Rethinking(rounds=3, particles=2))
    candidates = {}

    def likelihood(z, text):
        tokens = torch.tensor([[0, *Letters().encode(text)]])
        candidates.setdefault(z.shape, []).append(text)
        with torch.no_grad():
            hidden = model.decoder(model.decoder.context(tokens[:, :-1]), None)
            nats = model.decoder.token_log_probs(hidden[0], tokens[0, 1:])
        return float(nats.mean())

    again = writes(**options, rethinking=Rethinking(rounds=3, keep=likelihood))
    assert list(candidates) == [(2, 16)]
    assert len(candidates[2, 16]) == 4 * 4
    whole = [(one, other) for one, other in zip(kept, again, strict=True) if not one.ended and not other.ended]
    assert whole, "some text is cut short, so that both see the same tokens"
    for one, other in whole:
        if one.kept == other.kept:
            assert one.text == other.text
            assert one.scores[one.kept] == pytest.approx(other.scores[one.kept], abs=1e-5)
    for one in kept:
        assert len(one.scores) == 4
        assert one.scores[one.kept] == max(one.scores)
    assert len({one.kept for one in kept}) > 1, "not always the same round"


def test_a_function_of_the_users_own_decides(writes):
    texts = []

    def letters_a(z, text):
        texts.append(text)
        return text.count("a")

    options = {"prompts": ["bc", "d"], "num": 3}
    found = writes(**options, rethinking=Rethinking(rounds=4, keep=letters_a))
    assert len(texts) == 5 * 6
    first = writes(**options)
    for one, plain in zip(found, first, strict=True):
        assert (one.prompt + one.text).count("a") == max(one.scores) == one.scores[one.kept]
        assert one.kept == one.scores.index(max(one.scores)), "the first of equals"
        assert one.text == one.drafts[one.kept]
        assert [(one.prompt + draft).count("a") for draft in one.drafts] == list(one.scores)
        assert one.drafts[0] == plain.text
        assert one.scores[0] == (plain.prompt + plain.text).count("a"), "the first text is that of R = 0"
    assert any(one.kept for one in found)
    assert found == writes(**options, rethinking=Rethinking(rounds=4, keep=letters_a))
    everywhere = writes(**options, rethinking=Rethinking(rounds=1, keep=lambda z, text: -math.inf))
    assert [(one.text, one.kept) for one in everywhere] == [(one.text, 0) for one in first]


def test_texts_from_the_prior_are_rethought_too(writes):
    torch.set_default_dtype(torch.float32)
    (one,) = writes(model=writes.model.float(), rethinking=Rethinking(rounds=2))
    assert len(one.scores) == 3


def raises(z, text):
    raise KeyError("no such word")


def rethinks(**how):
    return {"prompt": "ab", "rethinking": Rethinking(rounds=1, **how)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": ["a", ""]}, "prompt 2: the text is empty"),
        ({"prompts": ["a", "b" * 16]}, "prompt 2: the text has 16 tokens; this model reads at most 15"),
        ({"prompts": ["b" * 12, "a"]}, "prompt 1: 13 tokens of prompt and 6 new ones .* at most 4 new tokens"),
        ({"prompts": "abc"}, "a list of texts"),
        ({"prompts": ["a"], "num": 0}, "num = 0"),
        ({"prompts": ["a"], "prompt": "b"}, "give neither another prompt nor thoughts"),
        ({"prompts": ["a"], "thoughts": torch.zeros(1, 2, 16)}, "give neither another prompt nor thoughts"),
        (rethinks(keep=raises), r"raises\(z, text\) failed: KeyError: 'no such word'"),
        (rethinks(keep=lambda z, text: None), "failed: TypeError"),
        (rethinks(keep=lambda z, text: math.nan), "gave NaN for the text 'ab"),
    ],
)
def test_what_cannot_be_written_is_refused(options, says, writes):
    with pytest.raises(UserError, match=says):
        writes(**options)


@pytest.mark.parametrize("option", [{"rounds": -1}, {"refit_every": 0}, {"particles": 0}])
def test_numbers_out_of_range_are_refused(option):
    with pytest.raises(UserError, match=f"{next(iter(option))} = "):
        Rethinking(**option)


def test_a_twin_and_a_point_are_refused(writes):
    twin = tiny_model(tiny_config(vocab_size=21, max_length=16, layers=1, thoughts=0))
    for how in (Rethinking(rounds=1), Rethinking(refit_every=2)):
        with pytest.raises(UserError, match="twin"):
            writes(model=twin, prompt="ab", rethinking=how)
    assert len(writes(model=twin, loop=FastLoop(MeanField(0, 16), AnalyticELBO()), prompts=PROMPTS)) == 5
    point = FastLoop(Delta(2, 16), MAP(), steps=1)
    with pytest.raises(UserError, match="Delta has no density"):
        writes(loop=point, prompt="ab", rethinking=Rethinking(rounds=1))
    assert writes(loop=point, prompt="ab", rethinking=Rethinking(rounds=1, keep=lambda z, text: 0.0))
