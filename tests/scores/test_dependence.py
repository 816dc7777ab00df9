"""Errors of packed text: what they are of independent sequences, and how often they cover where neighbours depend."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny import D, N, telling_model

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.scores import Figure, difference, evaluate_bound, share
from pyro_ltm.scores.dependence import Blocks, Places, block_length, block_variance
from pyro_ltm.scores.estimate import mean_error, plain, ratio_error

WIDTH = 1.96


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def places(count, documents=None):
    return Places(torch.arange(count), documents)


def series(rho, shape, seed=0):
    """Stationary AR(1) series of variance 1, [..., n]."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * math.sqrt(1 - rho**2)
    noise[..., 0] /= math.sqrt(1 - rho**2)
    values = [noise[..., 0]]
    for step in range(1, shape[-1]):
        values.append(rho * values[-1] + noise[..., step])
    return torch.stack(values, -1)


def covers(values, errors):
    """How often 0, the true mean, lies within 1.96 standard errors of a corpus's."""
    return float((values.mean(-1).abs() < WIDTH * torch.tensor(errors)).double().mean())


def usual(values):
    """The standard errors of independent units."""
    return [float(error) for error in values.std(-1) / values.shape[-1] ** 0.5]


# What an error is of independent sequences.


def test_blocks_of_one_give_the_usual_formula():
    values = torch.randn(9, generator=torch.Generator().manual_seed(0))
    residual = values - values.mean()
    assert block_variance(residual, 1) == pytest.approx(float(residual.square().sum()) * 9 / 8, rel=1e-14)
    assert mean_error(values, None).stderr == pytest.approx(usual(values[None])[0], rel=1e-14)
    assert mean_error(values, places(9)).stderr == pytest.approx(usual(values[None])[0], rel=1e-14)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_the_block_variance_of_independent_units_has_no_bias(length):
    """The mean over corpora, to three of its own standard errors; without n / (n - b) it is 7 / 21 short at 7."""
    values = torch.randn(4000, 21, generator=torch.Generator().manual_seed(1))
    found = torch.tensor([block_variance(one - one.mean(), length) for one in values]) / 21
    assert abs(float(found.mean()) - 1) < 3 * float(found.std()) / 4000**0.5


