"""A run folder: all that training leaves behind, and all that is needed to go on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyro_ltm.config import Config, dump_toml, load_toml
from pyro_ltm.data import TokenDataset, Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.files import write_atomically, write_text
from pyro_ltm.inference.parts import Parts

CONFIG, MODEL, TOKENIZER, TRAINER, METRICS, DATA = (
    "config.toml",
    "model.safetensors",
    "tokenizer.json",
    "trainer.safetensors",
    "metrics.jsonl",
    "data.json",
)
FORMAT = "pyro-ltm run 1"


@dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer and the parts that fit its posteriors.

    Attributes:
        folder: where it lies. step: slow steps that the weights have seen.
    """

    folder: Path
    config: Config
    parts: Parts
    tokenizer: Tokenizer
    step: int

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu", dtype: str | None = None) -> Run:
        """The run in `folder`; `dtype` overrides the precision that it was trained in.

        Raises:
            UserError: the folder is no run, or a file of it is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder}: not a run folder (it has no {CONFIG}); give a folder that 'train --out' wrote")
        config = load_toml(folder / CONFIG)
        if dtype:
            config = replace(config, dtype=dtype)
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        if tokenizer.vocab_size > config.model.vocab_size:
            raise UserError(
                f"{folder / TOKENIZER}: has {tokenizer.vocab_size} tokens but the model knows "
                f"{config.model.vocab_size}: this is not the run's own tokenizer"
            )
        tensors, meta = read_tensors(folder / MODEL)
        parts = Parts.build(config, device=device)
        load_weights(parts, tensors, folder / MODEL)
        parts.model.eval()
        return cls(folder, config, parts, tokenizer, int(meta.get("step", 0)))

    @classmethod
    def create(cls, folder: Path, config: Config, parts: Parts, tokenizer: Tokenizer, *, step: int = 0) -> Run:
        """Writes a run folder that `load` reads: configuration, tokenizer, weights."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, dump_toml(config))
        tokenizer.save(folder / TOKENIZER)
        run = cls(folder, config, parts, tokenizer, step)
        run.save_weights(step)
        return run

    def save_weights(self, step: int) -> None:
        """Writes the weights as they stand at slow step `step`."""
        write_tensors(self.folder / MODEL, weights(self.parts), {"step": step})

    def dataset(self, split: str = "validation") -> TokenDataset:
        """The data that the run was trained on. Raises UserError when it is not there any more."""
        return open_data(self.folder, split)


def weights(parts: Parts) -> dict[str, Tensor]:
    """All learned tensors, under `model.` and `guide.`."""
    tensors = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    return tensors | {f"guide.{name}": value for name, value in parts.guide.state_dict().items()}


def load_weights(parts: Parts, tensors: dict[str, Tensor], path: Path) -> None:
    """Puts `weights` back. Raises UserError naming `path` when names or shapes do not fit the configuration."""
    modules: dict[str, nn.Module] = {"model": parts.model, "guide": parts.guide}
    for prefix, module in modules.items():
        own = {
            name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")
        }
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise UserError(f"{path}: its weights do not fit the run's {CONFIG}: {first}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Tensors and a dictionary in one safetensors file, atomically."""
    header = {"format": FORMAT, "meta": json.dumps(meta)}
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises UserError when the file is missing, damaged or something else."""
    if not path.is_file():
        raise UserError(f"{path}: missing; the run folder is not complete")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if header.get("format") != FORMAT:
        raise UserError(f"{path}: a safetensors file, but not one of a pyro-ltm run")
    return tensors, json.loads(header["meta"])


def record_data(folder: Path, data: TokenDataset) -> None:
    """Notes in the run folder where its data lie and how to know them again."""
    entry = {"folder": str(data.folder.path.resolve()), "fingerprint": data.folder.fingerprint}
    write_text(folder / DATA, json.dumps(entry, indent=2) + "\n")


def open_data(folder: Path, split: str) -> TokenDataset:
    """The data recorded in a run folder. Raises UserError when they moved or changed."""
    path = folder / DATA
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: does not say what data it was trained on; name them with --data") from None
    except ValueError:
        raise UserError(f"{path}: damaged; name the data with --data") from None
    # A run that prepared its own data keeps them inside, and may have been moved as a whole.
    inside = folder / "data"
    data = TokenDataset(inside if inside.is_dir() else Path(entry["folder"]), split)
    if data.folder.fingerprint != entry["fingerprint"]:
        raise UserError(f"{data.folder.path}: not the data that {folder} was trained on; name other data with --data")
    return data


__all__ = ["Run", "load_weights", "open_data", "read_tensors", "record_data", "weights", "write_tensors"]
