"""Types that several rooms share: a batch of sequences, the local parameters of its posteriors.

Shapes throughout the project: B sequences, T tokens, L layers, N thoughts in all (N/L per layer), D width,
V vocabulary, K particles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_ltm.errors import UserError

if TYPE_CHECKING:
    from pyro_ltm.weights import Weights

State = dict[str, Tensor]
"""Local variational parameters: tensors with leading dimension B that live for one batch."""


_ON_CPU = ("ids", "documents", "step_places")
"""Numbers that say where the sequences of a batch come from: one each, always on the CPU."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B token sequences, each predicted from its first input and its thoughts.

    Shapes:
        inputs: [B, T] int64, the tokens read; `inputs[:, t + 1] == targets[:, t]` wherever both are known.
        targets: [B, T] int64, the tokens predicted; None leaves the site `tokens` unobserved, so the model writes them.
        mask: [B, T] bool, True where a target counts.
        ids: [B] int64, stable names of the sequences; a sequence's noise is keyed by its id. They stay on the CPU:
            who asks a GPU for them waits for all that it still has to do.
        documents: [B] int64, the document in which each sequence begins, for the errors of figures; None where that is
            not known. They stay on the CPU, too.
        token_slice: only these targets count, each `token_scale` times (`inference.subsampled`); None: all, once.
        context: [B, T, D] what the thoughts cannot touch (`Decoder.context`), computed once for many fast steps;
            None until `LatentThoughtModel.precompute` fills it in.
        context_of: the weights that computed it.
        dropout: seed by which the decoder drops numbers, of a slow step; None: it drops none.
        padding_is_end: the targets that do not count say that the text has ended, as in sequences of one document each;
            False: what would stand there is not known. An autoregressive decoder never reads them.
        step_places: [B] int64, where each sequence stands among the `step_size` of its slow step, whichever process and
            micro-batch it is in; None: the batch is the whole step. They stay on the CPU, too.
        hiding: seed and number K of the draws by which a masked diffusion hides tokens where it is scored; None: one
            draw, by `dropout` where that is given.
    """

    inputs: Tensor
    targets: Tensor | None
    mask: Tensor
    ids: Tensor
    documents: Tensor | None = None
    token_slice: slice | None = None
    token_scale: int = 1
    context: Tensor | None = None
    context_of: Weights | None = None
    dropout: int | None = None
    padding_is_end: bool = False
    step_places: Tensor | None = None
    step_size: int = 0
    hiding: tuple[int, int] | None = None

    @classmethod
    def from_tokens(cls, tokens: Tensor, *, ids: Tensor | None = None) -> Batch:
        """A batch from whole sequences [B, T + 1]: the first token is given, the other T are predicted."""
        if tokens.shape[-1] < 2:
            raise UserError(f"a sequence needs at least two tokens, got {tokens.shape[-1]}")
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        ids = torch.arange(len(tokens), device=tokens.device) if ids is None else ids
        return cls(inputs=inputs, targets=targets, mask=torch.ones_like(targets, dtype=torch.bool), ids=ids)

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]], *, pad: int) -> Batch:
        """A batch from sequences of unlike lengths, each of at least two tokens, filled up with `pad` and masked."""
        longest = max(len(sequence) for sequence in sequences)
        tokens = torch.full((len(sequences), longest), pad, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        batch = cls.from_tokens(tokens)
        return dataclasses.replace(batch, mask=torch.arange(1, longest) < lengths[:, None])

    @property
    def size(self) -> int:
        """Sequences B."""
        return self.inputs.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.inputs.device

    @property
    def length(self) -> int:
        """Tokens T in a sequence."""
        return self.inputs.shape[1]

    def tokens(self) -> Tensor:
        """Targets that count, over the whole batch: an int64 scalar."""
        return self.mask.sum()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; `ids` and `documents` stay."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True), but=_ON_CPU)

    def unobserved(self) -> Batch:
        """The same batch with its targets taken away: the model writes them."""
        return dataclasses.replace(self, targets=None)

    def beginning(self, length: int) -> Batch:
        """The first `length` tokens of each sequence: nothing of what comes after is in it, and all of them count."""
        cut = self._with_tensors(lambda tensor: tensor[:, :length], but=_ON_CPU)
        return dataclasses.replace(cut, token_slice=None, token_scale=1)

    def apart(self) -> list[Batch]:
        """Each sequence as a batch of its own."""
        return [self.select(row) for row in torch.arange(self.size).split(1)]

    def select(self, rows: Tensor) -> Batch:
        """The sequences at `rows` (int64 [B'])."""
        return self._with_tensors(lambda tensor: tensor[rows.to(tensor.device)])

    def _with_tensors(self, change: Callable[[Tensor], Tensor], but: tuple[str, ...] = ()) -> Batch:
        """The same batch with every tensor changed, but those that are named."""
        changed: dict[str, Any] = {
            entry.name: change(value)
            for entry in dataclasses.fields(self)
            if entry.name not in but and isinstance(value := getattr(self, entry.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it all parts of `module` are in evaluation mode; then each in its own again, also after an error."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it no parameter of `module` asks for a gradient: none is computed and nothing is stored for one."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
