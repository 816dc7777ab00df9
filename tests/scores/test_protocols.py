"""What the protocols prove on a source whose entropy is known: the reference falls below it, a bound never does."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.covering import covered
from helpers.loops import take_loop
from helpers.world_program import world_program

from pyro_ltm.config import Component, Config, FastConfig, ModelConfig, SlowConfig, load_toml
from pyro_ltm.data import TokenDataset, Tokenizer, World, prepare
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FAMILIES, FastLoop, Posterior
from pyro_ltm.inference.build import build, build_guide
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.objectives import OBJECTIVES, Terms
from pyro_ltm.optimizers import Adam
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.runs.protocols import distances
from pyro_ltm.scores import (
    Bound,
    Figure,
    Floor,
    Prefix,
    check_floor,
    difference,
    evaluate_bound,
    evaluate_floor,
    evaluate_prefix,
    evaluate_reference,
)
from pyro_ltm.scores.floor import why_no_floor
from pyro_ltm.scores.prefix import AfterPrefix
from pyro_ltm.training import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

T, HELD_OUT = 64, 128
SHAPE = ModelConfig(dim=16, layers=1, heads=2, thoughts=2, max_length=T, window=4, init_std=0.1, embedding_scale=4.0)
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Documents of a small world, training and validation by two seeds."""
    folder = tmp_path_factory.mktemp("world") / "data"
    train, held_out = "worlds:size=2,length=6,documents=640", f"worlds:size=2,length=6,documents={HELD_OUT},seed=1"
    return prepare([train], folder, validation_sources=[held_out], sequence_length=T)


def reference_config(shape: ModelConfig, slow: SlowConfig, *, steps: int) -> Config:
    """The reference implementation's fast loop, on one noise, as the example ships it."""
    config = load_toml(EXAMPLES / "reference.toml", Config(model=shape, slow=slow))
    return dataclasses.replace(config, fast=dataclasses.replace(config.fast, steps=steps))


def train(model: LatentThoughtModel, loop: FastLoop, slow: SlowConfig, batch: Callable[[int], Batch]) -> None:
    """Slow steps on `batch(step)`."""
    optimizer = slow_optimizer(model, loop.guide, slow)
    for step in range(slow.steps):
        train_step(model, [batch(step)], loop, optimizer, clip=1.0, seed=step)


@functools.cache
def trained(folder, noise: str) -> LatentThoughtModel:
    """A decoder trained on fresh noise, or as the reference trains it."""
    data = TokenDataset(folder)
    shape, slow = dataclasses.replace(SHAPE, vocab_size=data.vocab_size), SlowConfig(steps=100, lr=1e-2)
    fresh = Config(model=shape, objective=Component(name="analytic-elbo"), fast=FastConfig(steps=8), slow=slow)
    model, loop = build(reference_config(shape, slow, steps=8) if noise == "fixed" else fresh)
    train(model, loop, slow, lambda step: data.batch(torch.arange(step * 16, step * 16 + 16) % len(data)))
    return model


PAIRS = [
    (guide, objective)
    for guide, family in FAMILIES.items()
    for objective, kind in OBJECTIVES.items()
    if guide != "delta" and not kind().refusal(family)  # a point, which no bound judges
]
SLOW = {"hmc", *(name for name, family in FAMILIES.items() if "amortized" in family.learning)}
"""What a short test has no time for: chains that run one after the other, and encoders, which have to learn first."""
LATE = SLOW | {"langevin", "mala"}
"""Families that need more fast steps than a short test takes before their KL exceeds what they lack to the floor."""
BEST = {guide: objective for best in ("map", "analytic-elbo", "stl") for guide, objective in PAIRS if objective == best}
"""The objective under which each family comes nearest to the floor."""
QUICK = {"steps": 8, "optimizer": Adam(lr=0.7), "particles": 8}
CONVERGED = {"steps": 100, "optimizer": Adam(lr=0.1), "particles": 64}


@functools.cache
def program(folder, count: int):
    """The model whose evidence is the floor, the first `count` documents, and their floor."""
    data = TokenDataset(folder, "validation")
    model = world_program(data)
    return model, model.precompute(data.batch(range(count))), evaluate_floor(data, sequences=count, window=1)


def evaluate(model, batches, guide: str, objective: str, **options) -> Bound:
    """The bound of a pair; an encoder learns first, from the very sequences that are scored."""
    config = model.config
    small = {"width": 16, "encoder_layers": 1, "heads": 2} if "amortized" in FAMILIES[guide].learning else {}
    family = build_guide(Component(name=guide, options=small), config, seed=0).to(model.prior.loc.dtype)
    # Half-way through training, where the annealed ones are not the ELBO.
    fitted = OBJECTIVES.build(Component(name=objective), layers=config.layers).at(0.5)
    if "amortized" in family.learning:
        slow = torch.optim.Adam(family.parameters(), lr=1e-2)
        learning = FastLoop(family, fitted, steps=0)
        for step in range(options["steps"]):
            train_step(model, batches, learning, slow, clip=0.0, seed=step)
    options |= {"guide": family, "objective": fitted}
    return evaluate_bound(model, batches, take_loop(options), seed=1, **options)


