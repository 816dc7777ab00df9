"""The sections of a configuration: frozen dataclasses, a table of TOML each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyro_ltm.config.option import check_ranges, option
from pyro_ltm.errors import UserError

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the decoder and of its thoughts."""

    vocab_size: int = option(0, "tokens in the vocabulary; 0: taken from the tokenizer", low=0, high=1 << 24)
    dim: int = option(512, "width D of the decoder", low=2, high=1 << 16)
    layers: int = option(6, "decoder layers L", low=1, high=1 << 12)
    heads: int = option(8, "attention heads", low=1, high=1 << 16)
    thoughts: int = option(24, "thought vectors N over all layers; 0: the autoregressive twin", low=0, high=1 << 16)
    max_length: int = option(1024, "longest sequence T in tokens", low=2, high=1 << 24)
    window: int = option(256, "tokens that self-attention sees, the current one included", low=1, high=1 << 24)
    hidden: int = option(
        0,
        "width of the feed-forward layer; 0: of swiglu 2/3 * 4D rounded up to a multiple of 32, of relu2 4D",
        low=0,
        high=1 << 16,
    )
    rope_theta: float = option(10000.0, "base of the rotary embedding", low=1.0)
    norm_eps: float = option(1e-5, "epsilon of RMSNorm", low=0.0)
    embedding_scale: float = option(1.0, "factor on the embedded tokens (the reference has 1)", low=0.0)
    init_std: float = option(0.02, "standard deviation of the first weights", low=0.0)
    # What the paper's decoder has not: off, and then its weights and figures are the same to the bit.
    qk_norm: bool = option(False, "RMSNorm on the queries and keys of each head, before the rotation", added=True)
    logit_softcap: float = option(0.0, "logits are c tanh(logits / c) of this c; 0: as they are", low=0.0, added=True)
    value_embeddings: bool = option(
        False, "every second layer, the last one too, mixes embeddings of the tokens into its values", added=True
    )
    feed_forward: str = option(
        "swiglu", "activation of the feed-forward layer", choices=("swiglu", "relu2"), added=True
    )
    tied: bool = option(True, "the head is the embedding's transpose; false: a matrix of its own", added=True)
    zero_init: bool = option(False, "attention and feed-forward layers begin with outputs of zero", added=True)
    zero_cross_attention: bool = option(
        False, "cross-attention begins with outputs of zero: the first weights are those of the twin", added=True
    )
    thought_dim: int = option(0, "width of a thought vector; 0: that of the decoder", low=0, high=1 << 16, added=True)
    thought_stride: int = option(
        0,
        "positions from one thought of a layer to the next; 0: max_length / thoughts, rounded down. With --init-from "
        "that of the other run",
        low=0,
        high=1 << 24,
        added=True,
    )
    dropout: float = option(
        0.0, "share of the embedding and of each layer's outputs that a slow step drops", low=0.0, high=0.95, added=True
    )

    kind: str = option(
        "autoregressive",
        "how tokens are written: one after the other; or masked-diffusion, in any order and without thoughts, by the "
        "decoder without its causal mask",
        choices=("autoregressive", "masked-diffusion"),
        added=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if self.is_diffusion and self.thoughts:
            raise UserError(
                f"model.thoughts = {self.thoughts} with model.kind = {self.kind}: this kind has no thoughts: set 0"
            )
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model.dim = {self.dim} with model.heads = {self.heads}: dim / heads must be a whole, even number"
            )
        if self.thoughts % self.layers:
            raise UserError(
                f"model.thoughts = {self.thoughts} with model.layers = {self.layers}: "
                "thoughts counts over all layers and must be a multiple of layers (or 0)"
            )
        if self.thoughts > self.max_length:
            raise UserError(
                f"model.thoughts = {self.thoughts} exceeds model.max_length = {self.max_length}: "
                "use at most one thought per position"
            )

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward layer."""
        whole = 4 * self.dim if self.feed_forward == "relu2" else -(-(8 * self.dim // 3) // 32) * 32
        return self.hidden or whole

    @property
    def thought_width(self) -> int:
        """Width of a thought vector."""
        return self.thought_dim or self.dim

    @property
    def thoughts_apart(self) -> int:
        """Positions from one thought of a layer to the next."""
        return self.thought_stride or self.max_length // max(self.thoughts, 1)

    @staticmethod
    def implied(changes: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Keys that `changes` of a file or a setting imply, where they do not name them."""
        return {"thoughts": 0} if changes.get("kind") == "masked-diffusion" else {}

    @property
    def is_diffusion(self) -> bool:
        """Whether tokens are written in any order."""
        return self.kind == "masked-diffusion"

    @property
    def is_exact(self) -> bool:
        """Whether the nats of a text are known exactly: of an autoregressive twin."""
        return not self.thoughts and not self.is_diffusion

    @property
    def positions(self) -> int:
        """Tokens that the decoder reads at most: the inputs, and of a masked diffusion the last target as well."""
        return self.max_length + self.is_diffusion

    @property
    def receptive_field(self) -> int:
        """Tokens that a prediction can depend on without thoughts: each layer looks back by its window.

        Of a masked diffusion, which looks both ways, all.
        """
        looked_back = self.layers * (min(self.window, self.max_length) - 1) + 1
        return self.max_length if self.is_diffusion else looked_back

    @property
    def twin(self) -> ModelConfig:
        """The same decoder without thoughts, that writes one token after the other: the autoregressive twin."""
        return dataclasses.replace(self, thoughts=0, kind="autoregressive")

    @property
    def masked_diffusion(self) -> ModelConfig:
        """The same decoder without thoughts and without the causal mask: the masked diffusion beside it."""
        return dataclasses.replace(self, thoughts=0, kind="masked-diffusion")

    @property
    def no_thoughts(self) -> str:
        """The kind of a model without thoughts, for messages."""
        return "it is a masked diffusion" if self.is_diffusion else "it is an autoregressive twin"


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """A language model that exists as the decoder (`pyro-ltm graft`): which, and how much of it learns."""

    base: str = option("", "folder of the Hugging Face model that is the decoder; empty: the decoder is our own")
    digest: str = option("", "digest of its configuration and weights")
    layers: str = option("", "its layers that read thoughts, counted from 0, such as 0,2,4")
    train: str = option(
        "frozen",
        "of the base learns: frozen, nothing; lora, low-rank additions to its matrices; all, every weight",
        choices=("frozen", "lora", "all"),
    )
    rank: int = option(8, "lora: rank of the additions", low=1, high=1 << 12)
    alpha: int = option(16, "lora: they count alpha / rank times", low=1, high=1 << 16)

    def __post_init__(self) -> None:
        check_ranges(self, "graft")
        if not re.fullmatch(r"(\d+(,\d+)*)?", self.layers):
            raise UserError(f"graft.layers = {self.layers!r}: numbers of layers from 0, with commas, such as 0,2,4")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers of the base that read thoughts, in order."""
        return tuple(sorted({int(number) for number in self.layers.split(",") if number}))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How text becomes token sequences (used when a run prepares its own data)."""

    vocab_size: int = option(2048, "tokens of the byte-level BPE to train", low=257, high=1 << 24)
    sequence_length: int = option(256, "tokens predicted in one sequence, T", low=1, high=1 << 24)
    packing: str = option(
        "auto",
        "how documents fill sequences; auto: document for a world, else contiguous",
        choices=("auto", "contiguous", "document"),
    )
    validation_fraction: float = option(0.1, "share of the text held out", low=0.0, high=0.9)

    def __post_init__(self) -> None:
        check_ranges(self, "data")


