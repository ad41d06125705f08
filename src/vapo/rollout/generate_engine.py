"""A rollout engine on transformers' own `generate`: slower than the torch engine, for every decoder that has one.

The model uses its own cache: keys and values, recurrent states, convolutions. So this engine samples from models that
the torch engine refuses: recurrent and hybrid ones, attention in chunks, caches of another form.

Prompts of equal length run together, without padding; a batch runs until its last row has ended. As in the torch
engine, the randomness of a sample is a hash of (seed, token number). Rows are computed in multiples of 16, so logprobs
do not depend on the other rows where the matrix library sums all such numbers of rows alike (MKL with AVX-512); else
they agree to rounding, about 1e-6 in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vapo.errors import ConfigError, DivergedError, ModelError
from vapo.rollout.decoder import check_request, context_of, copy_weights
from vapo.rollout.draws import draw_tokens, uniforms
from vapo.rollout.kv_cache import round_up
from vapo.rollout.row_counts import ROW_BUCKET
from vapo.types import Completion, Decoding, Prompt

_PROGRESS_STEPS = 64


class GenerateEngine:
    """Samples from a `transformers` causal language model that lives in this process, by the model's own `generate`.

    `model` may be the very policy that is being trained: `generate` switches it to eval mode and back and keeps no
    graph; `load_weights` with the model's own tensors copies nothing. `slots` is how many sequences run at a time.
    Settings of the model's generation config (penalties, suppressed tokens) are not applied: what is sampled from is
    the policy.

    Raises `ModelError` for encoder-decoders, models without `generate`, and any whose step-by-step logits differ from
    those of a full forward pass.
    """

    exact = True

    def __init__(self, model: nn.Module, *, slots: int = 128, device: torch.device | str | None = None) -> None:
        if slots < 1:
            raise ConfigError(f"GenerateEngine needs at least one slot, got slots={slots}.")
        config, name = getattr(model, "config", None), type(model).__name__
        if config is None or not hasattr(config, "get_text_config") or not hasattr(model, "generate"):
            raise ModelError(f"GenerateEngine samples from transformers models with `generate`; {name} has none.")
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{name} is an encoder-decoder; GenerateEngine samples from decoder-only models.")
        self.slots = slots
        self._model: Any = model if device is None else model.to(device)
        self._context = context_of(config.get_text_config())
        self._vocab_size: int = self._model.get_input_embeddings().weight.shape[0]
        self._version = 0
        self._check_against_full_forward()

    @property
    def version(self) -> int:
        """The version passed to the last `load_weights`; 0 before."""
        return self._version

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy `weights`, named as in the model's `state_dict`, into the model in place; see `TorchEngine`."""
        copy_weights(self._model, list(weights))
        self._version = version

    def generate(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; see `RolloutEngine.generate`. Raises as `TorchEngine.generate` does."""
        check_request(prompts, how, seeds, context=self._context, vocab_size=self._vocab_size)
        by_length: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt.token_ids), []).append(number)
        done: dict[int, Completion] = {}
        for same in by_length.values():
            for start in range(0, len(same), self.slots):
                numbers = same[start : start + self.slots]
                earlier = sum(len(completion.token_ids) for completion in done.values())

                def report(draw: _Draw, before: tuple[int, int] = (len(done), earlier)) -> None:
                    if on_progress:
                        on_progress(before[0] + draw.num_finished, before[1] + draw.num_tokens)

                draw = self._run([prompts[n] for n in numbers], how, [seeds[n] for n in numbers], report)
                report(draw)
                for row, number in enumerate(numbers):
                    done[number] = self._completion(draw, row, prompts[number])
        return [done[number] for number in range(len(prompts))]

    def close(self) -> None:
        """Do nothing: the engine keeps nothing between calls."""

    def _run(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[_Draw], None] | None = None,
        *,
        keep_logits: bool = False,
    ) -> _Draw:
        """Sample for prompts of one length."""
        more = round_up(len(prompts), ROW_BUCKET) - len(prompts)
        ids = torch.tensor([p.token_ids for p in [*prompts, *[prompts[0]] * more]], device=self._model.device)
        draw = _Draw(how, [*seeds, *[seeds[0]] * more], len(prompts), ids.device, on_progress, keep_logits)
        with self._borrowed_model():
            self._model.generate(
                inputs=ids,
                attention_mask=torch.ones_like(ids),
                # _Draw masks all tokens but the one it drew, so greedy search takes that one
                generation_config=GenerationConfig(max_new_tokens=how.max_tokens, do_sample=False, pad_token_id=0),
                logits_processor=LogitsProcessorList([draw]),
                stopping_criteria=StoppingCriteriaList([_AllEnded(draw)]),
            )
        return draw

    def _completion(self, draw: _Draw, row: int, prompt: Prompt) -> Completion:
        length = int(draw.lengths[row])
        logprobs = draw.logprobs[row, :length].tolist()
        if any(value != value for value in logprobs):
            raise DivergedError(
                f"The policy's logits are not numbers (weights of version {self._version}, prompt {prompt.id!r}). Look "
                "at the update before this version: loss, gradient norm, learning rate."
            )
        return Completion(
            token_ids=tuple(draw.tokens[row, :length].tolist()),
            logprobs=tuple(logprobs),
            finish_reason="stop" if bool(draw.stopped[row]) else "length",
            policy_version=self._version,
        )

    @contextmanager
    def _borrowed_model(self) -> Iterator[None]:
        """Within: eval mode, no graph, a default generation config. Afterwards the model is as it was before."""
        flags = [(module, module.training) for module in self._model.modules()]
        own = self._model.generation_config
        try:
            self._model.eval()
            self._model.generation_config = GenerationConfig()
            with torch.no_grad(), torch.autocast(self._model.device.type, enabled=False):
                yield
        finally:
            self._model.generation_config = own
            for module, training in flags:
                module.training = training

    def _check_against_full_forward(self) -> None:
        """Raise ModelError if the model's own decoding gives other logits than a full forward pass."""
        name, gap, scale = type(self._model).__name__, 0.0, 1.0
        generator = torch.Generator().manual_seed(0)
        try:
            for length in (3, 7):
                count = max(1, min(14, self._context - length))
                ids = tuple(torch.randint(self._vocab_size, (length,), generator=generator).tolist())
                draw = self._run([Prompt("check", "", token_ids=ids)], Decoding(count, ()), [length], keep_logits=True)
                with self._borrowed_model():
                    whole = torch.tensor([[*ids, *draw.tokens[0].tolist()]], device=self._model.device)
                    expected = self._model(input_ids=whole[:, :-1], use_cache=False).logits[0, length - 1 :].float()
                gap = max(gap, (torch.stack(draw.logits) - expected).abs().max().item())
                scale = max(scale, expected.abs().max().item())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an unknown architecture may raise anything
            raise ModelError(
                f"{name} cannot be sampled from by its own `generate` ({type(error).__name__}: {error}). Take another "
                "model."
            ) from error
        tolerance = (1e-3 if self._model.dtype == torch.float32 else 0.1) * scale
        if gap > tolerance:  # a NaN passes: the weights may not be loaded yet
            raise ModelError(
                f"The cached decoding of {name} in transformers differs from a full forward pass by {gap:.2g} in the "
                f"logits (allowed: {tolerance:.2g}), so its samples would be wrong. Take another model."
            )


class _Draw(LogitsProcessor):
    """Draws and records each row's next token, and masks all others, so that `generate` takes it."""

    def __init__(
        self,
        how: Decoding,
        seeds: Sequence[int],
        rows: int,
        device: torch.device,
        on_progress: Callable[[_Draw], None] | None,
        keep_logits: bool,
    ) -> None:
        self._how, self._rows, self._on_progress, self._keep_logits = how, rows, on_progress, keep_logits
        self._stops = torch.tensor(how.stop_token_ids, dtype=torch.int64, device=device)
        self._uniforms = uniforms(seeds, how.max_tokens, device)
        shape = (len(seeds), how.max_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
        self.lengths = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        self.stopped = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        self.logits: list[Tensor] = []
        """Of the first row at every step, with `keep_logits`."""
        self._step = 0

    @property
    def ended(self) -> Tensor:
        """Which rows have stopped or reached the length limit."""
        return self.stopped | (self.lengths >= self._how.max_tokens)

    @property
    def num_finished(self) -> int:
        """Samples that have ended."""
        return int(self.ended[: self._rows].sum())

    @property
    def num_tokens(self) -> int:
        """Tokens drawn so far."""
        return int(self.lengths[: self._rows].sum())

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._step >= self._how.max_tokens:  # generate may call once more before it checks the stopping criteria
            return scores
        if self._keep_logits:
            self.logits.append(scores[0].float().clone())
        u = self._uniforms[:, self._step]
        tokens, logprobs = draw_tokens(scores, u, temperature=self._how.temperature, top_p=self._how.top_p)
        self.tokens[:, self._step], self.logprobs[:, self._step] = tokens, logprobs
        self.lengths += ~self.ended
        if len(self._stops):
            is_stop = (tokens[:, None] == self._stops).any(dim=1)
            self.stopped |= is_stop & (self.lengths == self._step + 1)
        self._step += 1
        if self._on_progress and self._step % _PROGRESS_STEPS == 0:
            self._on_progress(self)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)


class _AllEnded(StoppingCriteria):
    """Ends `generate` when every row has ended."""

    def __init__(self, draw: _Draw) -> None:
        self._draw = draw

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return self._draw.ended