def fits_on_fixed_noise(guide: str) -> bool:
    """Whether its KL has a closed form, without which a fit on one draw is refused, and fast steps fit it."""
    family = FAMILIES[guide]
    return family.has_density and family.has_analytic_kl and family.learning != "amortized"


def figures(found: Bound) -> dict[str, Figure]:
    """What must not lie below the floor."""
    nats = {"ELBO": found.sequence_nats, "IWAE": found.sequence_iwae_nats}
    return {name: Figure.of(one, found.sequence_tokens) for name, one in nats.items()}


def check_pair(world, guide: str, objective: str, count: int, fit) -> None:
    torch.set_default_dtype(torch.float64)
    model, batch, floor = program(world.path, count)
    for name, figure in figures(evaluate(model, [batch], guide, objective, **fit)).items():
        check_floor(f"{guide}, {objective}, {name}", figure, floor)


def check_mutant(world, guide: str, objective: str, fit, **options) -> None:
    """Both figures are found to lie below the floor."""
    torch.set_default_dtype(torch.float64)
    model, batch, floor = program(world.path, HELD_OUT)
    for name, figure in figures(evaluate(model, [batch], guide, objective, **fit | options)).items():
        with pytest.raises(UserError, match=r"below the text's own entropy.*no bound can"):
            check_floor(f"{guide}, {objective}, {name}", figure, floor)


def test_the_evidence_of_the_program_is_the_floor(world):
    """Exactly: a draw and its rotations are equally likely, and over all C of them each combination weighs 1 / C."""
    torch.set_default_dtype(torch.float64)
    model, batch, floor = program(world.path, HELD_OUT)
    numbers = model.prior().sample((batch.size,)).flatten(1)
    rotations = [numbers.roll(places, 1).view(batch.size, *model.prior.loc.shape) for places in range(numbers.shape[1])]
    log_likelihood, log_prior = LogJoint(model, batch).parts(torch.stack(rotations))
    torch.testing.assert_close(log_prior, log_prior[:1].expand_as(log_prior), rtol=1e-12, atol=0)
    evidence = log_likelihood.logsumexp(0) - math.log(len(rotations))
    torch.testing.assert_close(-evidence, floor.sequence_nats, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("guide", "objective"), covered(pair for pair in PAIRS if pair[0] not in SLOW))
def test_no_bound_lies_below_the_floor(world, guide, objective):
    check_pair(world, guide, objective, 64, QUICK)


@pytest.mark.long
@pytest.mark.parametrize(("guide", "objective"), PAIRS)
def test_no_converged_bound_lies_below_the_floor(world, guide, objective):
    """The better the fit, the less room there is for an error."""
    check_pair(world, guide, objective, HELD_OUT, CONVERGED)


def parameters(names, long: set[str]) -> list:
    """`names`, those in `long` of long tests."""
    return [pytest.param(name, marks=pytest.mark.long if name in long else ()) for name in names]


@pytest.mark.parametrize("guide", parameters(BEST, LATE))
def test_without_the_kl_no_figure_is_a_bound(world, monkeypatch, guide):
    """Left out of rate and weights, which the fit does not read: it is honest."""
    monkeypatch.setattr(Terms, "rate", property(lambda terms: torch.zeros_like(terms.distortion)))
    monkeypatch.setattr(Terms, "log_weight", property(lambda terms: terms.log_likelihood))
    check_mutant(world, guide, BEST[guide], CONVERGED if guide in LATE else QUICK)


@pytest.mark.parametrize("guide", parameters(filter(fits_on_fixed_noise, BEST), SLOW))
def test_on_the_noise_of_the_fit_no_figure_is_a_bound(world, monkeypatch, guide):
    """As the reference scores: one draw for all fast steps, and the same draw for the score."""
    monkeypatch.setattr(Posterior, "with_noise", lambda posterior, seed: posterior)
    check_mutant(world, guide, "analytic-elbo", QUICK, noise="fixed", particles=1)


@pytest.mark.long
@pytest.mark.xdist_group("protocols")  # one process trains the two decoders for all
@pytest.mark.parametrize(("guide", "objective"), [*dict(reversed(PAIRS)).items()])
def test_no_bound_of_a_trained_decoder_lies_below_the_floor(world, guide, objective):
    """Each family under a Transformer, trained honestly or as the reference trains."""
    data, count = TokenDataset(world, "validation"), 48
    batches, floor = [data.batch(range(count))], evaluate_floor(data, sequences=count, window=1)
    for noise in ("fresh", "fixed"):
        found = evaluate(trained(world.path, noise), batches, guide, objective, steps=6, particles=8)
        for name, figure in figures(found).items():
            check_floor(f"{guide}, {objective}, {name}", figure, floor)


