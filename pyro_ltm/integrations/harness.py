"""EleutherAI's evaluation harness (`lm-eval`) as a client: a run of ours behind the three questions that it asks.

Thoughts always come from the context alone, so what the harness computes is a predictive figure, comparable with any
other model's:

- `loglikelihood`: log mean_k p(continuation | context, z_k), z_k from q fitted to the context; from the prior where
  the context is empty. `is_greedy` asks whether each token is the likeliest under that mixture.
- `loglikelihood_rolling`: the text in blocks, each after q fitted to the tokens before it, the first after the prior;
  the sum is a log-probability of the text.
- `generate_until`: one draw from q fitted to the prompt, then tokens one after the other.

The twin goes the same way with no thoughts to draw: its figures are an autoregressive model's.

Where tokens do not determine a text, its task has no figure by the word or the byte (`no_bytes` says why).
A context that is too long is cut from the left, as the harness does for other models; `contexts_cut` counts them.
Importing this module registers the model as `pyro-ltm`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyro_ltm.data.tokenizer.round_trip import RoundTrip
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.inference import continuation
from pyro_ltm.inference.codec import encoded_after
from pyro_ltm.model import DecodingOptions, sample_tokens
from pyro_ltm.noise import fold
from pyro_ltm.runs import Run
from pyro_ltm.scores.continuation import Context, Piece, Predictor, Tokens, windows

try:
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise UserError(
        f"the evaluation harness is not installed ({error.name} is missing): pip install -e '.[harness]' in the clone"
    ) from None

from pyro_ltm.integrations.harness_tasks import leave_out, load_tasks, quiet

Count = Callable[[int, float], None]
"""Called with the requests done and the nats a token so far (NaN where there are none)."""

MAX_NEW_TOKENS = 256
"""New tokens where a task names no number: the harness's own default."""

TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of that number in tasks; the first that is there counts."""

COMMON = ("do_sample", "temperature", "until", *TOKENS)
"""The rest of what a task may ask of generation, but for top_k and top_p."""

RESULTS = (
    *("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "config"),
    "task_hashes",
)
"""Those of the harness's results that say something of the model and the tasks."""


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """How a run answers the harness.

    Attributes:
        particles: draws K of the mixture under which continuations are scored.
        fast_steps: of each fit; None: the run's own.
        stride: tokens in a block of `loglikelihood_rolling`; 0: an eighth of the model's length.
        batch_size: sequences at a time; None, "auto": 16.
        max_batch_size: without effect; the harness hands it to every model.
        seed: of all noise.
    """

    particles: int = 16
    fast_steps: int | None = None
    stride: int = 0
    batch_size: int | str | None = None
    max_batch_size: int | None = None
    seed: int = 0


