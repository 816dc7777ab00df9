"""Priors over the thoughts of a sequence: one file each, one line each in the registry."""

from pyro_ltm.priors.base import Prior, reads_prompt
from pyro_ltm.priors.conditional import Conditional
from pyro_ltm.priors.diffusion import Diffusion
from pyro_ltm.priors.flow import Flow
from pyro_ltm.priors.gaussian import Gaussian
from pyro_ltm.priors.layered import Layered
from pyro_ltm.priors.mixture import Mixture
from pyro_ltm.priors.transport import Transport
from pyro_ltm.priors.vamp import Vamp
from pyro_ltm.registry import Registry

PRIORS: Registry[Prior] = Registry(
    "prior",
    {
        "gaussian": Gaussian,
        "layered": Layered,
        "mixture": Mixture,
        "vamp": Vamp,
        "flow": Flow,
        "transport": Transport,
        "diffusion": Diffusion,
        "conditional": Conditional,
    },
    base=Prior,
)

__all__ = [
    "PRIORS",
    "Conditional",
    "Diffusion",
    "Flow",
    "Gaussian",
    "Layered",
    "Mixture",
    "Prior",
    "Transport",
    "Vamp",
    "reads_prompt",
]