def test_the_reference_falls_below_the_floor(tmp_path):
    """By many standard errors, on a world, by a decoder trained its way; its honest figures stay above."""
    count, source = 64, "worlds:size=2,length=2,documents=1300"
    others = f"worlds:size=2,length=2,documents={count},seed=1"
    folder = prepare([source], tmp_path / "data", validation_sources=[others], sequence_length=24)
    data, validation = TokenDataset(folder), TokenDataset(folder, "validation")
    shape = dataclasses.replace(SHAPE, vocab_size=data.vocab_size, dim=32, thoughts=4, max_length=24, window=8)
    slow = SlowConfig(steps=80, lr=1e-2, warmup=20)
    model, loop = build(reference_config(shape, slow, steps=16))
    train(model, loop, slow, lambda step: data.batch(torch.arange(step * 16, step * 16 + 16)))
    held_out = list(dataset_batches(validation, count, "cpu"))
    floor = evaluate_floor(validation, window=shape.receptive_field)
    found = evaluate_reference(model, held_out, fast_steps=64)
    below = difference(floor.sequence_nats, found.sequence_nats, floor.sequence_tokens, floor.places)
    assert below.nats_per_token > 5 * below.stderr
    with pytest.raises(UserError, match=r"below the text's own entropy.*no bound can"):
        check_floor("reference", found, floor)
    assert not found.is_bound
    assert "NOT a bound" in found.label
    loop = dataclasses.replace(loop, noise="fresh", steps=64)
    honest = evaluate_bound(model, held_out, loop, particles=8, seed=1)
    assert check_floor("bound", honest, floor).nats_per_token > 0.1, "the noise that q had learnt is not there"
    predictive = evaluate_prefix(model, held_out, loop, particles=8, stride=12, prefixes=[12])
    assert check_floor("prefix", predictive, floor).nats_per_token > 0


def test_the_references_perplexity_is_a_mean_over_sequences(world):
    data = TokenDataset(world, "validation")
    model, _ = build(Config(model=dataclasses.replace(SHAPE, vocab_size=data.vocab_size)))
    found = evaluate_reference(model, dataset_batches(data, 5, "cpu", limit=10), fast_steps=4)
    each = (found.sequence_nats / found.sequence_tokens).exp()
    assert found.published_perplexity != pytest.approx(found.perplexity)
    assert found.published_perplexity == pytest.approx(each.mean().item())
    assert found.perplexity == pytest.approx(float((found.sequence_nats.sum() / found.sequence_tokens.sum()).exp()))
    whole = evaluate_reference(model, dataset_batches(data, 10, "cpu", limit=10), fast_steps=4)
    assert torch.allclose(whole.sequence_nats, found.sequence_nats, atol=1e-2)


def test_the_floor_is_the_worlds_own(world):
    data = TokenDataset(world, "validation")
    floor = evaluate_floor(data, window=SHAPE.receptive_field)
    stories = World(size=2, length=6).stories(seed=1, count=HELD_OUT)
    exact = [-World(size=2, length=6).log_prob(story.text) for story in stories]
    assert floor.sequence_nats.tolist() == pytest.approx(exact)
    assert floor.windowed.nats_per_token > floor.nats_per_token
    assert floor.combinations == 32
    assert evaluate_floor(data, sequences=3, window=4).tokens == int(floor.sequence_tokens[:3].sum())


def test_the_floor_of_what_comes_after_a_beginning(world):
    """By the chain rule: of all tokens, less that of the first m; nothing is left after the last."""
    data, its = TokenDataset(world, "validation"), World(size=2, length=6)
    given = [1, 9, 20, data.sequence_length]
    floor = evaluate_floor(data, window=4, prefixes=given)
    assert [after.prefix for after in floor.by_prefix] == given
    assert floor.by_prefix[-1].tokens == 0
    assert torch.allclose(floor.by_prefix[-1].sequence_nats, torch.zeros(HELD_OUT, dtype=torch.float64), atol=1e-9)
    for after in floor.by_prefix[:3]:
        text = next(its.stories(seed=1, count=1)).text
        start = " ".join(text.replace(".", " .").split()[: after.prefix]).replace(" .", ".")
        expected = its.log_prob_of_start(start) - its.log_prob(text)
        assert after.sequence_nats[0].item() == pytest.approx(expected)
    batch = data.batch(range(HELD_OUT))
    assert floor.by_prefix[1].tokens == int(batch.mask[:, 9:].sum())


