"""What can be read off thoughts, against what is known of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import D, N

from pyro_ltm.errors import UserError
from pyro_ltm.thoughts.probes import between, far_apart, linear_probe, logistic_weights, nearest, principal_components
from pyro_ltm.thoughts.steering import find_direction


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def test_probes_read_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, N, D, generator=generator)
    told = ["high" if value > 0 else "low" for value in features[:, 1, 3].tolist()]
    known = linear_probe(features, told, name="sign", decay=10.0)
    assert known.accuracy > 0.8
    assert abs(known.control - 0.5) < 4 * 0.5 / 200**0.5
    noise = [str(value) for value in torch.randint(3, (200,), generator=generator).tolist()]
    unknown = linear_probe(features, noise, name="noise")
    assert abs(unknown.accuracy - 1 / 3) < 4 * (2 / 9 / 200) ** 0.5 + 0.05
    assert (unknown.classes, unknown.texts) == (3, 200)
    with pytest.raises(UserError, match="at least 10 and 2"):
        linear_probe(features[:5], told[:5], name="few")


def test_windows_of_a_document_stay_in_one_fold():
    """Labels by lot, and windows that tell their document: who has seen one of a document knows the others' label."""
    generator = torch.Generator().manual_seed(0)
    documents = torch.arange(40).repeat_interleave(6)
    features = torch.randn(40, 30, generator=generator)[documents] + 0.1 * torch.randn(240, 30, generator=generator)
    labels = [str(label) for label in torch.randint(2, (40,), generator=generator)[documents].tolist()]
    assert linear_probe(features, labels, name="lot").accuracy > 0.9, "the trap"
    apart = linear_probe(features, labels, name="lot", documents=documents)
    assert abs(apart.accuracy - 0.5) < 4 * apart.stderr
    assert apart.stderr == pytest.approx(0.5 / 40**0.5, rel=0.4), "over documents, of which there are 40"
    assert apart.texts == 40
    assert find_direction(features, labels, "1", documents=documents).is_a_guess
    single = linear_probe(features, labels, name="lot", documents=torch.arange(240))
    assert single == linear_probe(features, labels, name="lot")
    with pytest.raises(UserError, match="9 texts"):
        linear_probe(features[:54], labels[:54], name="few", documents=documents[:54])


def test_noise_of_small_variance_is_left_small():
    """As in singular vectors: the first tell the label, many small ones nothing; raised, they drown it."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (60,), generator=generator)
    told = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=generator)
    features = torch.cat([told, 0.05 * torch.randn(60, 150, generator=generator)], 1)
    probe = linear_probe(features, [str(label) for label in labels.tolist()], name="kind")
    assert probe.accuracy > 0.95
    # In other units the same features need widths of their own.
    units = features * torch.cat([torch.full((3,), 1e-3), torch.ones(150)])
    apart = linear_probe(units[:, :4], [str(label) for label in labels.tolist()], name="kind")
    assert apart.accuracy > 0.95


@pytest.mark.parametrize(("spread", "decay"), [(1.0, 1.0), (0.01, 1.0), (30.0, 10.0), (1.0, 1e-3)])
def test_at_the_weights_that_are_found_nothing_falls_any_more(spread, decay):
    """By autograd, with classes apart and ones that overlap."""
    generator = torch.Generator().manual_seed(2)
    x = spread * torch.randn(50, 8, generator=generator, dtype=torch.float64)
    y = (x[:, 0] / spread + torch.randn(50, generator=generator)).clamp(-1, 1).round().long() + 1
    weight = logistic_weights(x, y, 3, decay).requires_grad_()
    nats = F.cross_entropy(x @ weight[:-1] + weight[-1], y, reduction="sum") + decay / 2 * weight[:-1].square().sum()
    (slope,) = torch.autograd.grad(nats, weight)
    assert slope.abs().max() < 1e-7


@pytest.mark.parametrize("noise", [0, 60])
def test_a_probe_agrees_with_another_library(noise):
    """On the same folds, with fewer features than texts and with more; the widths chosen on the seen folds alone."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 1, 3 + noise, generator=generator)
    x[:, :, 3:] *= 0.1
    noisy = x[:, 0, 0] + 0.3 * torch.randn(60, generator=generator)
    labels = ["low" if value < -0.4 else "high" if value > 0.4 else "middle" for value in noisy.tolist()]
    probe = linear_probe(x, labels, name="level", seed=5, decay=2.0)
    folds = [part.tolist() for part in torch.randperm(60, generator=torch.Generator().manual_seed(5)).tensor_split(5)]

    def fitted(seen, held_out, common):
        mean, width = x[seen, 0].mean(0), x[seen, 0].std(0)
        width = width.square().mean().sqrt() if common else width
        classifier = linear_model.LogisticRegression(C=1 / 2.0, max_iter=10_000, tol=1e-10)
        classifier.fit(((x[seen, 0] - mean) / width).numpy(), [labels[row] for row in seen])
        rows = ((x[held_out, 0] - mean) / width).numpy()
        chances = [dict(zip(classifier.classes_, row, strict=True)) for row in classifier.predict_log_proba(rows)]
        return -sum(chance[labels[row]] for chance, row in zip(chances, held_out, strict=True)), classifier.predict(
            rows
        )

    right = 0
    for held_out in folds:
        others = [fold for fold in folds if fold is not held_out]
        nats = {
            common: sum(
                fitted([row for fold in others if fold is not judged for row in fold], judged, common)[0]
                for judged in others
            )
            for common in (False, True)
        }
        told = fitted([row for fold in others for row in fold], held_out, nats[True] < nats[False])[1]
        right += sum(one == labels[row] for one, row in zip(told, held_out, strict=True))
    assert probe.accuracy == pytest.approx(right / 60)
    assert 0.5 < probe.accuracy < 1


def test_principal_components():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 4, 1, 0.1, 0.1, 0.1])
    points, shares = principal_components(x)
    assert points.shape == (50, 2)
    covariance = torch.cov(x.T)
    assert shares.tolist() == pytest.approx(
        (torch.linalg.eigvalsh(covariance).flip(0)[:2] / covariance.trace()).tolist()
    )
    assert (points.T @ points)[0, 1].item() == pytest.approx(0, abs=1e-8)


def test_the_way_between_two():
    a, b = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0))
    for spherical in (True, False):
        way = between(a, b, 5, spherical=spherical)
        assert torch.allclose(way[0], a)
        assert torch.allclose(way[-1], b)
    lengths = between(a, b, 5).flatten(1).norm(dim=1)
    assert lengths.min() > 0.9 * min(a.norm(), b.norm()), "on the sphere the middle is no shorter"
    assert between(a, b, 5, spherical=False)[2].norm() < 0.9 * a.norm()
    assert torch.allclose(between(a, a, 3), a.expand(3, N, D))
    assert nearest(b, torch.stack([a, b, a + 5]), 2) == [1, 0]
    row = torch.tensor([0.0, 1, 9, 5, 2])[:, None, None]
    assert far_apart(row, 3) == [0, 2, 3]
    assert far_apart(row[:2], 3) == [0, 1]
    assert far_apart(torch.zeros(3, 1, 1), 3) == [0, 1, 2]