@register_model("pyro-ltm")
class HarnessModel(LM):
    """A run as the harness sees a model.

    Figures do not depend on batch size and order, but for rounding: noise is keyed by task, document and seed.

    Args:
        run: a run, or its folder. allow_code: as in `Run.load`.
        counting: begins to count a kind of request, of so many, and gives what is called with the progress.
        options: see `HarnessOptions`.

    Raises:
        UserError: the folder is no run, or a number is out of range.
    """

    def __init__(
        self,
        run: Run | Path | str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        allow_code: bool = False,
        counting: Callable[[str, int], Count] | None = None,
        **options: Any,
    ):
        super().__init__()
        self.run = (
            run if isinstance(run, Run) else Run.load(run, device=device or "cpu", dtype=dtype, allow_code=allow_code)
        )
        self.max_length = self.run.config.model.max_length
        how = HarnessOptions(**options)
        self.stride = int(how.stride) or max(1, self.max_length // 8)
        size = 16 if how.batch_size in (None, "auto") else int(how.batch_size)
        if min(int(how.particles), size) < 1 or not 0 < self.stride <= self.max_length:
            raise UserError(
                f"particles = {how.particles}, batch_size = {how.batch_size}, stride = {how.stride}: at least 1, and a "
                f"stride of at most the model's {self.max_length} tokens"
            )
        loop = self.run.loop.with_steps(how.fast_steps)
        self._predictor = Predictor(self.run.model, loop, int(how.particles), size, int(how.seed))
        self._device = self.run.device
        self._counting = counting or (lambda name, total: lambda done, nats: None)
        self.contexts_cut = 0
        self.round_trips: dict[str, RoundTrip] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that stands before every text."""
        return self.run.tokenizer.end_of_text

    def get_model_info(self) -> dict[str, Any]:
        """For the harness, which notes it with its results."""
        model, predictor = self.run.model, self._predictor
        return {
            **self.run.about,
            "model_num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "particles": predictor.particles if model.config.thoughts else 1,
            "fast_steps": predictor.loop.steps,
            "stride": self.stride,
            "contexts_cut": self.contexts_cut,
            "seed": predictor.seed,
        }

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Nats of each request, log p(continuation | context), and whether greedy decoding would write it."""
        blocks = []
        for request in requests:
            context, continuation = self._encode(*request.args)
            tokens = (self.eot_token_id, *context, *continuation)
            key = ("continuation", str(request.task_name), str(request.doc_id))
            blocks.append(self._windows(tokens, key, given=1 + len(context), stride=self.max_length))
            self.contexts_cut += len(context) > 0 and len(tokens) > self.max_length + 1
        return self._score("loglikelihood", requests, blocks)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Nats of each request, log p(text): every token from those before it."""
        blocks = []
        for request in requests:
            text = request.args[0]
            ids = self.run.tokenizer.encode(text)
            self.round_trips.setdefault(str(request.task_name), RoundTrip()).add(self.run.tokenizer, text, ids)
            tokens = (self.eot_token_id, *ids)
            key = ("text", str(request.task_name), str(request.doc_id))
            blocks.append(self._windows(tokens, key, given=1, stride=self.stride))
        return [nats for nats, _ in self._score("loglikelihood_rolling", requests, blocks)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The texts that the model writes after each prompt, up to the first of the strings in `until`.

        Where a prompt and its new tokens do not fit the model, the prompt is cut from the left, but to no less than
        half of the model's length; beyond that there are fewer new tokens.
        """
        asked: list[_Prompt] = []
        copies: Counter[Any] = Counter()
        for request in requests:
            prompt, options = request.args
            key = ("write", str(request.task_name), str(request.doc_id), prompt)
            # The harness repeats a request for several samples: each has noise of its own.
            copies[key] += 1
            asked.append(self._prompt(prompt, dict(options or {}), fold(*key, copies[key])))
        count = self._counting("generate_until", len(asked))
        written: dict[int, str] = {}
        alike: dict[Any, dict[Context, int]] = {}
        for place, one in enumerate(asked):
            alike.setdefault((len(one.context.tokens), one.new, one.decoding), {})[one.context] = place
        for places in alike.values():
            for contexts in self._predictor.batches(list(places)):
                some = [places[context] for context in contexts]
                for place, text in zip(some, self._write([asked[place] for place in some]), strict=True):
                    written[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
                count(len(written), float("nan"))
        return [written[place] for place in range(len(asked))]

    def _score(self, kind: str, requests: Sequence[Any], blocks: Sequence[Sequence[Piece]]) -> list[tuple[float, bool]]:
        """The sums over each request's blocks."""
        scored = iter(
            self._predictor.score(
                [piece for pieces in blocks for piece in pieces], self._counting(kind, sum(map(len, blocks)))
            )
        )
        found = []
        for request, pieces in zip(requests, blocks, strict=True):
            parts = [next(scored) for _ in pieces]
            answer = sum(part.log_likelihood for part in parts), all(part.is_greedy for part in parts)
            self.cache_hook.add_partial(kind, request.args, answer if kind == "loglikelihood" else answer[0])
            found.append(answer)
        return found

    def _windows(self, tokens: Tokens, key: tuple[str, ...], *, given: int, stride: int) -> list[Piece]:
        # By the distance from where scoring begins: a document's choices share their draws, also where their
        # contexts differ.
        def name(start: int) -> int:
            return fold(*key, start - given)

        return windows(tokens, name, given=given, length=self.max_length, stride=stride)

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both. Spaces that end the context go to the continuation, as the harness has it."""
        bare = context.rstrip()
        if bare:
            context, continuation = bare, context[len(bare) :] + continuation
        return encoded_after(self.run.tokenizer.encode, context, continuation)

    def _prompt(self, prompt: str, options: dict[str, Any], name: int) -> _Prompt:
        """A request, understood. Raises UserError for options that we do not know."""
        until = options.get("until") or []
        asked = next((int(options[key]) for key in TOKENS if options.get(key) is not None), MAX_NEW_TOKENS)
        temperature = float(options.get("temperature") or 0.0)
        if options.get("do_sample") is False:
            temperature = 0.0
        elif options.get("do_sample") and "temperature" not in options:
            temperature = 1.0
        known = {"top_k": 0, "top_p": 1.0}
        names = sorted({*COMMON, *known})
        if strange := [key for key in options if key not in names]:
            raise UserError(f"generation_kwargs: {strange[0]} is not known here; known are {', '.join(names)}")
        chosen = {key: options.get(key, default) for key, default in known.items()} if temperature else {}
        tokens = (self.eot_token_id, *self.run.tokenizer.encode(prompt))
        new = min(asked, max(self.max_length + 1 - len(tokens), self.max_length // 2))
        cut = tokens[-(self.max_length + 1 - new) :]
        self.contexts_cut += len(cut) < len(tokens)
        decoding = DecodingOptions(temperature=temperature, **chosen)
        return _Prompt(Context(cut, name), new, decoding, [until] if isinstance(until, str) else list(until))

    def _write(self, prompts: Sequence[_Prompt]) -> list[str]:
        """Texts after prompts of one length, which get as many tokens, drawn in the same way."""
        contexts = [prompt.context for prompt in prompts]
        device, seed, length = self._device, self._predictor.seed, len(contexts[0].tokens)
        end = self.eot_token_id

        def text(prompt: _Prompt, row: list[int]) -> str:
            new = row[: row.index(end)] if end in row else row
            return continuation(self.run.tokenizer, prompt.context.tokens, new)

        def finished(tokens: torch.Tensor) -> torch.Tensor:
            rows = zip(prompts, tokens.tolist(), strict=True)
            return torch.tensor([end in row or prompt.ends(text(prompt, row)) for prompt, row in rows], device=device)

        written = sample_tokens(
            self.run.model.decoder,
            self._predictor.thoughts(contexts, 1)[0],
            torch.tensor([context.tokens for context in contexts], device=device),
            prompts[0].new,
            sampler=prompts[0].decoding,
            end=end,
            generator=[torch.Generator(device).manual_seed(fold(seed, "tokens", one.name)) for one in contexts],
            stop=finished,
        )
        return [prompt.cut(text(prompt, row[length:])) for prompt, row in zip(prompts, written.tolist(), strict=True)]


@dataclass(frozen=True)
class _Prompt:
    """A prompt, the new tokens that it may get, how they are drawn, and the strings that end them."""

    context: Context
    new: int
    decoding: DecodingOptions
    until: list[str] = field(default_factory=list)

    def ends(self, text: str) -> bool:
        """Whether one of the strings is in it."""
        return self.cut(text) != text

    def cut(self, text: str) -> str:
        """`text` up to the first string that ends it."""
        return text[: min((text.find(stop) for stop in self.until if stop and stop in text), default=len(text))]


def run_harness(
    model: HarnessModel,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    bootstrap_iters: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs tasks of the harness on `model`; nothing that it prints or logs reaches the terminal.

    Args:
        tasks: names of tasks, groups or tags, patterns of these, or YAML files.
        include_path: a folder with more task files.
        num_fewshot: examples before each question; None: the task's own number.
        limit: only so many documents of each task.
        bootstrap_iters: resamples for standard errors that have no closed form.
        seed: of the choice of examples, and of resamples.

    Returns:
        The results of `simple_evaluate` that `RESULTS` names, `no_bytes` by task, and `lm_eval_version`.

    Raises:
        UserError: a task is not known or cannot be loaded.
    """
    with quiet():
        loaded, manager = load_tasks(tasks, include_path)
        try:
            results = lm_eval.simple_evaluate(
                model=model,
                tasks=loaded,
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=limit,
                bootstrap_iters=bootstrap_iters,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed % (1 << 32),
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except ValueError as error:  # what the harness says of tasks that it will not run
            raise UserError(f"--tasks {','.join(tasks)}: {one_line(error, 300)}") from error
    figures = {name: value for name, value in results.items() if name in RESULTS}
    no_bytes = {name: why for name, found in model.round_trips.items() if (why := found.why_no_bytes)}
    leave_out(figures, no_bytes)
    return figures | {"no_bytes": no_bytes, "lm_eval_version": lm_eval.__version__}


__all__ = ["HarnessModel", "run_harness"]
