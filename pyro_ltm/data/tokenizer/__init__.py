"""Text to token ids: the tokenizer, where texts may be cut for it, and the files of strangers read with care."""

from pyro_ltm.data.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

__all__ = ["END_OF_TEXT", "Tokenizer"]
