"""Small tokenizers of the kinds that are in use, trained on a few lines."""

from __future__ import annotations

import functools
import json
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from pyro_ltm.data import Tokenizer
from pyro_ltm.data.tokenizer.cutting import PATTERNS

TEXT = ["Hello World, this is some text\nand more of it, indeed; 12 words make a world. Naïve? It's 7 o'clock"] * 30
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
END = "</s>"


def llama(prepend: bool = True) -> tokenizers.Tokenizer:
    """Llama 2's kind: BPE over the whole text, a space put before it, bytes for what it does not know."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", END, *BYTES]
    _train(backend, trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False))
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special[:3]]
    content["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    content["pre_tokenizer"] = None
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    before = [normalizers.Prepend("▁")] if prepend else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def unigram(scheme: str = "always") -> tokenizers.Tokenizer:
    """SentencePiece's kind."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", END]
    _train(
        backend,
        trainers.UnigramTrainer(vocab_size=70, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return backend


def wordpiece() -> tokenizers.Tokenizer:
    """BERT's kind, which folds case."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]"]
    _train(backend, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False))
    return backend


def words() -> tokenizers.Tokenizer:
    """One token for each of its words, and one for all others."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", END]
    _train(backend, trainers.WordLevelTrainer(vocab_size=18, special_tokens=special, show_progress=False))
    return backend


def byte_level(*before: Any, prefix: bool = False, normalizer: Any = None, regex: bool = True) -> tokenizers.Tokenizer:
    """GPT-2's kind, or one with steps `before`."""
    backend = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, level]) if before else level
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _train(backend, trainer)
    return backend


def split(pattern: str, behavior: str = "isolated") -> Any:
    """A step that splits by a regular expression."""
    return pre_tokenizers.Split(Regex(pattern), behavior)


def patterned(pattern: str) -> tokenizers.Tokenizer:
    """Byte-level BPE whose words an expression finds, with all that may stand before it."""
    return byte_level(split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(pattern), regex=False)


@functools.cache
def kinds() -> dict[str, Tokenizer]:
    """One of each."""
    odd = split(r"\S+ \S+|\s+|\S+")
    backends = {
        "llama": llama(),
        "gemma": llama(prepend=False),
        "unigram": unigram(),
        "unigram, first": unigram("first"),
        "wordpiece": wordpiece(),
        "words": words(),
        "bytes": byte_level(),
        "bytes with a space before": byte_level(prefix=True),
        "bytes, case folded": byte_level(normalizer=normalizers.Lowercase()),
        "bytes, NFKC": byte_level(normalizer=normalizers.NFKC()),
        "bytes, NFC": byte_level(normalizer=normalizers.NFC()),
        "bytes, two words at once": byte_level(odd, regex=False),
        "bytes in one word": byte_level(regex=False),
    }
    backends |= {f"expression {n}": patterned(pattern) for n, pattern in enumerate(sorted(PATTERNS))}
    return {name: Tokenizer(backend) for name, backend in backends.items()}


def _train(backend: tokenizers.Tokenizer, trainer: Any) -> None:
    backend.train_from_iterator(TEXT, trainer)
