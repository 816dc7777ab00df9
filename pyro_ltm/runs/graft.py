"""A run whose decoder is a language model that exists, with cross-attention to thoughts: `pyro-ltm graft`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from pyro_ltm.config import Config, GraftConfig, SlowConfig
from pyro_ltm.data import Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.files import new_folder
from pyro_ltm.inference.build import build
from pyro_ltm.locks import locked
from pyro_ltm.model.grafted import GraftedDecoder
from pyro_ltm.model.grafting import EXTRA, check_exact, digest_of, layers_named, probe_logits, shape_for
from pyro_ltm.model.precision import resolve_dtype
from pyro_ltm.model.pretrained import load_causal_lm
from pyro_ltm.runs.base import take_base, with_base
from pyro_ltm.runs.run import Run

THOUGHTS = 2
"""Thought vectors of each grafted layer, where no number is given."""


@dataclass(frozen=True, kw_only=True)
class Graft:
    """How a base model is grafted.

    Attributes:
        layers: of the base, which read thoughts: `every`, or numbers from 0, such as `0,2,4`.
        thoughts: N over all of them; None: `THOUGHTS` for each; 0: the base alone, as a twin that may learn.
        train, rank, alpha: how much of the base learns, as in `GraftConfig`.
        max_length: longest sequence in tokens; None: the base's context, at most 1024.
        by_reference: the run names the base's folder and its digest, instead of keeping a copy.
    """

    layers: str = "every"
    thoughts: int | None = None
    train: str = "frozen"
    rank: int = 8
    alpha: int = 16
    max_length: int | None = None
    by_reference: bool = False


def graft(
    base: Path,
    out: Path,
    how: Graft | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> Run:
    """Writes a run whose decoder is the causal language model in the folder `base`: untrained, it writes as that does.

    `train(..., init_from=out)` trains it.

    Args:
        how: None: `Graft()`. tokenizer: with another token between documents than that of the folder.

    Raises:
        UserError: `out` exists; transformers or peft is not installed; or the folder holds no causal language model
            with its tokenizer, or one of a kind that cannot be grafted.
    """
    how = how or Graft()
    _check_new(out)
    digest = digest_of(base)
    tokenizer = tokenizer or Tokenizer.load(base)
    config, tokens, logits = _configured(base, digest, how, tokenizer)
    config = dataclasses.replace(config, seed=seed)
    model, loop = build(config)
    assert isinstance(model.decoder, GraftedDecoder)
    check_exact(model.decoder, tokens, logits)
    with locked(out):
        _check_new(out)  # another may have made it meanwhile
        with new_folder(out) as folder:
            if not how.by_reference:
                place = take_base(base, folder, copy=True)
                config = with_base(config, place)
            Run.create(folder, resolve_dtype(dataclasses.replace(config, dtype=dtype), device), model, loop, tokenizer)
    return Run.load(out, device=device)


def _configured(base: Path, digest: str, how: Graft, tokenizer: Tokenizer) -> tuple[Config, torch.Tensor, torch.Tensor]:
    """The configuration of the run, and some tokens with the base's own logits of them. Raises UserError."""
    loaded = load_causal_lm(base, extra=EXTRA)
    layers = layers_named(how.layers, loaded)
    settings = GraftConfig(
        base=str(base.resolve()),
        digest=digest,
        layers=layers,
        train=how.train,
        rank=how.rank,
        alpha=how.alpha,
    )
    count = len(settings.numbers)
    thoughts = THOUGHTS * count if how.thoughts is None else how.thoughts
    if not thoughts and how.train == "frozen":
        raise UserError("--thoughts 0: with a frozen base nothing is left to learn: --train all or lora")
    shape = shape_for(loaded, thoughts=thoughts, layers=count, max_length=how.max_length)
    if tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"{base}: its tokenizer has {tokenizer.vocab_size} tokens, the model {shape.vocab_size}: not its own"
        )
    config = Config(model=shape, graft=settings, slow=SlowConfig(lr=SLOW_LR[how.train], batch_size=8))
    data = dataclasses.replace(config.data, vocab_size=max(shape.vocab_size, 257), sequence_length=shape.max_length)
    return dataclasses.replace(config, data=data), *probe_logits(loaded)


SLOW_LR = {"frozen": 1e-3, "lora": 1e-3, "all": 1e-4}
"""Peak learning rates: new weights begin from nothing, those of a trained model are moved little."""


def _check_new(out: Path) -> None:
    """Raises UserError when there is something at `out` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name a new folder")