_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:(?!True\b|False\b)[A-Z]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, kw_only=True)
class Component:
    """A member of a registry by name, with the keyword arguments of its class.

    In TOML a table: `[guide]`, `name = "mean-field"`, and any option of that class. A name `module:Class` is that of a
    class outside of the library. One in angle brackets, `<module.Class>`, only describes an object that came from
    Python, which no name brings back.

    Attributes:
        given: the object or class itself, where it came from Python; no part of what is compared or written.
    """

    name: str
    options: Mapping[str, Scalar] = field(default_factory=dict)
    given: ClassVar[Any] = None

    def holding(self, given: object) -> Component:
        """The same with the object or class that it describes."""
        held = dataclasses.replace(self)
        object.__setattr__(held, "given", given)
        return held

    @property
    def own_class(self) -> str:
        """`module:Class` where the name is that of a class outside of the library, else empty.

        The class begins with a capital letter, by which it is told from a member's argument, as in `laplace:full`.
        """
        found = _OWN.match(self.name)
        return found[0] if found and self.name[found.end() :][:1] in ("", ":") else ""


ADAMW = Component(name="adamw")
"""The only slow optimizer of releases before they had names."""

GAUSSIAN = Component(name="gaussian")
"""The only prior of releases before they had names."""


@dataclass(frozen=True, kw_only=True)
class FastConfig:
    """The fast loop: how each sequence's posterior is fitted."""

    steps: int = option(16, "fast steps on each sequence's posterior", low=0, high=1 << 16)
    noise: str = option(
        "fresh",
        "a new draw each fast step, draws in mirrored pairs, or the reference's single draw",
        choices=("fresh", "antithetic", "fixed"),
    )
    tolerance: float = option(
        0.0, "a sequence stops when its bound rises by fewer nats over `patience` steps; 0: never", low=0.0, added=True
    )
    patience: int = option(4, "fast steps over which the rise of a bound is taken", low=1, high=1 << 16, added=True)
    subsample: int = option(
        1,
        "in training, a fast step scores one of so many equal stretches of the tokens, scaled up; 1: all",
        low=1,
        high=1 << 16,
        added=True,
    )
    record: bool = option(True, "on a GPU, record the fast loop once and replay it (a CUDA graph)", added=True)

    def __post_init__(self) -> None:
        check_ranges(self, "fast")


