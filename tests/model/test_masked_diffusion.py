"""The masked diffusion: its bound against enumeration, its decoder against a plain one, and its sampler's law."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.plain import plain_logits
from helpers.tiny import enlarge, tiny_config

from pyro_ltm.errors import UserError
from pyro_ltm.model import DecodingOptions, TokenSequence, sample_tokens
from pyro_ltm.model.denoising import denoise
from pyro_ltm.model.masked_diffusion import MaskedDiffusion, hide
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.types import Batch

V, D, T = 3, 8, 3
START, END = 1, 0


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def diffusion(seed=0, **changes):
    shape = {"vocab_size": V, "dim": D, "heads": 2, "layers": 2, "max_length": T, "window": 2, "thoughts": 0}
    model = MaskedDiffusion(tiny_config(**{**shape, "kind": "masked-diffusion", **changes}))
    enlarge(model.decoder, seed=seed)
    return model


def conditional(model, start, tokens, hidden):
    """Log-probabilities [L, V] at each of `tokens`, those at the places `hidden` unseen."""
    seen = [model.config.vocab_size if at in hidden else token for at, token in enumerate(tokens)]
    return log_probs(model, (start, *seen))


@functools.cache
@torch.no_grad()
def log_probs(model, read):
    decoder = model.decoder
    return decoder.logits(decoder(decoder.context(torch.tensor([read])), None))[0, 1:].log_softmax(-1)


def over_orders(model, start, tokens, places=None, *, unseen=()):
    """Of each order in which the `places` can be written, the log-probability: all others but `unseen` are given."""
    places = range(len(tokens)) if places is None else places
    found = []
    for order in itertools.permutations(places):
        total = 0.0
        for at, place in enumerate(order):
            total += float(conditional(model, start, tokens, {*order[at:], *unseen})[place, tokens[place]])
        found.append(total)
    return found


def mean(values):
    return sum(values) / len(values)


def batch_of(rows, **changes):
    """Sequences of a first input and its targets."""
    return dataclasses.replace(Batch.from_tokens(torch.tensor(rows)), **changes)


def copies(row, count, **changes):
    """The same sequence many times, each with noise of its own."""
    return batch_of([row] * count, **changes)


@torch.no_grad()
def estimates(model, batch):
    return model.likelihood(torch.zeros(batch.size, 0, D), batch).log_prob(batch.targets)


def agrees(values, exact):
    """Their mean, within four standard errors and what rounding leaves."""
    error = float(values.std() / len(values) ** 0.5)
    return abs(float(values.mean()) - exact) < 4 * error + 1e-10


def test_the_continuous_time_bound_is_the_mean_over_all_orders():
    """The integral over the time of 1/t times the hidden tokens' log-probabilities, mask by mask, by quadrature."""
    model, tokens = diffusion(), [2, 0, 1]
    points, weights = np.polynomial.legendre.leggauss(8)  # exact for the polynomials in t that there are here
    times, total = (points + 1) / 2, 0.0
    for size in range(1, T + 1):
        weight = float((weights / 2 * times ** (size - 1) * (1 - times) ** (T - size)).sum())
        for hidden in itertools.combinations(range(T), size):
            logs = conditional(model, START, tokens, hidden)
            total += weight * sum(float(logs[place, tokens[place]]) for place in hidden)
    assert total == pytest.approx(mean(over_orders(model, START, tokens)), abs=1e-12)


