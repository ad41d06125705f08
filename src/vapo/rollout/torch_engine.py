"""A rollout engine on plain PyTorch: any decoder-only `transformers` model, CPU or CUDA, no other package.

One `generate` call is a `_Run`: prompts wait in order. When rows of the batch become free, waiting samples are
prefilled (equal neighbours once) and join. Every step feeds each row its last token and draws the next one. A row
becomes free at a stop token or at the length limit. Prefill covers a prompt without its last token, which the first
decode step feeds: so all logits that are sampled from come from the same computation.

A sample's tokens do not depend on the other samples. The randomness is a hash of (seed, token number), see `draws`.
The arithmetic stays the same too: a step computes a number of rows that the CPU's matrix library sums alike
(`exact_row_counts`), neither attention's width nor how it is cut changes sums (`attention_width`, `reaches`), and
prompts are prefilled only with others of the same padded length, or alone where the library does not sum all numbers
of rows alike.

What this guarantees, on one machine:

- Logprobs are bitwise equal for dense models with SDPA on a CPU, whatever the other samples and `slots` are, as long as
  `exact_row_counts` has a count for the slots. With AVX-512 and MKL it has. With AVX2 and MKL it has for small layers;
  products with 128 inputs and 128 outputs, or with 1024 inputs, change their sums at 64 rows.
- Everywhere else tokens are equal and logprobs agree to rounding, about 1e-6 in float32: more slots than that, other
  libraries, eager attention, experts that get another number of tokens, inner sizes from about 1024 with several
  threads, GPUs. There a token differs only if its uniform number is that close to the boundary of two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vapo.errors import ConfigError, DivergedError
from vapo.rollout.decoder import Decoder, copy_weights, padded_length
from vapo.rollout.draws import draw_tokens, uniforms
from vapo.rollout.kv_cache import attention_width
from vapo.rollout.ragged_attention import Reach
from vapo.types import Completion, Decoding, Prompt

_FIRST_RESPONSE_CAPACITY = 256  # columns reserved for responses at first; doubled when a row needs more
_PROGRESS_STEPS = 64
_RUN_STEPS = 16  # steps for which attention is cut the same way


class TorchEngine:
    """Samples from a `transformers` causal language model that lives in this process.

    `model` may be the very policy that is being trained: `generate` switches it to eval mode and back, keeps
    no graph, and leaves no tensor of its own in it; `load_weights` with the model's own tensors copies
    nothing. `slots` is how many sequences run at a time, `prefill_tokens` how many prompt tokens (padding
    included) one forward pass takes, `graphs` whether steps on a GPU may be replayed as CUDA graphs; `on_alarm`
    is told if they are given up. The cache stays allocated between calls, until `close`.

    Raises `ModelError` for models it cannot sample from: recurrent and hybrid ones, encoder-decoders,
    chunked attention, and any whose step-by-step logits differ from those of a full forward pass.
    """

    exact = True

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int = 128,
        device: torch.device | str | None = None,
        prefill_tokens: int = 8192,
        graphs: bool = True,
        on_alarm: Callable[[str], None] | None = None,
    ) -> None:
        if slots < 1 or prefill_tokens < 1:
            raise ConfigError(
                f"TorchEngine needs at least one slot and one prefill token, got slots={slots}, "
                f"prefill_tokens={prefill_tokens}."
            )
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.num_prefilled_tokens = 0
        """Prompt tokens that went through the model's prefill so far, padding not counted."""
        model = model if device is None else model.to(device)
        self._decoder = Decoder(model, slots=slots, graphs=graphs, on_alarm=on_alarm)
        self._version = 0
        self._decoder.check_against_full_forward()

    @property
    def uses_graphs(self) -> bool:
        """Whether decode steps are replayed as CUDA graphs; `graphs_fault` says why not."""
        return self._decoder.uses_graphs

    @property
    def graphs_fault(self) -> str:
        """Why CUDA graphs were tried and given up; empty otherwise."""
        return self._decoder.graphs_fault

    @property
    def version(self) -> int:
        """The version passed to the last `load_weights`; 0 before."""
        return self._version

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy `weights`, named as in the model's `state_dict`, into the model in place.

        All of them or none: names and shapes are checked before the first copy. One name of each set of tied
        tensors is enough. Other dtypes and devices are converted. Raises `ModelError`.
        """
        copy_weights(self._decoder.model, list(weights))
        self._version = version

    def generate(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; see `RolloutEngine.generate`.

        Raises what `check_request` raises, before sampling; and `DivergedError` if the model's logits are not numbers.
        """
        self._decoder.check_request(prompts, how, seeds)
        if not prompts:
            return []
        with self._decoder.borrowed_model():
            try:
                run = _Run(self._decoder, prompts, how, seeds, self.slots, self.prefill_tokens, self._version)
                return run.complete(on_progress)
            except BaseException:
                self._decoder.release()  # it may hold NaN, which no mask hides
                raise
            finally:
                self.num_prefilled_tokens += self._decoder.take_prefilled_count()

    def close(self) -> None:
        """Free the cache; the model stays as it is."""
        self._decoder.release()


