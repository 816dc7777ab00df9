"""The decoder: a Transformer whose layer l cross-attends to its own thoughts. Tensors in, hidden states out; no Pyro.

Kong et al., "Latent Thought Models with Variational Bayes Inference-Time Computation", arXiv:2502.01567. Parameter
names are those of the reference implementation, so that its weights load.

Shapes: B sequences, T tokens, L layers, N thoughts in all (N/L per layer), D width, C width of a thought (D but where
`thought_dim` says otherwise), V vocabulary, H heads, d = D / H.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.model.attention import Attention, rotary_table, windowed_attention
from pyro_ltm.model.cache import Cache
from pyro_ltm.model.feed_forward import FEED_FORWARD, ReLU2, SwiGLU
from pyro_ltm.model.kernels.attention import attend, by_kernels_of_now
from pyro_ltm.model.kernels.head import FrozenWeight, token_log_probs
from pyro_ltm.model.linear import Linear
from pyro_ltm.model.norm import RMSNorm
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.noise import dropout_mask
from pyro_ltm.types import Batch

FUSING = threading.Lock()
"""Guards `Decoder._fused_users`. One for all decoders: a lock of a decoder's own could not be copied with it."""


class Layer(nn.Module):
    """Self-attention in a window, cross-attention to this layer's thoughts, feed-forward; each normed and a residual.

    Args:
        mixes: its self-attention mixes embeddings of the tokens into its values.
    """

    def __init__(self, config: ModelConfig, mixes: bool = False):
        super().__init__()
        self.window = min(config.window, config.positions)
        self.causal = not config.is_diffusion
        self.share_kept = 1 - config.dropout
        qk_norm_eps = config.norm_eps if config.qk_norm else None
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config.dim, config.heads, qk_norm_eps=qk_norm_eps, mixes=mixes)
        if config.thoughts:
            self.cross_attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
            self.cross_attention = Attention(
                config.dim, config.heads, qk_norm_eps=qk_norm_eps, read_dim=config.thought_width
            )
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        kind = FEED_FORWARD[config.feed_forward]
        self.feed_forward: SwiGLU | ReLU2 = kind(config.dim, config.hidden_width)

    def self_attend(
        self, h: Tensor, table: Tensor, seen: int = 0, embedded: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`h` [B, T, D] after self-attention, and the keys and values [B, H, T, d] that a cache keeps.

        The first `seen` tokens are looked at and not computed any further: then `h` is [B, T - seen, D].
        `embedded` [B, T, D] are the value embeddings of the tokens, where this layer mixes them in; `mask`
        [B, T, D] what dropout keeps of the output.
        """
        x = self.attention_norm(h)
        q, k, v = self.attention.queries_keys_values(x, table, seen)
        v = self.attention.mixed_values(v, embedded)
        # Where weights learn, every layer keeps what its backward pass needs at once: the peak of a training step.
        recompute = self.attention.wq.weight.requires_grad
        heads = windowed_attention(q, k, v, self.window, recompute=recompute, causal=self.causal)
        return h[:, seen:] + self.dropped(self.attention.output(heads), mask), (k, v)

    def forward(
        self,
        h: Tensor,
        table: Tensor,
        thoughts: tuple[Tensor, Tensor] | None,
        seen: int = 0,
        embedded: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`h` [B, T, D] after all three, without its first `seen` tokens: [B, T - seen, D].

        `mask` [3, B, T, D], bool, is that of dropout on each output; None: no dropout.
        """
        h, _ = self.self_attend(h, table, seen, embedded, None if mask is None else mask[0])
        return self.think(h, table[:, seen:], thoughts, None if mask is None else mask[1:])

    def think(
        self, h: Tensor, table: Tensor, thoughts: tuple[Tensor, Tensor] | None, mask: Tensor | None = None
    ) -> Tensor:
        """`h` [B, T, D] after cross-attention to the projected thoughts and the feed-forward layer."""
        crossed, fed = (None, None) if mask is None else mask
        if thoughts is not None:
            h = h + self.dropped(self.cross_attention.cross(self.cross_attention_norm(h), table, *thoughts), crossed)
        return h + self.dropped(self.feed_forward(self.ffn_norm(h)), fed)

    def dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Dropout of `x` by `mask`, scaled so that its mean stays; `x` itself without one."""
        return x if mask is None else x * mask / self.share_kept


class Decoder(TokenDecoder):
    """p(next token | tokens, thoughts), up to the softmax.

    Args:
        config: shape of the decoder; `config.vocab_size` must be set.
        compute_dtype: bfloat16 runs the matrix products in it (autocast); weights and thoughts stay as they are.

    Attributes:
        recompute: where weights learn, the backward pass computes each layer again instead of keeping what it did.
        head_weight: the head's weight, cast once for many passes (`fused_weights`); None outside of it.
        transport: map of the thoughts to what the layers read, of a prior that has one; None: as they are.
        head: computes the logits in place of `output_weight` (`packed`); None: that itself.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        # Of the first weights, drawn before modules are made, which draw for themselves, more of them with thoughts.
        seed = int(torch.randint(1 << 62, (), device="cpu")) if config.zero_cross_attention else None
        self.config = config
        self.compute_dtype = compute_dtype
        self.recompute = False
        self.head: nn.Module | None = None
        self.head_weight: FrozenWeight | None = None
        self._fused_users = 0
        self.transport: nn.Module | None = None
        # That of a masked diffusion has a row more, for a token that is hidden; no head predicts it.
        tokens = config.vocab_size + config.is_diffusion
        self.tok_embeddings = nn.Embedding(tokens, config.dim)
        # Of every second layer, as in nanochat; not among `layers`, whose matrices are products.
        mixing = range((config.layers - 1) % 2, config.layers, 2) if config.value_embeddings else range(0)
        self.value_embeddings = nn.ModuleDict({str(at): nn.Embedding(tokens, config.dim) for at in mixing})
        self.layers = nn.ModuleList(Layer(config, mixes=at in mixing) for at in range(config.layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        # A vocabulary is 0 where a configuration is checked before its data are known; torch warns of such a matrix.
        self.output = None if config.tied else Linear(config.dim, max(config.vocab_size, 1))
        head_dim = config.dim // config.heads
        self.table: Tensor
        self.thought_table: Tensor
        table = rotary_table(torch.arange(config.positions), head_dim, config.rope_theta)
        self.register_buffer("table", table, persistent=False)
        # The thoughts of every layer stand at the same positions, spread as if all N shared one line.
        positions = torch.arange(config.thoughts // config.layers) * config.thoughts_apart
        self.register_buffer("thought_table", rotary_table(positions, head_dim, config.rope_theta), persistent=False)
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int | None = None) -> None:
        """N(0, init_std), and 1/sqrt(2L) of it for the projections that the reference scales (`wo` and `w3`).

        With a `seed`, the twin's weights are drawn first: of one seed they are the same with thoughts and without.
        """
        config, generator, named = self.config, None, list(self.named_parameters())
        if seed is not None:
            named.sort(key=lambda each: "cross_attention" in each[0])
            device = self.tok_embeddings.weight.device
            generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
        scaled = ("wo.weight", "w3.weight" if config.feed_forward == "swiglu" else "w2.weight")
        zeros: tuple[str, ...] = ("wo.weight", "w2.weight") if config.zero_init else ()
        if config.zero_cross_attention:
            zeros += ("cross_attention.wo.weight",)
        for name, parameter in named:
            if parameter.dim() == 2:
                depth = math.sqrt(2 * config.layers) if name.endswith(scaled) else 1.0
                nn.init.normal_(parameter, std=config.init_std / depth, generator=generator)
                if name.endswith(zeros):  # drawn all the same, so that the others are as they are without the option
                    nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.tok_embeddings.weight.device

    def dropout_mask(self, batch: Batch) -> Tensor | None:
        """The mask of a slow step's dropout, bool [1 + 3 L, B, T, D]: on the embedding, then on each layer's outputs.

        None where `batch` names no seed for it. A sequence has one draw, whatever the number of particles: they are
        weighed under one decoder.
        """
        if batch.dropout is None or not self.config.dropout:
            return None
        # A masked diffusion reads the targets behind the first input: a place more.
        shape = (1 + 3 * self.config.layers, batch.length + self.config.is_diffusion, self.config.dim)
        drawn = dropout_mask(batch.ids, shape, 1 - self.config.dropout, seed=batch.dropout, device=batch.device)
        return drawn.transpose(0, 1)

    def context(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embedded `inputs` [B, T] after the first layer's self-attention, [B, T, D]: independent of the thoughts.

        Beside it the value embeddings of the E layers above that have some: then [B, T, D + E D]. `mask` is what
        dropout keeps, as of `forward`.
        """
        if inputs.shape[1] > self.config.positions:
            raise UserError(f"{inputs.shape[1]} tokens; this model reads at most {self.config.positions}")
        with self._autocast(inputs):
            first, *above = self._embedded_values(inputs)
            layer, table = self._stack[0], self.table[:, : inputs.shape[1]]
            entered, attended = (None, None) if mask is None else mask[:2]
            h, _ = layer.self_attend(layer.dropped(self.embed(inputs), entered), table, embedded=first, mask=attended)
            beside = [each for each in above if each is not None]
            return torch.cat([h, *beside], dim=-1) if beside else h

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """`forward`; where it is compiled (`compile`), compiled in training alone.

        There one shape comes again and again. What is evaluated has as many rows as are left, and what needs no
        gradient (a score, a check of health) would take a graph besides: each compiled anew, for a pass or two.
        """
        learning = self.training and torch.is_grad_enabled()
        return super().__call__(*inputs, **options) if learning else self._call_impl(*inputs, **options)

    def forward(
        self,
        context: Tensor,
        thoughts: Tensor | None,
        token_slice: slice | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] from the `context` of the inputs and the `thoughts` [B, N, C].

        Without thoughts (None) it passes cross-attention by, and writes as its twin does.
        Of a `token_slice`, [B, P, D], where one is named: each layer works at what those above it see.
        `mask` is `dropout_mask` of a slow step, which reads all tokens; None: no dropout.
        """
        mask_by_layer = [None] * self.config.layers if mask is None else mask[1:].split(3)
        first, last = (0, context.shape[1]) if token_slice is None else (token_slice.start, token_slice.stop)
        # Where each layer begins: W - 1 tokens before the next one, which looks back so far.
        begins = [max(0, first - above * (self._window - 1)) for above in reversed(range(len(self._stack)))]
        with self._autocast(context):
            projected = self.project(thoughts)
            run = self._run if self._recomputes else Layer.forward
            context, embedded = self._split(context[:, begins[0] : last])
            # The context has used the masks of the embedding and of the first layer's self-attention.
            rest = None if mask_by_layer[0] is None else mask_by_layer[0][1:]
            h = self._stack[0].think(context, self.table[:, begins[0] : last], projected[0], rest)
            for layer, layer_thoughts, values, layer_mask, (read, begin) in zip(
                self._stack[1:], projected[1:], embedded, mask_by_layer[1:], itertools.pairwise(begins), strict=True
            ):
                values = None if values is None else values[:, read - begins[0] :]
                h = run(layer, h, self.table[:, read:last], layer_thoughts, begin - read, values, layer_mask)
            return self.norm(h)

    def forward_slice(self, context: Tensor, thoughts: Tensor, where: slice) -> Tensor:
        """`forward` at the tokens `where`, [B, P, D]; never compiled, for each slice would take a graph."""
        return self.forward(context, thoughts, where)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in full precision at the end."""
        with self._autocast(hidden):
            logits: Tensor = self.head(hidden) if self.head is not None else F.linear(hidden, self.output_weight)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    @property
    def output_weight(self) -> Tensor:
        """The head's weight [V, D]: the embedding itself, or a matrix of its own (`config.tied`)."""
        if self.output is not None:
            return self.output.weight
        embeddings = self.tok_embeddings.weight
        return embeddings[: self.config.vocab_size] if self.config.is_diffusion else embeddings

    def token_log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Nats [R] of the `tokens` [R] after the hidden states [R, D]: log softmax of `logits`, in less memory."""
        weight, dtype = self.output_weight, self.compute_dtype if self._low else None
        compiled = self._is_compiled and hidden.device.type == "cuda"  # a CPU's own softmax is as fast
        cap = self.config.logit_softcap
        return token_log_probs(hidden, weight, tokens, dtype, self.head_weight, compiled, cap)

    def take_transport(self, transport: nn.Module) -> None:
        """See `TokenDecoder`."""
        self.transport = transport

    def project(self, thoughts: Tensor | None) -> list[tuple[Tensor, Tensor] | None]:
        """Keys and outputs of each layer's thoughts (`Attention.keys_outputs`); None for one without thoughts."""
        if thoughts is None or not self.config.thoughts:
            return [None] * self.config.layers
        thoughts = thoughts if self.transport is None else self.transport(thoughts)
        return [
            layer.cross_attention.keys_outputs(z, self.thought_table)
            for layer, z in zip(self._stack, thoughts.chunk(self.config.layers, dim=1), strict=True)
        ]

    def prefill(self, tokens: Tensor, thoughts: Tensor) -> tuple[Tensor, Cache]:
        """Reads `tokens` [B, P]: the last hidden state [B, D] and the cache from which `step` goes on."""
        length = tokens.shape[1]
        table = self.table[:, :length]
        with self._autocast(tokens):
            cache = Cache(thoughts=self.project(thoughts), position=length)
            h = self.embed(tokens)
            for layer, layer_thoughts, embedded in zip(
                self._stack, cache.thoughts, self._embedded_values(tokens), strict=True
            ):
                h, (k, v) = layer.self_attend(h, table, embedded=embedded)
                h = layer.think(h, table, layer_thoughts)
                cache.begin(k, v, layer.window)
            return self.norm(h[:, -1]), cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Reads one token of each sequence, [B], into `cache` and gives the hidden state [B, D] after it."""
        table = self.table[:, cache.position : cache.position + 1]
        with self._autocast(tokens):
            h, embedded = self.embed(tokens)[:, None], self._embedded_values(tokens[:, None])
            for index, layer in enumerate(self._stack):
                x = layer.attention_norm(h)
                q, k, v = layer.attention.queries_keys_values(x, table)
                v = layer.attention.mixed_values(v, embedded[index])
                heads = attend(q, *cache.add(index, k, v))
                h = layer.think(h + layer.attention.output(heads), table, cache.thoughts[index])
            cache.position += 1
            return self.norm(h[:, 0])

    @contextmanager
    def fused_weights(self) -> Iterator[None]:
        """Fuses and casts the weights once, for many passes in which none of them changes.

        Weights that read the same input are joined for one product (their own modules, and hooks on them, are not
        called), and all are in the compute dtype. The parameters stay as they are. Re-entrant, also from several
        threads; the last one to leave drops the copies.
        """
        # A compiled decoder fuses and casts by itself; slices of tokens, which are not compiled, do without.
        if self._is_compiled:
            yield
            return
        with FUSING:
            self._fused_users += 1
            if self._fused_users == 1:
                self._fuse()
        try:
            yield
        finally:
            with FUSING:
                self._fused_users -= 1
                if not self._fused_users:
                    self.drop_fused_weights()

    @property
    def _is_compiled(self) -> bool:
        """Whether it is as it stands: in training alone."""
        return self._compiled_call_impl is not None and self.training

    def _fuse(self) -> None:
        for layer in self._stack:
            attention, fed = layer.attention, layer.feed_forward
            attention.fused_weight = self._fused(attention.wq, attention.wk, attention.wv)
            fed.fused_weight = self._fused(*fed.inward)
            if self._low:
                rest = [attention.wo, fed.w2]
                if self.config.thoughts:
                    crossing = layer.cross_attention
                    rest += [crossing.wq, crossing.wk, crossing.wv, crossing.wo]
                for module in rest:
                    module.cast_weight = self._fused(module)
        if self._low:
            self.head_weight = FrozenWeight(self.output_weight.detach().to(self.compute_dtype), many=True)

    def drop_fused_weights(self) -> None:
        """Drops the copies that `fused_weights` made."""
        self.head_weight = None
        for module in self.modules():
            if isinstance(module, Linear):
                module.cast_weight = None
            elif isinstance(module, Attention | SwiGLU | ReLU2):
                module.fused_weight = None

    def _fused(self, *parts: Linear) -> Tensor:
        joined = torch.cat([part.weight.detach() for part in parts])
        return joined.to(self.compute_dtype) if self._low else joined

    def embed(self, tokens: Tensor) -> Tensor:
        """The residual stream [..., D] in which `tokens` [...] enter."""
        embedded: Tensor = self.tok_embeddings(tokens)
        return embedded if self.config.embedding_scale == 1 else embedded * self.config.embedding_scale

    def _embedded_values(self, tokens: Tensor) -> list[Tensor | None]:
        """The value embeddings [B, T, D] of `tokens` [B, T] for each layer; None for one without."""
        tables = self.value_embeddings
        return [tables[str(at)](tokens) if str(at) in tables else None for at in range(self.config.layers)]

    def _split(self, context: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Of a `context`: the first layer's [B, T, D], and the value embeddings for each layer above it."""
        h, *embedded = context.split(self.config.dim, dim=-1)
        following = iter(embedded)
        layers = range(1, self.config.layers)
        return h, [next(following) if str(at) in self.value_embeddings else None for at in layers]

    @property
    def _recomputes(self) -> bool:
        """Whether layers forget what they did until the backward pass; only where weights learn."""
        return self.recompute and torch.is_grad_enabled() and self.norm.weight.requires_grad

    @staticmethod
    def _run(layer: Layer, *inputs: Any) -> Tensor:
        # Without its hooks (FSDP), which take the gradient for whole before that of the thoughts' keys is there.
        h: Tensor = checkpoint(by_kernels_of_now(Layer.forward), layer, *inputs, use_reentrant=False)
        return h

    @property
    def _low(self) -> bool:
        return self.compute_dtype != torch.float32

    @property
    def _window(self) -> int:
        return self._stack[0].window

    @property
    def _stack(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, torch.bfloat16, enabled=self._low)
