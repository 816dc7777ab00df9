"""Drawing tokens: filters on hand-made logits, and a cache that changes nothing."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import D, N, tiny_config, tiny_decoder, tiny_tokens

from pyro_ltm.errors import UserError
from pyro_ltm.model import DecodingOptions, sample_tokens
from pyro_ltm.model.sampling import _below

P = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)


def probabilities(**options):
    return DecodingOptions(**options).log_probs(P.log()).exp()[0].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 4}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        # Temperature 1/2 squares the probabilities (they sum to 0.3); 2 takes roots.
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"temperature": 2.0}, [x**0.5 / sum(y**0.5 for y in P[0].tolist()) for x in P[0].tolist()]),
        # First k, then p among what is left: 4/9, 3/9, 2/9.
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        # The temperature comes before p: 16/30 alone reaches a half.
        ({"temperature": 0.5, "top_p": 0.5}, [0, 1, 0, 0]),
    ],
)
def test_filters(options, expected):
    # Hand-made probabilities, double precision.
    assert probabilities(**options) == pytest.approx(expected, abs=1e-12)


def test_each_row_is_filtered_by_itself():
    logits = torch.stack([P[0], P[0].flip(0)]).log()
    both = DecodingOptions(top_k=2, top_p=0.9).log_probs(logits)
    assert torch.equal(both[0], both[1].flip(0))


def test_temperature_zero_takes_the_most_likely():
    assert DecodingOptions(temperature=0.0).draw(P.log()).tolist() == [1]


def test_draws_have_their_frequencies():
    generator = torch.Generator().manual_seed(1)
    drawn = DecodingOptions(top_k=3).draw(P.log().expand(9000, 4), generator)
    expected = torch.tensor([0, 4 / 9, 2 / 9, 3 / 9])
    share = torch.bincount(drawn, minlength=4) / 9000
    # Standard error of each share; the one left out is never drawn.
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / 9000).sqrt()).all()


def test_draws_of_a_large_vocabulary_have_its_entropy():
    """Each row its own distribution: the mean of -log p over draws is its entropy, with one generator or one a row."""
    logits = 3 * torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    logits[:, ::7] = float("-inf")
    log_p = logits.double().log_softmax(-1)
    nats = torch.where(log_p.isfinite(), -log_p, 0.0)
    entropy, square = (log_p.exp() * nats).sum(-1), (log_p.exp() * nats**2).sum(-1)
    error = ((square - entropy**2).sum() / 400).sqrt()
    for generator in (torch.Generator().manual_seed(1), [torch.Generator().manual_seed(row) for row in range(64)]):
        drawn = torch.stack([DecodingOptions().draw(logits, generator) for _ in range(400)], dim=1)
        surprise = -log_p.gather(1, drawn)
        assert surprise.isfinite().all(), "a token of probability zero"
        assert abs(surprise.mean(1).sum() - entropy.sum()) < 4 * error


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 5000])
def test_a_draw_inverts_the_cumulative_distribution(vocabulary):
    """The token that a search through the sums of the whole row finds, for the same uniform numbers."""
    logits = 2 * torch.randn(500, vocabulary, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 1::3] = float("-inf")
    drawn = DecodingOptions().draw(logits, torch.Generator().manual_seed(1))
    uniform = torch.empty(500, 1, dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(1))
    expected = torch.searchsorted(logits.softmax(-1).cumsum(-1), uniform, right=True)
    assert torch.equal(drawn, expected[:, 0])


def test_the_ends_of_the_unit_interval_meet_no_zero():
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
    for at, index, share in ((0.0, 1, 0.0), (0.15, 1, 0.5), (0.3, 3, 0.0), (0.65, 3, 0.5), (1 - 2**-53, 3, 1.0)):
        found, rest = _below(weights, torch.tensor([at], dtype=torch.float64))
        assert (found.item(), rest.item()) == (index, pytest.approx(share, abs=1e-12)), at


def test_a_generator_repeats_its_draws():
    decoder, thoughts, prompt = tiny_decoder(), torch.randn(3, 4, 16), tiny_tokens(3, 3)
    runs = [
        sample_tokens(decoder, thoughts, prompt, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
    ],
)
def test_refuses_bad_options(options, says):
    with pytest.raises(UserError, match=says):
        DecodingOptions(**options)


# A prompt of one token, shorter than the window, as long, longer, longer than two windows.
@pytest.mark.parametrize("prompt", [1, 3, 5, 6, 17])
@pytest.mark.parametrize("changes", [{}, {"window": 1}, {"window": 40}, {"thoughts": 0}], ids=str)
def test_the_cache_changes_no_hidden_state(prompt, changes):
    torch.set_default_dtype(torch.float64)
    config = tiny_config(max_length=24, **changes)
    decoder, thoughts = tiny_decoder(config), torch.randn(2, config.thoughts, 16)
    tokens = tiny_tokens(2, 24)[:, :-1]
    whole = decoder(decoder.context(tokens), thoughts)
    with torch.no_grad():
        hidden, cache = decoder.prefill(tokens[:, :prompt], thoughts)
        assert all(keys.shape[2] == min(config.window, 24) for keys in cache.keys), "bounded by window and length"
        for position in range(prompt - 1, 24):
            # Double precision; the sums run in another order.
            torch.testing.assert_close(hidden, whole[:, position].detach(), atol=1e-11, rtol=0)
            if position + 1 < 24:
                hidden = decoder.step(tokens[:, position + 1], cache)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_greedy_text_is_the_argmax_without_a_cache(length):
    torch.set_default_dtype(torch.float64)
    decoder, thoughts = tiny_decoder(tiny_config(max_length=20)), torch.randn(3, 4, 16)
    written = prompt = tiny_tokens(3, length)[:, :length]
    new = 21 - length
    for _ in range(new):
        logits = decoder.logits(decoder(decoder.context(written), thoughts))
        written = torch.cat([written, logits[:, -1:].argmax(-1)], 1)
    greedy = sample_tokens(decoder, thoughts, prompt, new, sampler=DecodingOptions(temperature=0.0))
    assert torch.equal(greedy, written)
    assert greedy.shape == (3, 21)


def test_an_end_token_ends_its_own_sequence():
    decoder, thoughts, prompt = tiny_decoder(), torch.randn(6, 4, 16), tiny_tokens(6, 2)[:, :2]
    greedy = DecodingOptions(temperature=0.0)
    free = sample_tokens(decoder, thoughts, prompt, 10, sampler=greedy)
    end = int(free[0, 6])  # what the first sequence writes at its fifth step at the latest
    ended = sample_tokens(decoder, thoughts, prompt, 10, sampler=greedy, end=end)
    for before, after in zip(free[:, 2:].tolist(), ended[:, 2:].tolist(), strict=True):
        stop = before.index(end) + 1 if end in before else len(before)
        assert after == (before[:stop] + [end] * (len(after) - stop))[: len(after)]
    # All ended: no more steps than the last one needs.
    alone = sample_tokens(decoder, thoughts[:1], prompt[:1], 10, sampler=greedy, end=end)
    assert alone.shape[1] == 2 + free[0, 2:].tolist().index(end) + 1
    # The prompt may hold the end token.
    opened = sample_tokens(decoder, thoughts, torch.full_like(prompt, end), 3, sampler=greedy, end=end)
    assert opened.shape[1] > 2


def test_a_generator_for_each_row_keeps_rows_apart():
    decoder = tiny_decoder()
    thoughts, prompt = torch.randn(3, N, D), tiny_tokens(3, length=3)

    def write(rows):
        own = [torch.Generator().manual_seed(10 + row) for row in rows]
        return sample_tokens(decoder, thoughts[rows], prompt[rows], 6, generator=own)

    together = write([0, 1, 2])
    assert torch.equal(write([2, 0]), together[[2, 0]])
    assert torch.equal(write([1]), together[1:2])


def test_prompts_of_unlike_lengths_are_continued_as_each_alone():
    """Tokens in double precision: no draw lies within rounding of another token."""
    torch.set_default_dtype(torch.float64)
    decoder = tiny_decoder(tiny_config(max_length=16))
    thoughts, prompt, lengths, new = torch.randn(4, N, D), tiny_tokens(4, length=7), [3, 8, 1, 5], [6, 9, 2, 0]

    def own(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    together = sample_tokens(decoder, thoughts, prompt, new, lengths=lengths, generator=own(range(4)))
    for row, (length, count) in enumerate(zip(lengths, new, strict=True)):
        alone = sample_tokens(
            decoder, thoughts[row : row + 1], prompt[row : row + 1, :length], count, generator=own([row])
        )
        assert torch.equal(together[row, : length + count], alone[0])
    assert together.shape == (4, 17)
    with pytest.raises(UserError, match="at most 9 new tokens"):
        sample_tokens(decoder, thoughts, prompt, [1, 10, 1, 1], lengths=lengths)


def test_an_end_token_in_a_longer_prompt_ends_nothing():
    decoder, thoughts = tiny_decoder(tiny_config(max_length=16)), torch.randn(2, N, D)
    prompt = torch.tensor([[3, 3, 3, 3, 3, 3], [4, 0, 0, 0, 0, 0]])
    greedy = DecodingOptions(temperature=0)
    written = sample_tokens(decoder, thoughts, prompt, [4, 9], lengths=[6, 1], sampler=greedy, end=3)
    alone = sample_tokens(decoder, thoughts[:1], prompt[:1], 4, sampler=greedy, end=3)
    assert torch.equal(written[0, : alone.shape[1]], alone[0])


def test_stops_when_no_sequence_needs_more():
    decoder, thoughts, prompt = tiny_decoder(), torch.randn(2, N, D), tiny_tokens(2, length=3)
    seen = []

    def stop(new):
        seen.append(new.clone())
        return torch.tensor([new.shape[1] >= 2, new.shape[1] >= 4])

    whole = sample_tokens(decoder, thoughts, prompt, 6, sampler=DecodingOptions(temperature=0))
    short = sample_tokens(decoder, thoughts, prompt, 6, sampler=DecodingOptions(temperature=0), stop=stop)
    assert torch.equal(short, whole[:, : prompt.shape[1] + 4])
    assert [new.shape[1] for new in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1], short[:, prompt.shape[1] :])


def test_lengths():
    decoder, thoughts = tiny_decoder(), torch.randn(2, 4, 16)
    assert sample_tokens(decoder, thoughts, tiny_tokens(2, 11), 1).shape == (2, 13)
    assert torch.equal(sample_tokens(decoder, thoughts, tiny_tokens(2, 4), 0), tiny_tokens(2, 4))
    with pytest.raises(UserError, match="at most 12"):
        sample_tokens(decoder, thoughts, tiny_tokens(2, 12), 1)
    with pytest.raises(UserError, match="at most 8 new tokens"):
        sample_tokens(decoder, thoughts, tiny_tokens(2, 4), 9)


def test_leaves_no_graph():
    assert not sample_tokens(tiny_decoder(), torch.randn(2, 4, 16).requires_grad_(), tiny_tokens(2, 2), 3).requires_grad