@pytest.mark.parametrize("draws", [1, 4])
def test_estimates_are_unbiased(draws):
    model, tokens = diffusion(), [2, 0, 1]
    found = estimates(model, copies([START, *tokens], 2000 // draws, hiding=(0, draws)))
    assert agrees(found, mean(over_orders(model, START, tokens)))


def test_a_bound_lies_below_the_log_probability_of_the_mixture_of_orders():
    model = diffusion()
    for tokens in itertools.product(range(V), repeat=T):
        logs = torch.tensor(over_orders(model, START, list(tokens)))
        assert float(logs.mean()) < float(logs.logsumexp(0)) - math.log(len(logs))


class Counting(TokenDecoder):
    """Stands for a decoder: a token costs as many nats as tokens are hidden, so that the time alone varies."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def context(self, inputs):
        return (inputs == self.config.vocab_size).sum(1, keepdim=True).expand(inputs.shape).double()

    def forward(self, context, thoughts):
        return context

    def token_log_probs(self, hidden, tokens):
        return -hidden

    def dropout_mask(self, batch):
        return None


def test_strata_lower_the_variance_and_leave_the_mean():
    model = diffusion(max_length=8)
    counting, row, rows = MaskedDiffusion(model.config, decoder=Counting(model.config)), [0] * 9, 2000
    mean_nats = -8 * 4.5  # 8 tokens, of which 1 to 8 are hidden, each as often
    single, four = (estimates(counting, copies(row, rows, hiding=(0, draws))) for draws in (1, 4))
    assert agrees(single, mean_nats)
    assert agrees(four, mean_nats)
    # The variance of 1, ..., 8 is 63 / 12. Each stratum has two of these numbers, whose variance is 1 / 4.
    assert float(single.var()) == pytest.approx(64 * 63 / 12, rel=0.1)
    assert float(four.var()) == pytest.approx(64 / 4 / 4, rel=0.1)
    # In a slow step each of 8 sequences has a stratum of its own, and by itself each number as often.
    steps = torch.stack([estimates(counting, copies(row, 8, dropout=seed)) for seed in range(200)])
    torch.testing.assert_close(steps.mean(1), torch.full((200,), mean_nats), atol=1e-9, rtol=0)
    assert all(agrees(sequence, mean_nats) for sequence in steps.unbind(1))


def test_strata_are_those_of_the_whole_step_however_it_is_split():
    batch = Batch.from_tokens(torch.randint(9, (6, 9), generator=torch.Generator().manual_seed(0)))
    (whole,) = hide(dataclasses.replace(batch, dropout=3))
    parts = torch.arange(6)[1::2], torch.arange(6)[::2]
    for part in parts:
        some = dataclasses.replace(batch.select(part), dropout=3, step_places=part, step_size=6)
        (drawn,) = hide(some)
        assert torch.equal(drawn.hidden, whole.hidden[part])
        assert torch.equal(drawn.weight, whole.weight[part])


def test_each_set_of_hidden_tokens_is_as_likely_as_the_time_makes_it():
    rows = 6000
    (drawn,) = hide(copies([START, 2, 0, 1], rows))
    assert torch.equal(drawn.hidden, drawn.foretold)
    code = (drawn.hidden * torch.tensor([1, 2, 4])).sum(1)
    for mask in range(8):
        size = mask.bit_count()
        share = 0.0 if size == 0 else 1 / (T * math.comb(T, size))
        seen = int((code == mask).sum()) / rows
        assert abs(seen - share) <= 4 * (share * (1 - share) / rows) ** 0.5
        if size:
            assert torch.equal(
                drawn.weight[code == mask].unique(), torch.tensor([T / size], dtype=torch.float32).double()
            )


def test_one_token_is_exact():
    model = diffusion()
    for token in range(V):
        exact = float(conditional(model, START, [token], {0})[0, token])
        found = estimates(model, copies([START, token], 5, hiding=(3, 2)))
        torch.testing.assert_close(found, torch.full((5,), exact), atol=1e-12, rtol=0)


def test_the_first_input_is_given_and_never_hidden():
    model = diffusion()
    logs = [mean(over_orders(model, start, [2, 0, 1])) for start in range(V)]
    assert len({round(value, 6) for value in logs}) == V  # it matters
    for start, exact in enumerate(logs):
        assert agrees(estimates(model, copies([start, 2, 0, 1], 800)), exact)


def test_padding_that_is_no_end_stays_hidden_and_costs_nothing():
    model, mask = diffusion(), torch.tensor([[True, True, False]])
    exact = mean(over_orders(model, START, [2, 0, 1], [0, 1], unseen={2}))
    found = [
        estimates(model, copies([START, 2, 0, padding], 800, mask=mask.expand(800, -1), hiding=(0, 1)))
        for padding in range(V)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert agrees(found[0], exact)


def test_padding_that_is_an_end_is_foretold():
    """Else the decoder would know a text's length, for which an autoregressive one pays."""
    model, mask = diffusion(), torch.tensor([[True, True, False]])
    batch = copies([START, 2, END, END], 3, hiding=(0, 4))
    short = dataclasses.replace(batch, mask=mask.expand(3, -1), padding_is_end=True)
    assert torch.equal(estimates(model, short), estimates(model, batch))
    free = dataclasses.replace(short, padding_is_end=False)
    assert not torch.equal(estimates(model, free), estimates(model, batch))


def test_the_probabilities_of_all_documents_sum_to_no_more_than_one():
    """A document ends with END or is cut at T; what the bound says of it is at most its probability."""
    model, total = diffusion(), 0.0
    for length in range(1, T + 1):
        for words in itertools.product(range(1, V), repeat=length - 1):
            for last in range(V) if length == T else (END,):
                total += math.exp(mean(over_orders(model, START, [*words, last, *[END] * (T - length)])))
    assert 0.3 < total < 1


@pytest.mark.parametrize("where", [slice(1, 3), slice(1, 2), slice(0, 2)])
def test_of_a_slice_what_lies_before_is_given_and_what_lies_behind_is_hidden(where):
    model, tokens = diffusion(), [2, 0, 1]
    exact = mean(over_orders(model, START, tokens, range(where.start, where.stop), unseen=range(where.stop, T)))
    assert agrees(estimates(model, copies([START, *tokens], 800, token_slice=where)), exact)


def test_a_text_that_has_ended_before_the_slice_costs_nothing():
    model = diffusion()
    batch = batch_of([[START, END, END, END], [START, 2, 2, END]], padding_is_end=True, token_slice=slice(1, 3))
    batch = dataclasses.replace(batch, mask=torch.tensor([[True, False, False], [True, True, True]]))
    found = estimates(model, batch)
    assert float(found[0]) == 0
    assert float(found[1]) < 0


def test_a_score_does_not_depend_on_the_batch():
    model = diffusion(max_length=8, vocab_size=9)
    tokens = torch.randint(9, (5, 9), generator=torch.Generator().manual_seed(0))
    batch = dataclasses.replace(Batch.from_tokens(tokens), hiding=(7, 3))
    apart = torch.cat([estimates(model, one) for one in batch.apart()])
    torch.testing.assert_close(estimates(model, batch), apart, atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", [1, 3, 9, 40])
@pytest.mark.parametrize("tied", [True, False])
def test_the_decoder_is_a_plain_one_without_the_causal_mask(window, tied):
    model = diffusion(max_length=8, vocab_size=9, window=window, tied=tied)
    tokens = torch.randint(10, (2, 9), generator=torch.Generator().manual_seed(1))  # 9: the token that hides
    ours = model.decoder.logits(model.decoder(model.decoder.context(tokens), None))
    shape = {"layers": 2, "heads": 2, "max_length": 9, "window": window, "hidden": model.config.hidden_width}
    weights = dict(model.decoder.state_dict())
    head = weights.pop("output.weight", weights["tok_embeddings.weight"])
    plain = plain_logits(weights, tokens, None, causal=False, turns=unit_turns(model.decoder.table), **shape)
    if tied:
        torch.testing.assert_close(ours, plain[..., :9], atol=1e-10, rtol=0)
    else:  # the plain decoder's head is its embedding: what both read off a hidden state determines that state
        states = torch.linalg.lstsq(weights["tok_embeddings.weight"], plain.flatten(0, 1).T).solution.T.view(2, 9, D)
        torch.testing.assert_close(ours, states @ head.T, atol=1e-9, rtol=0)


def unit_turns(table):
    return torch.complex(*table.double())


def test_what_foretells_one_token_after_the_other_refuses_it():
    model = diffusion()
    batch = batch_of([[START, 2, 0, 1]])
    with pytest.raises(UserError, match="masked diffusion: it does not foretell one token after the other"):
        TokenSequence(model.decoder, torch.zeros(1, 0, D), batch).log_prob(batch.targets)
    with pytest.raises(UserError, match="masked diffusion"):
        sample_tokens(model.decoder, torch.zeros(1, 0, D), batch.inputs[:, :1], 2)
    with pytest.raises(UserError, match="none of each token by itself"):
        model.likelihood(torch.zeros(1, 0, D), batch).token_log_probs(batch.targets)


def shares(tokens):
    """How often each text of three tokens was written."""
    code = (tokens[:, 1:] * torch.tensor([9, 3, 1])).sum(1)
    return torch.bincount(code, minlength=27) / len(tokens)


def close(found, law, rows):
    return bool(((found - law).abs() <= 4.5 * (law * (1 - law) / rows).sqrt()).all())


def test_texts_written_in_as_many_passes_as_tokens_have_the_law_of_the_bound():
    model, rows = diffusion(), 6000
    law = torch.tensor(
        [
            mean([math.exp(log) for log in over_orders(model, START, list(t))])
            for t in itertools.product(range(V), repeat=T)
        ]
    )
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    prompt = torch.full((rows, 1), START)
    generator = torch.Generator().manual_seed(0)
    assert close(shares(denoise(model.decoder, prompt, T, generator=generator)), law, rows)
    # By the Pyro program, where the tokens are not observed.
    batch = copies([START, 0, 0, 0], rows).unobserved()
    torch.manual_seed(1)
    assert close(shares(torch.cat([prompt, model(batch)], 1)), law, rows)


def test_one_pass_takes_tokens_for_independent():
    model, rows = diffusion(), 6000
    each = conditional(model, START, [0] * T, set(range(T))).exp()
    law = torch.stack([each[0, a] * each[1, b] * each[2, c] for a, b, c in itertools.product(range(V), repeat=T)])
    prompt, options = torch.full((rows, 1), START), DecodingOptions(diffusion_steps=1)
    found = denoise(model.decoder, prompt, T, sampler=options, generator=torch.Generator().manual_seed(0))
    assert close(shares(found), law, rows)


def test_prompts_are_kept_and_rows_do_not_depend_on_one_another():
    model = diffusion(max_length=12, vocab_size=20, window=4)
    prompts, lengths, new = [[1, 5, 6], [1, 7, 0], [1, 2, 3]], [3, 2, 3], [6, 9, 4]
    options = DecodingOptions(diffusion_steps=3, top_k=5)

    def write(rows):
        return denoise(
            model.decoder,
            torch.tensor([prompts[row] for row in rows]),
            [new[row] for row in rows],
            lengths=[lengths[row] for row in rows],
            sampler=options,
            generator=[torch.Generator().manual_seed(row) for row in rows],
        )

    together = write([0, 1, 2])
    for row in range(3):
        whole = lengths[row] + new[row]
        assert together[row, : lengths[row]].tolist() == prompts[row][: lengths[row]]
        assert together[row, :whole].tolist() == write([row])[0, :whole].tolist()
    assert int(together.max()) < 20


def test_nothing_follows_the_end_of_a_text():
    model, rows = diffusion(max_length=6), 200
    prompt = torch.full((rows, 1), END)  # as a first input it ends nothing
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    free = denoise(model.decoder, prompt, 6, generator=generators)
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    ended = denoise(model.decoder, prompt, 6, end=END, generator=generators)
    for row, other in zip(ended[:, 1:].tolist(), free[:, 1:].tolist(), strict=True):
        length = other.index(END) if END in other else 6
        assert row == other[:length] + [END] * (6 - length)