@pytest.mark.parametrize("length", [1, 4, 10])
def test_the_closed_form_is_the_block_bootstraps(length):
    """Against 20,000 corpora put together from blocks of neighbours; n / (n - b) is no part of the bootstrap."""
    count, draws = 40, 20_000
    values = series(0.6, (count,))
    starts = torch.randint(count, (draws, count // length), generator=torch.Generator().manual_seed(2))
    rows = (starts[..., None] + torch.arange(length)) % count
    sums = values[rows].flatten(1).sum(1)
    closed = block_variance(values - values.mean(), length) * (count - length) / count
    # The variance of so many draws, nearly normal, is known to sqrt(2 / draws).
    assert closed == pytest.approx(float(sums.var()), rel=4 * (2 / draws) ** 0.5)


# The length of blocks.


@pytest.mark.parametrize(("count", "near"), [(500, 0.25), (2000, 0.15), (20_000, 0.06)])
@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_lengths_come_to_the_optimum_of_an_autoregression(rho, count, near):
    """(2 g^2 / D)^(1/3) n^(1/3): g = 2 rho / ((1 - rho) (1 + rho)) times the spectrum at 0, D = 4/3 its square."""
    optimum = (1.5 * (2 * rho / (1 - rho**2)) ** 2 * count) ** (1 / 3)
    lengths = torch.tensor([block_length(one) for one in series(rho, (100, count))]).double()
    assert float(lengths.median()) - 0.5 == pytest.approx(optimum, rel=near), "rounded up"


def test_independent_units_get_blocks_of_one():
    lengths = [block_length(one) for one in series(0.0, (300, 200))]
    # Five correlations beyond 2 sqrt(log10(n)) = 3 standard errors: 1.3% of the time.
    assert sum(length > 1 for length in lengths) <= 300 * 0.05


def test_lengths_never_leave_fewer_than_three_blocks():
    for count in range(1, 60):
        for rho in (0.0, 0.9, 0.999, -0.9):
            length = block_length(series(rho, (count,), seed=count))
            assert 1 <= length <= max(1, min(count / 3, 3 * count**0.5))
    assert block_length(torch.zeros(50)) == block_length(torch.ones(50)) == 1
    assert block_length(torch.arange(400.0)) > 30, "a trend"


# Coverage: how often an interval holds the truth, where the usual one fails.


@pytest.mark.parametrize(
    ("rho", "count", "least", "most_usual"),
    [
        (0.0, 500, 0.93, 1),
        (0.5, 100, 0.9, 0.8),
        (0.5, 500, 0.92, 0.8),
        (0.8, 100, 0.86, 0.55),
        (0.8, 500, 0.9, 0.55),
    ],
)
def test_intervals_cover_where_neighbours_depend(rho, count, least, most_usual):
    """Of 1,000 corpora; at 0.8 a hundred sequences are worth 11 independent ones, of which little can be known."""
    values = series(rho, (1000, count), seed=3)
    found = covers(values, [mean_error(one, places(count)).stderr for one in values])
    assert found >= least
    assert covers(values, usual(values)) <= most_usual
    assert rho or found == pytest.approx(covers(values, usual(values)), abs=0.01)


def packed(seed, documents, uneven=True, between=0.5):
    """A corpus whose documents differ in their level: nats, tokens and documents, each [S]; the true level is 3."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 + 20 * torch.rand(documents, generator=generator) if uneven else torch.full((documents,), 10.0)
    document = torch.arange(documents).repeat_interleave(sizes.long())
    tokens = torch.randint(50, 100, document.shape, generator=generator).double()
    level = 3 + between**0.5 * torch.randn(documents, generator=generator)[document]
    noise = (1 - between) ** 0.5 * torch.randn(document.shape, generator=generator)
    return (level + noise) * tokens, tokens, document


@pytest.mark.parametrize(
    ("documents", "known", "least"),
    [(6, True, 0.84), (12, True, 0.88), (40, True, 0.91), (12, False, 0.82), (40, False, 0.9)],
)
def test_intervals_cover_where_documents_differ(documents, known, least):
    """With fewer documents less is known of the error; blocks have to find out where documents end, and cover less."""
    hits = usual_hits = 0
    for seed in range(400):
        nats, tokens, document = packed(seed, documents)
        off = abs(float(nats.sum() / tokens.sum()) - 3)
        stand = places(len(nats), document if known else None)
        hits += off < WIDTH * ratio_error(nats, tokens, stand).stderr
        usual_hits += off < WIDTH * ratio_error(nats, tokens, None).stderr
    assert hits / 400 >= least
    assert usual_hits / 400 < 0.65


@pytest.mark.parametrize(
    ("sizes", "worth", "least"),
    [([1] * 100 + [200], 2, 0.9), ([300] + [1] * 300, 4, 0.9), ([2**power for power in range(9)], 3, 0.8)],
)
def test_intervals_cover_where_few_documents_hold_most_of_the_text(sizes, worth, least):
    """A document that is most of the text draws the level to itself; its residual does not say how far."""
    generator = torch.Generator().manual_seed(0)
    document = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    stand, hits = places(len(document), document), 0
    for _ in range(200):
        values = torch.randn(len(sizes), generator=generator)[document]
        values = values + 0.5 * torch.randn(len(document), generator=generator)
        found = mean_error(values, stand)
        hits += abs(float(values.mean())) < WIDTH * found.stderr
    assert hits / 200 >= least
    assert found.blocks.of == "sequences" or found.blocks == Blocks(worth, 1, "documents", len(sizes))


# What the error is taken over.


def test_many_documents_are_the_units_and_few_only_if_they_say_more():
    nats, tokens, document = packed(0, 40)
    found = ratio_error(nats, tokens, places(len(nats), document))
    level = nats.sum() / tokens.sum()
    without = [nats[document != one].sum() / tokens[document != one].sum() for one in range(40)]  # the jackknife
    assert found.stderr == pytest.approx(math.sqrt(sum(float(one - level) ** 2 for one in without) * 39 / 40))
    assert found.blocks == Blocks(40, 1, "documents", 40)
    nats, tokens, document = packed(0, 4)
    few = ratio_error(nats, tokens, places(len(nats), document))
    alone = ratio_error(nats, tokens, places(len(nats)))
    assert few.stderr >= alone.stderr
    # Thirty documents, one of them nearly all of the text: it cannot stand for thirty.
    long = torch.cat([torch.zeros(300, dtype=torch.int64), torch.arange(1, 30)])
    values = series(0.8, (329,))
    assert mean_error(values, places(329, long)).stderr >= mean_error(values, places(329)).stderr


def test_documents_of_one_sequence_each_are_sequences():
    values = series(0.8, (300,))
    assert mean_error(values, places(300, torch.arange(300))) == mean_error(values, places(300))
    assert mean_error(values, places(300)).blocks.of == "sequences"


def test_small_corpora_have_errors_that_are_no_smaller_than_the_usual_one():
    for count in range(2, 13):
        for seed in range(5):
            for rho in (-0.9, 0.0, 0.9):
                values = series(rho, (count,), seed)
                halves = torch.arange(count) // max(1, count // 2)
                for stand in (places(count), places(count, halves), places(count, torch.zeros_like(halves))):
                    found = mean_error(values, stand)
                    assert found.stderr >= usual(values[None])[0] * (1 - 1e-12)
                    assert found.blocks.count >= 2
    alternating = torch.tensor([1.0, -1.0] * 50)
    assert mean_error(alternating, places(100)).stderr == pytest.approx(usual(alternating[None])[0])


def test_one_sequence_has_no_error_and_says_so():
    found = mean_error(torch.ones(1), places(1, torch.zeros(1, dtype=torch.int64)))
    assert math.isnan(found.stderr)
    assert str(found.blocks) == "a single sequence, which has none"
    assert mean_error(torch.ones(30), places(30)).stderr == 0


def test_what_is_not_finite_has_no_error():
    documents = torch.arange(40) // 8
    for bad in (math.nan, math.inf):
        values = torch.arange(40.0).index_fill(0, torch.tensor([3]), bad)
        assert math.isnan(mean_error(values, places(40, documents)).stderr)
        assert math.isnan(share(torch.ones(40), values, places(40, documents)).stderr)


def test_blocks_say_what_they_are():
    assert str(Blocks(2, 1, "documents", 101)) == "101 documents of unlike sizes, worth 2 of one size"
    assert str(Blocks(30, 17, "sequences", 512)) == "512 sequences in 30 independent blocks of 17"
    assert str(Blocks(60, 1, "documents", 60)) == "60 documents, independent as far as can be seen"
    assert str(Blocks(12, 1, "sequences", 12)).endswith("too few to see whether neighbours are")


# What an error does not depend on, and where it is.


def test_errors_do_not_depend_on_the_order_in_which_sequences_came():
    nats, tokens, document = packed(5, 30)
    rows = torch.randperm(len(nats), generator=torch.Generator().manual_seed(0))
    for known in (None, document):
        stand = Places(torch.arange(len(nats)) + 7, known)
        moved = Places(stand.ids[rows], None if known is None else known[rows])
        straight, shuffled = ratio_error(nats, tokens, stand), ratio_error(nats[rows], tokens[rows], moved)
        assert shuffled.stderr == pytest.approx(straight.stderr, rel=1e-12)
        assert shuffled.blocks == straight.blocks


def test_differences_choose_blocks_of_their_own():
    """What two figures share cancels: a level that drifts is no part of their difference."""
    drift, own = series(0.95, (400,)), torch.randn(2, 400, generator=torch.Generator().manual_seed(4))
    higher, lower = drift + 1.5 + 0.1 * own[0], drift + 1 + 0.1 * own[1]
    tokens = torch.ones(400)
    gap = difference(higher, lower, tokens, places(400))
    assert gap.nats_per_token == pytest.approx(0.5, abs=5 * gap.stderr)
    assert gap.blocks.length == 1
    assert gap.stderr == pytest.approx(usual((higher - lower)[None])[0])
    figure = Figure.of(higher, tokens, places(400))
    assert figure.blocks.length > 5
    assert figure.nats_per_token_stderr > 3 * usual(higher[None])[0]
    part = share(0.5 * higher, higher, places(400))
    assert (part.share, part.stderr) == (pytest.approx(0.5), pytest.approx(0, abs=1e-12))


def test_figures_say_their_blocks_in_json():
    found = plain(Figure.of(series(0.9, (300,)), torch.ones(300), places(300)))
    assert set(found) == {"nats_per_token", "nats_per_token_stderr", "blocks", "tokens"}
    assert set(found["blocks"]) == {"count", "length", "of", "units"}
    assert found["blocks"]["count"] == 300 // found["blocks"]["length"]


def test_a_bound_has_the_errors_of_its_documents_whatever_its_batches():
    model, batch = telling_model(12)
    document = torch.arange(12) // 6
    batch = type(batch)(**{**vars(batch), "documents": document})
    loop = FastLoop(MeanField(N, D), AnalyticELBO(), steps=2)
    found = [
        evaluate_bound(model, [batch.select(rows) for rows in order], loop, particles=2)
        for order in (torch.arange(12).split(12), torch.arange(12).split(5), torch.arange(12).flip(0).split(4))
    ]
    residual = found[0].sequence_nats - found[0].sequence_tokens * found[0].nats_per_token
    sums = torch.stack([residual[document == one].sum() for one in (0, 1)])
    classic = ratio_error(found[0].sequence_nats, found[0].sequence_tokens, None).stderr
    by_hand = max(classic, math.sqrt(float(sums.square().sum()) * 2) / found[0].tokens)
    for one in found:
        assert one.nats_per_token_stderr == pytest.approx(by_hand, rel=1e-6)
        assert one.blocks == found[0].blocks
        assert one.to_dict()["blocks"] == vars(one.blocks)
        assert "places" not in one.to_dict()
