"""A causal language model of Hugging Face's as the decoder: chosen layers of it cross-attend to thoughts of their own.

After a grafted layer's self-attention its residual stream is normed and attends to the thoughts; the output projection
is zero at the start, so that the logits are the base model's, to the bit. The base runs by its own code: its layers are
wrapped, so that those below the first grafted one can be passed by, and a hook adds to what their self-attention gives.
Its own dropout is off.

Shapes: B sequences, T tokens, N thoughts in all, D width of the base and of a thought, V vocabulary; L counts the
grafted layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.model.attention import Attention, rotary_table
from pyro_ltm.model.kernels.attention import by_kernels_of_now
from pyro_ltm.model.kernels.head import token_log_probs
from pyro_ltm.model.norm import RMSNorm
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.types import Batch

ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
"""Names of self-attention in a layer, over the families."""


@dataclass(frozen=True)
class Pass:
    """One pass through the base: what its layers read beside the hidden states, which their own code hands on.

    Attributes:
        crossed: by layer of the base, cross-attention [B, T, D] of a residual stream [B, T, D].
        first: the layer at which the pass begins or ends.
        entering: it begins there, with these hidden states [B, T, D]: layers below are passed by.
        reached: it ends there, and leaves here what would enter: the layers from there on are passed by.
        recompute: layers forget what they did until the backward pass.
        residual: what entered the layer at work.
    """

    crossed: Mapping[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    first: int = 0
    entering: Tensor | None = None
    reached: list[Tensor] | None = None
    recompute: bool = False
    residual: Tensor | None = None


PASS: ContextVar[Pass | None] = ContextVar("pass through a grafted base", default=None)
"""The base's own code, which calls the layers, has no argument for it; and it is no attribute of shared modules."""


@contextmanager
def passing(current: Pass) -> Iterator[None]:
    """Within it the layers read `current`."""
    token = PASS.set(current)
    try:
        yield
    finally:
        PASS.reset(token)


class PassedLayer(nn.Module):
    """A layer of the base, which a `Pass` may leave out."""

    def __init__(self, layer: nn.Module, at: int):
        super().__init__()
        self.layer: Any = layer
        self.at = at

    def __getattr__(self, name: str) -> Any:
        """Whatever the base's code asks of its layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: Tensor, *inputs: Any, **options: Any) -> Any:
        """As the layer's own."""
        current = PASS.get()
        if current is None:
            return self.layer(hidden_states, *inputs, **options)
        if current.reached is not None and self.at >= current.first:
            if self.at == current.first:
                current.reached.append(hidden_states)
            return hidden_states
        if current.entering is not None and self.at <= current.first:
            if self.at < current.first:
                return hidden_states
            hidden_states = current.entering
        if current.recompute:
            return checkpoint(
                by_kernels_of_now(self._run), current, hidden_states, *inputs, use_reentrant=False, **options
            )
        return self._run(current, hidden_states, *inputs, **options)

    def _run(self, current: Pass, hidden_states: Tensor, *inputs: Any, **options: Any) -> Any:
        with passing(replace(current, residual=hidden_states)):
            return self.layer(hidden_states, *inputs, **options)


