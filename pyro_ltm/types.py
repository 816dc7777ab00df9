"""Types that several rooms share: a batch of sequences, the local parameters of its posteriors, a registry.

Shapes throughout the project: B sequences, T tokens, L layers, N thoughts in all (N/L per layer), D width,
V vocabulary, K particles.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pyro_ltm.config import Component, suggest
from pyro_ltm.errors import UserError

if TYPE_CHECKING:
    from pyro_ltm.weights import Weights

State = dict[str, Tensor]
"""Local variational parameters: tensors with leading dimension B that live for one batch."""


_ON_CPU = ("ids", "documents")
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


@dataclass(frozen=True, kw_only=True)
class Card:
    """A description of one class of a registry, for who has to choose: a line for each attribute.

    Attributes:
        summary: what it is. cost: what it costs, compared with the cheapest of its kind. when: when to use it.
        reference: the paper it comes from, as `arXiv:...` or author and year.
    """

    summary: str
    cost: str
    when: str
    reference: str


def check_flags(kind: type, fields: Container[str] = ()) -> None:
    """Raises TypeError where `kind` sets a flag that no class above it declares: a misspelt one would say nothing.

    Args:
        kind: a class; its flags are attributes that are True or False. fields: those that are none, of a dataclass.
    """
    known = {name for parent in kind.__mro__[1:] for name in vars(parent)}
    for name, value in vars(kind).items():
        if isinstance(value, bool) and name not in known and name not in fields and not name.startswith("_"):
            raise TypeError(f"{kind.__name__}.{name}: no such flag{suggest(name, known)}")


class Registered(Protocol):
    """The attributes of every class in a registry: how a reader chooses it, and options that may follow its name."""

    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]]


T = TypeVar("T", bound=Registered)


class Registry(Generic[T], Mapping[str, type[T]]):
    """Names to classes, once per axis, used only at the edge (command line, TOML).

    A name may carry arguments: `renyi:0.5:16` stands for the class `renyi` with the first two of the options that it
    lists in `arguments`; `low-rank:rank=8` names the option.
    """

    def __init__(self, axis: str, classes: Mapping[str, type[T]]):
        self.axis = axis
        self._classes = dict(classes)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            raise UserError(f"unknown {self.axis} '{name}'{suggest(name, self)}: choose from {', '.join(self)}")
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes  # Mapping's own asks `[]`, which raises UserError and no KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def parse(self, text: str) -> Component:
        """The component that `text` (`name` or `name:argument:...`) stands for.

        Raises:
            UserError: unknown name, too many arguments, or an argument of the wrong type.
        """
        name, *given = text.split(":")
        kind = self[name]
        places = kind.arguments
        parameters = inspect.signature(kind).parameters
        usage = ":".join([name, *(place.upper() for place in places)])
        options: dict[str, Any] = {}
        for index, argument in enumerate(given):
            key, named, value = argument.rpartition("=")
            if not named and index >= len(places):
                raise UserError(f"{self.axis} '{text}': too many arguments, write {usage}")
            key = key if named else places[index]
            default = parameters[key].default if key in parameters else value
            options[key] = _read(value, type(default), f"{self.axis} '{text}': {key}")
        return Component(name=name, options=options)

    def build(self, component: Component, **shared: Any) -> T:
        """An object of the class that `component` names; `shared` arguments go only to classes that take them.

        Raises:
            UserError: unknown name, unknown option, or an option of the wrong type or out of its range.
        """
        if ":" in component.name:
            parsed = self.parse(component.name)
            component = Component(name=parsed.name, options={**parsed.options, **component.options})
        kind = self[component.name]
        parameters = inspect.signature(kind).parameters
        for key, value in component.options.items():
            if key not in parameters or key in shared:
                known = [name for name in parameters if name not in shared]
                raise UserError(
                    f"unknown option {self.axis}.{key}{suggest(key, known)}: "
                    f"'{component.name}' takes {', '.join(known) or 'none'}"
                )
            _check_type(f"{self.axis}.{key}", value, parameters[key].default)
        taken = {key: value for key, value in shared.items() if key in parameters}
        # 1 is a fine way to write 1.0, but a tensor made of it would hold whole numbers.
        options = {
            key: float(value) if isinstance(parameters[key].default, float) else value
            for key, value in component.options.items()
        }
        return kind(**options, **taken)


def _read(text: str, wanted: type, name: str) -> Any:
    """`text` as a value of the type `wanted`. Raises UserError naming `name`."""
    try:
        if wanted is bool:
            return {"true": True, "false": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (ValueError, KeyError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UserError(f"{name} = '{text}': expected {kinds[wanted]}") from None


def _check_type(name: str, value: Any, default: Any) -> None:
    wanted = type(default)
    good = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if wanted in (bool, int, float, str) and (not good or (isinstance(value, bool) and wanted is not bool)):
        raise UserError(f"{name} = {value!r}: expected a value such as {default!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value!r}: expected a finite number, such as {default!r}")
