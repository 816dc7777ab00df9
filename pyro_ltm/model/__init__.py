"""The model: decoder, token likelihood, and the Pyro program that joins them."""

from pyro_ltm.model.decoder import Decoder
from pyro_ltm.model.likelihood import TokenSequence
from pyro_ltm.model.program import LatentThoughtModel
from pyro_ltm.model.sampling import DecodingOptions, sample_tokens

__all__ = ["Decoder", "DecodingOptions", "LatentThoughtModel", "TokenSequence", "sample_tokens"]