@dataclass
class _Sample:
    """A sample that is being decoded in a row of the batch. `output_row` is its row in the output buffers, for good."""

    number: int
    output_row: int
    prefix: int
    """Prompt tokens in the cache: the sample feeds position `prefix` at step `born`."""
    born: int
    """The step at which it joined the batch."""


class _Run:
    """One `generate` call.

    `_state` (4, rows) int64 has what a step needs of each row: the token to feed, its position, 1 if the row is in
    use, and the offset that added to the position gives the index in the output buffers. A step computes unused rows
    too, at position 0, and writes them to an output row that is never read: removing a row costs more than computing
    it. `_compact` removes them in whole buckets.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        slots: int,
        prefill_tokens: int,
        version: int,
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._how = how
        self._seeds = seeds
        self._prefill_tokens = prefill_tokens
        self._version = version

        rows, device = decoder.rows, decoder.device
        longest = max(len(prompt.token_ids) for prompt in prompts)
        self._limit = longest + how.max_tokens
        prompt_columns = padded_length(longest)
        decoder.reserve(max(prompt_columns, min(self._limit, prompt_columns + _FIRST_RESPONSE_CAPACITY)))
        self._stops = torch.tensor(how.stop_token_ids, dtype=torch.int64, device=device)
        self._state = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self._state[3] = rows * how.max_tokens
        self._tokens = torch.zeros((rows + 1) * how.max_tokens, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(len(self._tokens), dtype=torch.float32, device=device)
        self._uniforms = torch.zeros(len(self._tokens), dtype=torch.float64, device=device)

        self._now = 0  # steps taken
        self._next = 0  # the first sample still waiting
        self._slots = min(slots, len(prompts))
        self._rows: dict[int, _Sample] = {}  # rows in use
        self._free_output_rows = list(range(rows))
        self._kept_prompt: tuple[int, ...] | None = None  # in the cache's spare row
        self._batch = 0  # rows that a step computes
        self._reach = 0  # the row with the longest sequence feeds position _now + _reach
        self._deadline = 0  # the step after which the next row reaches its length limit
        self._runs: tuple[Reach, ...] = ()
        self._runs_until = 0  # the step from which they do not hold
        self._done: dict[int, Completion] = {}
        self._num_tokens = 0

    def complete(self, on_progress: Callable[[int, int], None] | None) -> list[Completion]:
        """Sample everything; `on_progress` gets the counts of finished samples and of sampled tokens."""
        while len(self._done) < len(self._prompts):
            if self._worth_admitting():
                self._admit()
            stopped_rows = self._step()
            finished = self._now >= self._deadline or (stopped_rows is not None and bool(stopped_rows.any()))
            if finished:
                self._retire(stopped_rows)
            if on_progress and (finished or self._now % _PROGRESS_STEPS == 0):
                on_progress(len(self._done), self._num_tokens)
        return [self._done[i] for i in range(len(self._prompts))]

    def _step(self) -> Tensor | None:
        """Feed and sample one token per row. Returns which rows drew a stop token, None if there are no stop tokens."""
        length = self._now + self._reach + 1
        if length > self._decoder.cache.capacity:
            self._grow(length)
        fed, positions, used, base = self._state[:, : self._batch]
        logits = self._decoder.step(fed, positions, attention_width(length), self._cut())
        at = base + positions
        u = self._uniforms.index_select(0, at)
        tokens, logprobs = draw_tokens(logits, u, temperature=self._how.temperature, top_p=self._how.top_p)
        self._tokens.index_copy_(0, at, tokens)
        self._logprobs.index_copy_(0, at, logprobs)
        fed.copy_(tokens)
        positions.add_(used)
        self._now += 1
        self._num_tokens += len(self._rows)
        if not len(self._stops):
            return None
        return (tokens[:, None] == self._stops).any(dim=1) & used.bool()

    def _cut(self) -> tuple[Reach, ...]:
        """How this step's attention is cut into runs of rows: made anew when rows have changed, and every few steps,
        in which sequences grow."""
        if self._now >= self._runs_until:
            self._runs_until = self._now + _RUN_STEPS
            lengths = [0] * self._batch
            for row, s in self._rows.items():
                lengths[row] = self._runs_until + s.prefix - s.born
            self._runs = self._decoder.runs(lengths)
        return self._runs

    def _grow(self, length: int) -> None:
        """Double the cache's columns, up to what the longest possible sample needs."""
        self._decoder.reserve(min(self._limit, max(length, 2 * self._decoder.cache.capacity)))
        self._reset_masks(sorted(self._rows))

    def _worth_admitting(self) -> bool:
        """Whether to prefill now, or wait for more free rows: one sample costs nearly as much as many."""
        waiting = len(self._prompts) - self._next
        free = self._slots - len(self._rows)
        return waiting > 0 and (free >= min(waiting, max(1, self._slots // 8)) or not self._rows)

    def _admit(self) -> None:
        """Put waiting samples into the free rows; neighbours with equal prompts share one prefill."""
        free = [row for row in range(self._slots) if row not in self._rows]
        first, last = self._next, min(self._next + len(free), len(self._prompts))
        self._next = last
        rows = free[: last - first]
        for number, row in zip(range(first, last), rows, strict=True):
            prefix = len(self._prompts[number].token_ids) - 1
            self._rows[row] = _Sample(number, self._free_output_rows.pop(), prefix, self._now)
        self._store_prompts(first, last, rows)

        samples = [self._rows[row] for row in rows]
        max_tokens, device = self._how.max_tokens, self._decoder.device
        at = self._decoder.indices(rows)
        self._state[:, at] = torch.tensor(
            [
                [self._prompts[s.number].token_ids[-1] for s in samples],
                [s.prefix for s in samples],
                [1] * len(samples),
                [s.output_row * max_tokens - s.prefix for s in samples],
            ],
            dtype=torch.int64,
            device=device,
        )
        output_rows = self._decoder.indices([s.output_row for s in samples])
        seeds = [self._seeds[s.number] for s in samples]
        self._uniforms.view(-1, max_tokens)[output_rows] = uniforms(seeds, max_tokens, device)
        self._decoder.reset_rows(at, self._state[1, at])
        self._measure()

    def _store_prompts(self, first: int, last: int, rows: Sequence[int]) -> None:
        """Store the prompts of samples first to last-1 in their rows of the cache, and keep one that comes again."""
        groups: list[tuple[tuple[int, ...], list[int]]] = []
        for number, row in zip(range(first, last), rows, strict=True):
            prompt = self._prompts[number].token_ids
            if groups and groups[-1][0] == prompt:
                groups[-1][1].append(row)
            else:
                groups.append((prompt, [row]))
        if groups[0][0] == self._kept_prompt:
            prompt, targets = groups.pop(0)
            source = self._decoder.indices([self._decoder.spare_row] * len(targets))
            self._decoder.cache.copy_rows(source, self._decoder.indices(targets), len(prompt) - 1)
        if groups and last < len(self._prompts) and self._prompts[last].token_ids == groups[-1][0]:
            self._kept_prompt = groups[-1][0]
            groups[-1][1].append(self._decoder.spare_row)

        by_length: dict[int, list[tuple[tuple[int, ...], list[int]]]] = {}
        for prompt, targets in groups:
            if len(prompt) > 1:  # else the first step feeds the whole prompt
                by_length.setdefault(padded_length(len(prompt) - 1), []).append((prompt[:-1], targets))
        for length, same in sorted(by_length.items()):
            count = max(1, self._prefill_tokens // length) if self._decoder.prefills_many else 1
            for i in range(0, len(same), count):
                prompts, targets = zip(*same[i : i + count], strict=True)
                self._decoder.prefill(prompts, targets)

    def _retire(self, stopped_rows: Tensor | None) -> None:
        """Remove the samples that drew a stop token or reached the limit; compact the batch if that saves a bucket."""
        stopped = set(stopped_rows.nonzero().flatten().tolist()) if stopped_rows is not None else set()
        max_tokens = self._how.max_tokens
        ended = [row for row, s in self._rows.items() if row in stopped or self._now - s.born >= max_tokens]
        for row in ended:
            sample_ = self._rows.pop(row)
            start = sample_.output_row * max_tokens
            end = start + self._now - sample_.born
            logprobs = self._logprobs[start:end].tolist()
            if any(value != value for value in logprobs):
                raise DivergedError(
                    f"The policy's logits are not numbers (weights of version {self._version}, prompt "
                    f"{self._prompts[sample_.number].id!r}). Look at the update before this version: loss, "
                    "gradient norm, learning rate."
                )
            self._done[sample_.number] = Completion(
                token_ids=tuple(self._tokens[start:end].tolist()),
                logprobs=tuple(logprobs),
                finish_reason="stop" if row in stopped else "length",
                policy_version=self._version,
            )
            self._free_output_rows.append(sample_.output_row)
        self._clear(ended)
        if self._next == len(self._prompts) and self._rows:
            self._compact()
        self._measure()

    def _compact(self) -> None:
        """Move the last rows into unused ones if the batch then needs fewer buckets."""
        count = len(self._rows)
        if self._decoder.row_count(count) >= self._batch:
            return
        moved = [row for row in sorted(self._rows) if row >= count]
        holes = [row for row in range(count) if row not in self._rows]
        if not moved:
            return
        source, target = self._decoder.indices(moved), self._decoder.indices(holes)
        self._decoder.cache.copy_rows(source, target, attention_width(self._now + self._reach))
        self._state[:, target] = self._state[:, source]
        for old, new in zip(moved, holes, strict=True):
            self._rows[new] = self._rows.pop(old)
        self._reset_masks(holes)
        self._clear(moved)

    def _clear(self, rows: Sequence[int]) -> None:
        """Mark rows as unused: position 0, whose column is never masked, and the output row that is never read."""
        at = self._decoder.indices(rows)
        self._state[:3, at] = 0
        self._state[3, at] = self._decoder.rows * self._how.max_tokens
        self._decoder.reset_rows(at, torch.zeros_like(at))

    def _reset_masks(self, rows: Sequence[int]) -> None:
        at = self._decoder.indices(rows)
        self._decoder.reset_rows(at, self._state[1, at])

    def _measure(self) -> None:
        """Compute batch size, longest position and next deadline, which hold until rows are added or removed."""
        self._runs_until = self._now
        if not self._rows:
            return
        self._batch = self._decoder.row_count(max(self._rows) + 1)
        self._reach = max(s.prefix - s.born for s in self._rows.values())
        self._deadline = min(s.born for s in self._rows.values()) + self._how.max_tokens