def test_distances_of_what_comes_after_a_beginning_are_from_its_own_floor():
    def figure(kind, nats, tokens, **more):
        return kind.of(torch.tensor(nats), torch.tensor(tokens), **more)

    def prefix(whole, after):
        how = {"stride": 2, "particles": 1, "fast_steps": 1, "seed": 0, "sequences": 2}
        its = [figure(AfterPrefix, after, [4, 4], prefix=2), figure(AfterPrefix, after, [2, 2], prefix=4)]
        return figure(Prefix, whole, [6, 6], **how, by_prefix=its)

    least = figure(Figure, [3.0, 5.0], [6, 6])
    rest = [figure(AfterPrefix, [2.0, 2.0], [4, 4], prefix=2)]  # none is known after 4
    floor = figure(Floor, [3.0, 5.0], [6, 6], windowed=least, window=1, combinations=4, by_prefix=rest)
    found = {"floor": floor, "twin": figure(Figure, [9.0, 9.0], [6, 6])}
    found |= {"prefix": prefix([5.0, 6.0], [3.0, 4.0]), "twin_prefix": prefix([9.0, 9.0], [6.0, 7.0])}
    told = distances(found)
    assert set(told["above_floor"]) == {"prefix", "after 2 tokens", "twin"}
    assert told["above_floor"]["after 2 tokens"].nats_per_token == pytest.approx((1 + 2) / 8)
    assert told["below_twin"]["after 4 tokens"].nats_per_token == pytest.approx((3 + 3) / 4)
    assert told["closed"]["after 2 tokens"].share == pytest.approx(6 / 9)
    assert told["closed"]["prefix"].share == pytest.approx(7 / 10)
    # The ratio of sums by the jackknife, leaving out one of two sequences.
    assert told["closed"]["prefix"].stderr == pytest.approx(abs(4 / 6 - 3 / 4) / 2, rel=0.05)


def test_a_twin_at_the_floor_leaves_no_way_to_close():
    def figure(nats):
        return Figure.of(torch.tensor(nats), torch.tensor([6, 6]))

    floor = Floor.of(
        torch.tensor([3.0, 5.0]),
        torch.tensor([6, 6]),
        windowed=figure([3.0, 5.0]),
        window=1,
        combinations=4,
        by_prefix=[],
    )
    for its, closed in (([3.0, 5.0], False), ([3.0, 5.1], False), ([4.0, 6.1], True)):
        found = distances({"floor": floor, "twin": figure(its), "annealed": {"q": figure([3.5, 5.5])}})
        assert ("AIS from q" in found["closed"]) == closed


def test_what_one_document_says_has_no_error():
    """Of three documents one has tokens left: nothing is known of how another would have come out."""
    alone = Figure.of(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0, 4]))
    assert math.isnan(alone.nats_per_token_stderr)
    least = Figure.of(torch.tensor([0.0, 0.0, 1.2]), torch.tensor([0, 0, 4]))
    assert check_floor("by chance", alone, least).nats_per_token == pytest.approx(-0.05)
    two = Figure.of(torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0, 4, 4]))
    level, without = 3 / 8, (3 / 8, 1 / 4, 2 / 4)  # the level of the other two documents: the jackknife
    assert two.nats_per_token_stderr == pytest.approx(math.sqrt(2 / 3 * sum((one - level) ** 2 for one in without)))


def test_where_words_are_not_tokens_no_floor_of_what_comes_after_is_known(tmp_path):
    """A letter may begin several words, and which of them would have to be summed out."""
    Tokenizer.train(["ab"], vocab_size=257).save(tmp_path / "letters.json")
    source = "worlds:size=2,length=2,documents=20"
    letters = tmp_path / "letters.json"
    folder = prepare([source], tmp_path / "data", tokenizer=letters, sequence_length=256)
    floor = evaluate_floor(TokenDataset(folder), window=4, prefixes=[5, 6])
    assert floor.by_prefix == []
    assert floor.nats_per_token > 0


def test_where_there_is_no_floor(world, tmp_path):
    (tmp_path / "text.txt").write_text("One line of text.\n" * 60)
    text = prepare([str(tmp_path / "text.txt")], tmp_path / "text", vocab_size=257, sequence_length=16)
    packed = prepare(["worlds:documents=30"], tmp_path / "packed", packing="contiguous", sequence_length=64)
    cut = prepare(["worlds:documents=30"], tmp_path / "cut", sequence_length=64)
    for folder, says in ((text, "not from one world"), (packed, "--packing document"), (cut, "longer than a sequence")):
        assert says in why_no_floor(TokenDataset(folder))
        with pytest.raises(UserError, match=says):
            evaluate_floor(TokenDataset(folder), window=4)
    assert why_no_floor(TokenDataset(world)) == ""
