"""What the protocols prove on a source whose entropy is known: the reference falls below it, a bound never does."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch

from pyro_ltm.config import Component, Config, FastConfig, ModelConfig, SlowConfig
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.errors import UserError
from pyro_ltm.evaluation import (
    Figure,
    check_floor,
    difference,
    evaluate_bound,
    evaluate_floor,
    evaluate_prefix,
    evaluate_reference,
)
from pyro_ltm.evaluation.floor import why_no_floor
from pyro_ltm.inference import FAMILIES, Parts, refusal
from pyro_ltm.inference.parts import build_guide
from pyro_ltm.objectives import OBJECTIVES
from pyro_ltm.training import train_step
from pyro_ltm.training.run import dataset_batches
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

T, HELD_OUT = 64, 48
SHAPE = ModelConfig(dim=16, layers=1, heads=2, thoughts=2, max_length=T, window=4, init_std=0.1, embedding_scale=4.0)
REFERENCE = {"init_log_variance": -5.0, "init_noise": 0.1, "init_loc": 0.01}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Documents of a small world, training and validation by two seeds."""
    folder = tmp_path_factory.mktemp("world") / "data"
    train, held_out = "worlds:size=2,length=6,documents=640", f"worlds:size=2,length=6,documents={HELD_OUT},seed=1"
    return prepare([train], folder, validation_sources=[held_out], sequence_length=T)


def reference_config(shape: ModelConfig, slow: SlowConfig, *, steps: int) -> Config:
    """The reference implementation's fast loop, on one noise."""
    return Config(
        model=shape,
        guide=Component(name="mean-field", options=REFERENCE),
        objective=Component(name="analytic-elbo"),
        optimizer=Component(name="adam", options={"lr": 0.3, "beta1": 0.9, "eps": 1e-8}),
        fast=FastConfig(steps=steps, noise="fixed"),
        slow=slow,
    )


def train(parts: Parts, slow: SlowConfig, batch: Callable[[int], Batch]) -> None:
    """Slow steps of `parts` on `batch(step)`."""
    optimizer = slow_optimizer(parts, slow)
    for step in range(slow.steps):
        train_step(
            parts.model,
            [batch(step)],
            guide=parts.guide,
            objective=parts.objective,
            fast_optimizer=parts.optimizer,
            fast_steps=parts.fast.steps,
            noise=parts.fast.noise,
            slow_optimizer=optimizer,
            clip=1.0,
            seed=step,
        )


@functools.cache
def trained(folder, noise: str) -> Parts:
    """A decoder trained on fresh noise, or as the reference trains it."""
    data = TokenDataset(folder)
    shape, slow = dataclasses.replace(SHAPE, vocab_size=data.vocab_size), SlowConfig(steps=100, lr=1e-2)
    fresh = Config(model=shape, objective=Component(name="analytic-elbo"), fast=FastConfig(steps=8), slow=slow)
    parts = Parts.build(reference_config(shape, slow, steps=8) if noise == "fixed" else fresh)
    train(parts, slow, lambda step: data.batch(torch.arange(step * 16, step * 16 + 16) % len(data)))
    return parts


def held_out(folder) -> tuple[TokenDataset, object]:
    data = TokenDataset(folder, "validation")
    return data, evaluate_floor(data, window=SHAPE.receptive_field)


def pairs() -> list[tuple[str, str]]:
    """Every guide and objective that fit one another and that a bound can judge."""
    found = []
    for guide, family in FAMILIES.items():
        for objective, kind in OBJECTIVES.items():
            if not refusal(family, kind()) and guide != "delta":
                found.append((guide, objective))
    return found


SLOW = {"hmc", "laplace", "full-rank", "flow"}
SHORT = [pair for index, pair in enumerate(pairs()) if index % 6 == 0 and pair[0] not in SLOW]


def bound(parts: Parts, data: TokenDataset, guide: str, objective: str, count: int):
    config = parts.model.config
    family = build_guide(Component(name=guide), config, seed=0)
    return evaluate_bound(
        parts.model,
        dataset_batches(data, count, "cpu", limit=count),
        guide=family,
        objective=OBJECTIVES.build(Component(name=objective), layers=config.layers).at(1.0),
        fast_steps=6,
        particles=8,
        seed=1,
    )