@dataclass(frozen=True, kw_only=True)
class SlowConfig:
    """The slow loop: how the decoder learns."""

    steps: int = option(1000, "slow steps (updates of the decoder)", low=1)
    batch_size: int = option(32, "sequences in one micro-batch", low=1, high=1 << 20)
    accumulate: int = option(1, "micro-batches in one slow step", low=1, high=1 << 20)
    lr: float = option(4e-4, "peak learning rate of the slow optimizer", low=0.0)
    lr_final: float = option(0.1, "last learning rate as a share of the peak", low=0.0, high=1.0)
    warmup: int = option(100, "steps of linear warm-up", low=0)
    schedule: str = option(
        "cosine",
        "how the rate falls to lr_final: half a cosine; linear; wsd: it stays at its peak, and falls at the end",
        choices=("cosine", "linear", "wsd"),
        added=True,
    )
    decay: float = option(
        0.2, "wsd: share of the steps, the last, in which the rate falls; 0: none", low=0.0, high=1.0, added=True
    )
    weight_decay: float = option(
        0.1, "matrices lose this share of themselves times the learning rate in each step; vectors nothing", low=0.0
    )
    beta1: float = option(0.9, "AdamW: decay of the mean", low=0.0, high=1.0)
    beta2: float = option(0.95, "AdamW: decay of the square", low=0.0, high=1.0)
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", low=0.0)
    average: float = option(
        0.0,
        "an average of the weights goes along, of which this share stays in a step, such as 0.999; 0: none",
        low=0.0,
        high=1.0,
        added=True,
    )
    keep_best: bool = option(False, "keep the weights of the best validation beside the last", added=True)
    recompute: bool = option(
        False, "the slow step computes layers again, not keeping what they did: less memory, more time", added=True
    )
    decoder_warmup: float = option(
        0.0, "share of slow steps, the first, learned as a twin; the KL warms up after", low=0.0, high=1.0, added=True
    )
    eval_every: int = option(250, "slow steps between validations; 0: only at the end", low=0)
    eval_sequences: int = option(64, "validation sequences used while training", low=1)
    save_every: int = option(100, "slow steps between checkpoints", low=1)
    save_minutes: float = option(0.0, "and minutes between them; 0: only by steps", low=0.0, added=True)
    keep_checkpoints: int = option(
        2, "checkpoints kept, the last and those before it, for when a file is damaged", low=1, high=1000, added=True
    )
    planned: int = option(0, "steps of the first plan, where --resume has changed it", low=0, added=True)
    changed_at: int = option(0, "slow step at which it has", low=0, added=True)
    rewarm: int = option(0, "steps in which the learning rate rises again from there", low=0, added=True)
    decay_steps: int = option(0, "wsd: steps of the decay that --decay began there; 0: by decay", low=0, added=True)
    max_nonfinite: int = option(5, "non-finite losses in a row before the run stops", low=1)

    @property
    def sequences(self) -> int:
        """Sequences that a slow step reads."""
        return self.batch_size * self.accumulate

    def __post_init__(self) -> None:
        check_ranges(self, "slow")
        for name in ("beta1", "beta2", "decoder_warmup", "average"):
            if getattr(self, name) >= 1:
                raise UserError(f"slow.{name} = {getattr(self, name)}: must be below 1")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How several processes share a training (`torchrun`); they change no figure but by rounding."""

    kind: str = option(
        "ddp",
        "ddp: each process has all weights; fsdp: each keeps a share, and all of them are gathered for a slow step",
        choices=("ddp", "fsdp"),
    )

    def __post_init__(self) -> None:
        check_ranges(self, "distributed")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that defines a run. Equal ones give equal weights, bit for bit, on one CPU; a GPU sums in no fixed order."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    guide: Component = field(default_factory=lambda: Component(name="mean-field"))
    objective: Component = field(default_factory=lambda: Component(name="analytic-elbo", options={"warmup": 0.5}))
    # An eps of 1, Adam's own default here, suits few fast steps; with 16 a smaller one finds more (docs/decisions.md).
    optimizer: Component = field(default_factory=lambda: Component(name="adam", options={"eps": 0.01}))
    fast: FastConfig = field(default_factory=FastConfig)
    slow: SlowConfig = field(default_factory=SlowConfig)
    # Runs of earlier versions do not name these.
    slow_optimizer: Component = field(default_factory=lambda: ADAMW, metadata={"added": True})
    prior: Component = field(default_factory=lambda: GAUSSIAN, metadata={"added": True})
    # `optional`: a file names the section where it says something.
    graft: GraftConfig = field(default_factory=GraftConfig, metadata={"added": True, "optional": True})
    distributed: DistributedConfig = field(
        default_factory=DistributedConfig, metadata={"added": True, "optional": True}
    )
    seed: int = option(0, "seed of everything random", low=0)
    dtype: str = option(
        "float32",
        "precision of the decoder's products; auto: bfloat16 where it is faster, decided as a run begins",
        choices=("float32", "bfloat16", "auto"),
    )
    compile: bool = option(
        False, "training compiles the decoder (torch.compile): a minute's wait, then faster or not", added=True
    )

    def __post_init__(self) -> None:
        check_ranges(self, "")
        if not self.graft.base:
            return
        if self.model.is_diffusion:
            raise UserError(f"model.kind = {self.model.kind}: the base of a graft writes one token after the other")
        if self.compile:
            raise UserError("compile = true: the decoder of a graft runs by its own code, which is not compiled")
        if self.model.dropout:
            raise UserError(f"model.dropout = {self.model.dropout}: a graft drops nothing: set 0")
        if self.slow.decoder_warmup and self.graft.train == "frozen":
            share = self.slow.decoder_warmup
            raise UserError(f"slow.decoder_warmup = {share}: a frozen base learns nothing without thoughts: set 0")

    @property
    def components(self) -> dict[str, Component]:
        """The components by axis."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {axis: value for axis, value in values.items() if isinstance(value, Component)}

    @property
    def decoder_warmup_steps(self) -> int:
        """Slow steps before the decoder is given its thoughts; at least one is left. A twin is given none: 0."""
        slow, steps = self.slow, self.slow.planned or self.slow.steps
        return min(round(slow.decoder_warmup * steps), steps - 1, slow.steps - 1) if self.model.thoughts else 0
