"""KL divergences by the pair that they are of: in closed form where there is one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence


def analytic_kl(q: Distribution, prior: Distribution) -> Tensor | None:
    """KL(q || prior) in nats, [...] of q's batch shape; None where no closed form is known of such a pair.

    Shapes:
        q: batch shape [...], event shape [N, D]. prior: the same event, and a batch shape that expands to q's.
    """
    try:
        return kl_divergence(q, prior.expand(q.batch_shape))
    except NotImplementedError:
        return None


def kind(distribution: Any) -> str:
    """The name of its class; of independent ones, that of each."""
    return type(distribution.base_dist if isinstance(distribution, Independent) else distribution).__name__


def normal_of(prior: Any) -> tuple[Tensor, Tensor] | None:
    """Location and scale [..., N, D] of a prior of independent Normals; None of any other."""
    if not isinstance(prior, Independent) or not isinstance(prior.base_dist, Normal) or len(prior.event_shape) != 2:
        return None
    return prior.base_dist.loc, prior.base_dist.scale