def check_pair(world, guide: str, objective: str, count: int) -> None:
    data, _ = held_out(world.path)
    floor = evaluate_floor(data, sequences=count, window=SHAPE.receptive_field)
    for noise in ("fresh", "fixed"):
        found = bound(trained(world.path, noise), data, guide, objective, count)
        for nats in (found.sequence_nats, found.sequence_iwae_nats):
            above = check_floor(f"{guide}, {objective}", Figure.of(nats, found.sequence_tokens), floor)
            assert above.nats_per_token > -3 * above.stderr


@pytest.mark.xdist_group("protocols")  # one process trains the two decoders for all
@pytest.mark.parametrize(("guide", "objective"), SHORT)
def test_no_bound_lies_below_the_floor(world, guide, objective):
    """One pair in seven, under a decoder trained honestly and one trained as the reference trains."""
    check_pair(world, guide, objective, 16)


@pytest.mark.long
@pytest.mark.parametrize(("guide", "objective"), pairs())
def test_no_bound_of_any_pair_lies_below_the_floor(world, guide, objective):
    check_pair(world, guide, objective, HELD_OUT)


def test_the_reference_falls_below_the_floor(tmp_path):
    """By many standard errors, on a world, by a decoder trained its way; its honest figures stay above."""
    count, source = 128, "worlds:size=2,length=2,documents=1300"
    others = f"worlds:size=2,length=2,documents={count},seed=1"
    folder = prepare([source], tmp_path / "data", validation_sources=[others], sequence_length=24)
    data, validation = TokenDataset(folder), TokenDataset(folder, "validation")
    shape = dataclasses.replace(SHAPE, vocab_size=data.vocab_size, dim=32, thoughts=4, max_length=24, window=8)
    slow = SlowConfig(steps=80, lr=1e-2, warmup=20)
    parts = Parts.build(reference_config(shape, slow, steps=16))
    train(parts, slow, lambda step: data.batch(torch.arange(step * 16, step * 16 + 16)))
    held_out = list(dataset_batches(validation, count, "cpu"))
    floor = evaluate_floor(validation, window=shape.receptive_field)
    found = evaluate_reference(parts.model, held_out, fast_steps=64)
    below = difference(floor.sequence_nats, found.sequence_nats, floor.sequence_tokens)
    assert below.nats_per_token > 5 * below.stderr
    with pytest.raises(UserError, match=r"below the text's own entropy.*no bound can"):
        check_floor("reference", found, floor)
    assert not found.is_bound
    assert "NOT a bound" in found.label
    fitting = {"guide": parts.guide, "objective": parts.objective, "optimizer": parts.optimizer, "fast_steps": 64}
    honest = evaluate_bound(parts.model, held_out, **fitting, particles=8, seed=1)
    assert check_floor("bound", honest, floor).nats_per_token > 0.1, "the noise that q had learnt is not there"
    predictive = evaluate_prefix(parts.model, held_out, **fitting, particles=8, stride=12, prefixes=[12])
    assert check_floor("prefix", predictive, floor).nats_per_token > 0


def test_the_references_perplexity_is_a_mean_over_sequences(world):
    parts = trained(world.path, "fresh")
    data, _ = held_out(world.path)
    found = evaluate_reference(parts.model, dataset_batches(data, 5, "cpu", limit=10), fast_steps=4)
    each = (found.sequence_nats / found.sequence_tokens).exp()
    assert found.published_perplexity == pytest.approx(each.mean().item())
    assert found.perplexity == pytest.approx(float((found.sequence_nats.sum() / found.sequence_tokens.sum()).exp()))
    whole = evaluate_reference(parts.model, dataset_batches(data, 10, "cpu", limit=10), fast_steps=4)
    assert torch.allclose(whole.sequence_nats, found.sequence_nats, atol=1e-2)


def test_the_floor_is_the_worlds_own(world):
    data, floor = held_out(world.path)
    from pyro_ltm.data import World

    stories = World(size=2, length=6).stories(seed=1, count=HELD_OUT)
    exact = [-World(size=2, length=6).log_prob(story.text) for story in stories]
    assert floor.sequence_nats.tolist() == pytest.approx(exact)
    assert floor.windowed.nats_per_token > floor.nats_per_token
    assert floor.combinations == 32
    assert evaluate_floor(data, sequences=3, window=4).tokens == int(floor.sequence_tokens[:3].sum())


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