def _add_thoughts(at: int, attention: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook on the self-attention of layer `at`: its output [B, T, D] and what its layer's thoughts add to it."""
    current = PASS.get()
    cross = None if current is None else current.crossed.get(at)
    if current is None or cross is None:
        return output
    attended, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
    changed = attended + cross(current.residual + attended)
    return changed if rest is None else (changed, *rest)


class CrossAttention(nn.Module):
    """Cross-attention of one layer to its thoughts, on the normed residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.projections = Attention(config.dim, config.heads, read_dim=config.thought_width)

    def reset_parameters(self, std: float) -> None:
        """N(0, std), and an output of zero."""
        for projection in (self.projections.wq, self.projections.wk, self.projections.wv):
            nn.init.normal_(projection.weight, std=std)
        nn.init.zeros_(self.projections.wo.weight)

    def addition(self, h: Tensor, *, table: Tensor, keys: Tensor, outputs: Tensor) -> Tensor:
        """[B, T, D]: the addition of thoughts, as `Attention.keys_outputs` has them, to `h` of the same shape.

        Not `forward`, whose hooks (FSDP) would take the gradient for whole before that of keys and outputs is there.
        """
        return self.projections.cross(self.norm(h), table, keys, outputs)


@dataclass
class GraftCache:
    """Cache of generation: the base's own keys and values, what the thoughts project to, and the tokens read."""

    base: Any
    projected: list[tuple[Tensor, Tensor]]
    position: int


class GraftedDecoder(TokenDecoder):
    """A causal language model whose layers `at` cross-attend to thoughts.

    Args:
        config: of its thoughts: `layers` is how many layers are grafted, `dim` the width of the base.
        base: a causal language model of transformers, which belongs to this object from here on. Of its parameters
            those learn that ask for a gradient.
        at: the grafted layers of the base, counted from 0.
        compute_dtype: bfloat16 runs the matrix products in it (autocast).

    Attributes:
        learned: names of the base's weights that learn, and are saved with a run; the others are the base's own.

    Raises:
        UserError: the base is not built of layers with self-attention, or has no layers of these numbers.
    """

    def __init__(self, config: ModelConfig, base: Any, at: tuple[int, ...], compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.recompute = False
        self.transport: nn.Module | None = None
        self.at = at
        layers = find_layers(base)
        if not at or at[-1] >= len(layers):
            raise UserError(f"layers {','.join(map(str, at))}: the base model has those from 0 to {len(layers) - 1}")
        for number, layer in enumerate(layers):
            if number in at:
                find_attention(layer, base).register_forward_hook(partial(_add_thoughts, number))
            layers[number] = PassedLayer(layer, number)
        self.body: Any = base.base_model
        head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
        if head is None:
            raise UserError(f"{type(base).__name__}: its head is not found, so it has no logits")
        self.head: nn.Module | None = None if head.weight is embedding.weight else head
        self.learned = frozenset(name for name, value in self.named_parameters() if value.requires_grad)
        self.cap = float(getattr(base.config.get_text_config(), "final_logit_softcapping", None) or 0.0)
        self.cross_attention = nn.ModuleList(CrossAttention(config) for _ in at if config.thoughts)
        head_dim = config.dim // config.heads
        positions = torch.arange(config.thoughts // config.layers) * config.thoughts_apart
        self.table: Tensor
        self.thought_table: Tensor
        self.register_buffer("table", rotary_table(torch.arange(config.max_length), head_dim, config.rope_theta), False)
        self.register_buffer("thought_table", rotary_table(positions, head_dim, config.rope_theta), False)
        for each in self.grafts:
            each.reset_parameters(config.init_std)
        self.register_state_dict_post_hook(_leave_out_the_base)
        self.register_load_state_dict_pre_hook(_keep_the_base)
        self.train()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.table.device

    def train(self, mode: bool = True) -> GraftedDecoder:
        """As of any module; the base stays in evaluation mode, for its own dropout draws unkeyed noise."""
        super().train(mode)
        self.body.eval()
        return self

    def take_transport(self, transport: nn.Module) -> None:
        """See `TokenDecoder`."""
        self.transport = transport

    def dropout_mask(self, batch: Batch) -> None:
        """None: it drops nothing."""

    def context(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """The hidden states [B, T, D] that enter the first grafted layer, of `inputs` [B, T]."""
        if inputs.shape[1] > self.config.max_length:
            raise UserError(f"{inputs.shape[1]} tokens; this model reads at most {self.config.max_length}")
        reached: list[Tensor] = []
        self._run(Pass(first=self.at[0], reached=reached), self.embed(inputs))
        return reached[0]

    def forward(
        self,
        context: Tensor,
        thoughts: Tensor | None,
        token_slice: slice | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `TokenDecoder`."""
        end = context.shape[1] if token_slice is None else token_slice.stop
        context = context[:, :end]  # no token sees those after it
        recompute = self.recompute and torch.is_grad_enabled() and self._learns
        with self._autocast(context):
            crossed = self._crossed(self.project(thoughts), self.table[:, :end])
        hidden = self._run(Pass(crossed, self.at[0], entering=context, recompute=recompute), context)
        return hidden if token_slice is None else hidden[:, token_slice]

    def forward_slice(self, context: Tensor, thoughts: Tensor, where: slice) -> Tensor:
        """See `TokenDecoder`."""
        return self.forward(context, thoughts, where)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in full precision at the end."""
        with self._autocast(hidden):
            logits = F.linear(hidden, self._head_weight, self._head_bias)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def token_log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Nats [R] of the `tokens` [R] after the hidden states [R, D]."""
        if self._head_bias is not None:
            return -F.cross_entropy(self.logits(hidden), tokens, reduction="none")
        dtype = self.compute_dtype if self._low else None
        return token_log_probs(hidden, self._head_weight, tokens, dtype, cap=self.cap)

    def project(self, thoughts: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Keys and outputs of each grafted layer's thoughts (`Attention.keys_outputs`); none without thoughts."""
        if thoughts is None or not self.config.thoughts:
            return []
        thoughts = thoughts if self.transport is None else self.transport(thoughts)
        return [
            each.projections.keys_outputs(z, self.thought_table)
            for each, z in zip(self.grafts, thoughts.chunk(self.config.layers, dim=1), strict=True)
        ]

    def prefill(self, tokens: Tensor, thoughts: Tensor) -> tuple[Tensor, GraftCache]:
        """See `TokenDecoder`."""
        from transformers import DynamicCache

        with self._autocast(tokens):
            cache = GraftCache(DynamicCache(config=self.body.config), self.project(thoughts), 0)
        return self._read(tokens, cache), cache

    def step(self, tokens: Tensor, cache: GraftCache) -> Tensor:
        """See `TokenDecoder`."""
        return self._read(tokens[:, None], cache)

    def fused_weights(self) -> AbstractContextManager[None]:
        """Nothing is fused: the base runs by its own code."""
        return nullcontext()

    def drop_fused_weights(self) -> None:
        """There are none."""

    def _read(self, tokens: Tensor, cache: GraftCache) -> Tensor:
        """The hidden state [B, D] after the last of `tokens` [B, P], which `cache` takes in."""
        end = cache.position + tokens.shape[1]
        crossed = self._crossed(cache.projected, self.table[:, cache.position : end])
        # transformers has renamed it; the cache changes in place.
        name = "cache" if "cache" in inspect.signature(self.body.forward).parameters else "past_key_values"
        hidden = self._run(Pass(crossed), self.embed(tokens), use_cache=True, **{name: cache.base})
        cache.position = end
        return hidden[:, -1]

    def _crossed(self, projected: list[tuple[Tensor, Tensor]], table: Tensor) -> dict[int, Callable[[Tensor], Tensor]]:
        """By grafted layer of the base, its cross-attention at the positions of `table`."""
        modules = zip(self.at, self.grafts, projected, strict=True) if projected else ()
        return {at: partial(each.addition, table=table, keys=keys, outputs=out) for at, each, (keys, out) in modules}

    def _run(self, current: Pass, embedded: Tensor, *, use_cache: bool = False, **options: Any) -> Tensor:
        """The base's last hidden states [B, T, D] of what enters it, [B, T, D]."""
        with passing(current), self._autocast(embedded):
            hidden: Tensor = self.body(inputs_embeds=embedded, use_cache=use_cache, **options).last_hidden_state
            return hidden

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., D] of `tokens` [...], as the base has them."""
        embedded: Tensor = self.body.get_input_embeddings()(tokens)
        return embedded

    @property
    def grafts(self) -> list[CrossAttention]:
        """`cross_attention` by layer, in order."""
        return cast(list[CrossAttention], list(self.cross_attention))

    @property
    def _head_weight(self) -> Tensor:
        return cast(Tensor, (self.head or self.body.get_input_embeddings()).weight)

    @property
    def _head_bias(self) -> Tensor | None:
        return getattr(self.head, "bias", None)

    @property
    def _learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def _low(self) -> bool:
        return self.compute_dtype != torch.float32

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, torch.bfloat16, enabled=self._low)


PARTS = ("body.", "head.")
"""Where the weights of the base are among those of a `GraftedDecoder`."""


def _leave_out_the_base(decoder: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Takes from a state dictionary the weights of the base that do not learn."""
    assert isinstance(decoder, GraftedDecoder)
    for name in [name for name in state if name.startswith(tuple(prefix + part for part in PARTS))]:
        if name.removeprefix(prefix) not in decoder.learned:
            del state[name]


def _keep_the_base(decoder: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Puts into a state dictionary that is loaded the weights of the base that do not learn, as they are."""
    assert isinstance(decoder, GraftedDecoder)
    for part in filter(None, (decoder.body, decoder.head)):
        own = "body." if part is decoder.body else "head."
        for name, value in part.state_dict(prefix=own).items():
            if name not in decoder.learned:
                state.setdefault(prefix + name, value)


def find_layers(base: Any) -> nn.ModuleList:
    """The stack of layers of a causal language model. Raises UserError when there is none, or more than one."""
    count = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    stacks = {name: part for name, part in base.base_model.named_modules() if isinstance(part, nn.ModuleList)}
    outer = [part for name, part in stacks.items() if not any(name.startswith(f"{other}.") for other in stacks)]
    found = [stack for stack in outer if len(stack) == count]
    if len(found) != 1:
        raise UserError(f"{type(base).__name__}: its layers are not found; a stack of {count} layers is needed")
    return found[0]


def find_attention(layer: nn.Module, base: Any) -> nn.Module:
    """The self-attention of a layer. Raises UserError when it has none."""
    found = [module for name, module in layer.named_children() if name in ATTENTIONS]
    if len(found) != 1:
        names = ", ".join(name for name, _ in layer.named_children())
        raise UserError(f"{type(base).__name__}: no self-attention is found among the parts of its layers ({names})")
    return found[0]
