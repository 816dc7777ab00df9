"""What objectives estimate, in closed form, where all is Gaussian; written with no part of the library."""

from __future__ import annotations

import torch
from torch import Tensor


def log_power_integral(p, q, power: float) -> Tensor:
    """[B] log of the integral of p^power q^(1 - power) for Normals with mean and standard deviation [B, N, D]."""
    first, second = power / p.variance, (1 - power) / q.variance
    precision = first + second
    assert (precision > 0).all(), "the integral diverges"
    middle = first * p.mean + second * q.mean
    exponent = middle.square() / precision - first * p.mean.square() - second * q.mean.square()
    scales = -power * p.stddev.log() - (1 - power) * q.stddev.log() - precision.log() / 2
    return (scales + exponent / 2).flatten(1).sum(-1)


def log_weight(model, batch, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """[K, B] log p(x, z) - log q(z) of draws z [K, B, N, D] under the LinearGaussian and Normal(loc, scale)."""

    def normal(error, deviation):
        return -(error / deviation).square() / 2 - torch.as_tensor(deviation).log() - LOG_ROOT_TWO_PI

    mean = z.flatten(-2) @ model.loading.T + model.offset
    return (
        normal(batch.targets - mean, model.noise).sum(-1)
        + normal(z, 1.0).sum((-2, -1))
        - normal(z - loc, scale).sum((-2, -1))
    )


LOG_ROOT_TWO_PI = 0.9189385332046727


def slope(model, batch, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """[K, B, N, D] d log w / dz along each draw, q held still."""
    mean = z.flatten(-2) @ model.loading.T + model.offset
    likelihood = (batch.targets - mean) @ model.loading / model.noise**2
    return likelihood.view_as(z) - z + (z - loc) / scale.square()
