"""A rollout engine on plain PyTorch: any decoder-only `transformers` model, CPU or CUDA, no other package.

One `generate` call is a `_Run`: prompts wait in order; as rows of the batch become free, waiting samples are
prefilled (equal neighbours once) and join; every step feeds each row its last token and draws the next one;
rows leave at a stop token or at their limit. Prefill covers a prompt without its last token, which the first
decode step feeds like any other: all logits that are sampled from come from the same computation.

A sample's tokens do not depend on its company. The randomness is a hash of (seed, token number), see
`sampling`; and the arithmetic is kept the same by never running fewer than 16 rows (below, matrix libraries
take other kernels, whose sums run in another order), by widths that do not change sums (`attention_width`),
and by prefilling prompts only with others of the same padded length. For dense models with SDPA on CPU this
makes logprobs bitwise equal; where a library sums differently all the same (eager attention, experts that
get another number of tokens, inner sizes from about 1024 with several threads, GPUs) they agree to rounding,
about 1e-6 in float32, and a token could differ only if its uniform fell that close to a boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vapo.errors import ConfigError, DivergedError
from vapo.rollout.decoder import ROW_BUCKET, Decoder, copy_weights, padded_length
from vapo.rollout.draws import check_decoding, sample, uniforms
from vapo.rollout.kv_cache import attention_width, round_up
from vapo.types import Completion, Decoding, Prompt

_FIRST_RESPONSE_CAPACITY = 256  # columns reserved for responses at first; doubled when a row needs more
_PROGRESS_STEPS = 64


class TorchEngine:
    """Samples from a `transformers` causal language model that lives in this process.

    `model` may be the very policy that is being trained: `generate` switches it to eval mode and back, keeps
    no graph, and leaves no tensor of its own in it; `load_weights` with the model's own tensors copies
    nothing. `slots` is how many sequences run at a time, `prefill_tokens` how many prompt tokens (padding
    included) one forward pass takes. The cache stays allocated between calls, until `close`.

    Raises `ModelError` for models it cannot sample from: recurrent and hybrid ones, encoder-decoders,
    chunked attention, and any whose step-by-step logits differ from those of a full forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int = 128,
        device: torch.device | str | None = None,
        prefill_tokens: int = 8192,
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
        self._decoder = Decoder(model if device is None else model.to(device), rows=round_up(slots, ROW_BUCKET))
        self._version = 0
        self._decoder.check_against_full_forward()

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

        Raises `ValueError` if there is not one seed per prompt, `DataError` for prompts without tokens or
        with tokens the model does not know, `ConfigError` for a `how` that makes no sense or does not fit
        the model's context, all before sampling; and `DivergedError` if the model's logits are not numbers.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"one seed per prompt: got {len(seeds)} seeds for {len(prompts)} prompts")
        check_decoding(how)
        for prompt in prompts:
            self._decoder.check_prompt(prompt, how.max_tokens)
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
    """A sample in a row of the batch. `lane` is its row in the output buffers, which never moves."""

    number: int
    lane: int
    prefix: int
    """Prompt tokens before the first fed one: it feeds position `prefix` at step `born`."""
    born: int


class _Run:
    """One `generate` call.

    `_state` (4, rows) int64 is what a step needs of each row: the token to feed, its position, 1 if the row
    is in use, and where token 0 of its output would lie if it fed position 0. Rows not in use are computed
    along, at position 0, into a lane that nobody reads: removing them would cost more than they do, until
    a whole bucket of them can go.
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
        self._rows: dict[int, _Sample] = {}
        self._free_lanes = list(range(rows))
        self._parked: tuple[int, ...] | None = None
        self._batch = 0  # rows computed per step
        self._reach = 0  # the longest row feeds position now + reach
        self._deadline = 0  # the step after which the next row is at its limit
        self._done: dict[int, Completion] = {}
        self._num_tokens = 0

    def complete(self, on_progress: Callable[[int, int], None] | None) -> list[Completion]:
        """Sample everything; `on_progress` gets the counts of finished samples and of sampled tokens."""
        while len(self._done) < len(self._prompts):
            if self._worth_admitting():
                self._admit()
            hit = self._step()
            finished = self._now >= self._deadline or (hit is not None and bool(hit.any()))
            if finished:
                self._retire(hit)
            if on_progress and (finished or self._now % _PROGRESS_STEPS == 0):
                on_progress(len(self._done), self._num_tokens)
        return [self._done[i] for i in range(len(self._prompts))]

    def _step(self) -> Tensor | None:
        """Feed and sample one token per row; which rows of the batch drew a stop token, if any can."""
        length = self._now + self._reach + 1
        if length > self._decoder.cache.capacity:
            self._grow(length)
        fed, positions, used, base = self._state[:, : self._batch]
        logits = self._decoder.step(fed, positions, attention_width(length))
        place = base + positions
        u = self._uniforms.index_select(0, place)
        tokens, logprobs = sample(logits, u, temperature=self._how.temperature, top_p=self._how.top_p)
        self._tokens.index_copy_(0, place, tokens)
        self._logprobs.index_copy_(0, place, logprobs)
        fed.copy_(tokens)
        positions.add_(used)
        self._now += 1
        self._num_tokens += len(self._rows)
        if not len(self._stops):
            return None
        return (tokens[:, None] == self._stops).any(dim=1) & used.bool()

    def _grow(self, length: int) -> None:
        """Double the cache's columns, up to what the longest possible sample needs."""
        self._decoder.reserve(min(self._limit, max(length, 2 * self._decoder.cache.capacity)))
        rows = sorted(self._rows)
        self._reset_masks(rows)

    def _worth_admitting(self) -> bool:
        """Whether to prefill now: a forward pass for one sample costs nearly as much as one for many."""
        waiting = len(self._prompts) - self._next
        free = self._slots - len(self._rows)
        return waiting > 0 and (free >= min(waiting, max(1, self._slots // 8)) or not self._rows)

    def _admit(self) -> None:
        """Fill the free rows with waiting samples; equal neighbours share one prefill."""
        free = [row for row in range(self._slots) if row not in self._rows]
        first, last = self._next, min(self._next + len(free), len(self._prompts))
        self._next = last
        rows = free[: last - first]
        for number, row in zip(range(first, last), rows, strict=True):
            prefix = len(self._prompts[number].token_ids) - 1
            self._rows[row] = _Sample(number, self._free_lanes.pop(), prefix, self._now)
        self._store_prompts(first, last, rows)

        samples = [self._rows[row] for row in rows]
        max_tokens, device = self._how.max_tokens, self._decoder.device
        at = self._decoder.indices(rows)
        self._state[:, at] = torch.tensor(
            [
                [self._prompts[s.number].token_ids[-1] for s in samples],
                [s.prefix for s in samples],
                [1] * len(samples),
                [s.lane * max_tokens - s.prefix for s in samples],
            ],
            dtype=torch.int64,
            device=device,
        )
        lanes = self._decoder.indices([s.lane for s in samples])
        seeds = [self._seeds[s.number] for s in samples]
        self._uniforms.view(-1, max_tokens)[lanes] = uniforms(seeds, max_tokens, device)
        self._decoder.reset_rows(at, self._state[1, at])
        self._measure()

    def _store_prompts(self, first: int, last: int, rows: Sequence[int]) -> None:
        """Bring the prompts of samples first..last-1 into their rows of the cache."""
        groups: list[tuple[tuple[int, ...], list[int]]] = []
        for number, row in zip(range(first, last), rows, strict=True):
            prompt = self._prompts[number].token_ids
            if groups and groups[-1][0] == prompt:
                groups[-1][1].append(row)
            else:
                groups.append((prompt, [row]))
        if groups[0][0] == self._parked:
            prompt, targets = groups.pop(0)
            source = self._decoder.indices([self._decoder.parking] * len(targets))
            self._decoder.cache.copy_rows(source, self._decoder.indices(targets), len(prompt) - 1)
        if groups and last < len(self._prompts) and self._prompts[last].token_ids == groups[-1][0]:
            self._parked = groups[-1][0]
            groups[-1][1].append(self._decoder.parking)

        by_length: dict[int, list[tuple[tuple[int, ...], list[int]]]] = {}
        for prompt, targets in groups:
            if len(prompt) > 1:  # else there is nothing before the token that the first step feeds
                by_length.setdefault(padded_length(len(prompt) - 1), []).append((prompt[:-1], targets))
        for length, same in sorted(by_length.items()):
            count = max(1, self._prefill_tokens // length)
            for i in range(0, len(same), count):
                prompts, targets = zip(*same[i : i + count], strict=True)
                self._decoder.prefill(prompts, targets)

    def _retire(self, hit: Tensor | None) -> None:
        """Take out the rows that drew a stop token or are at their limit; close ranks if that saves a bucket."""
        stopped = set(hit.nonzero().flatten().tolist()) if hit is not None else set()
        max_tokens = self._how.max_tokens
        gone = [row for row, s in self._rows.items() if row in stopped or self._now - s.born >= max_tokens]
        for row in gone:
            sample_ = self._rows.pop(row)
            start = sample_.lane * max_tokens
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
            self._free_lanes.append(sample_.lane)
        self._clear(gone)
        if self._next == len(self._prompts) and self._rows:
            self._close_ranks()
        self._measure()

    def _close_ranks(self) -> None:
        """Move the last rows into holes, if the batch then needs fewer buckets."""
        count = len(self._rows)
        if round_up(count, ROW_BUCKET) >= self._batch:
            return
        movers = [row for row in sorted(self._rows) if row >= count]
        holes = [row for row in range(count) if row not in self._rows]
        if not movers:
            return
        source, target = self._decoder.indices(movers), self._decoder.indices(holes)
        self._decoder.cache.copy_rows(source, target, attention_width(self._now + self._reach))
        self._state[:, target] = self._state[:, source]
        for mover, hole in zip(movers, holes, strict=True):
            self._rows[hole] = self._rows.pop(mover)
        self._reset_masks(holes)
        self._clear(movers)

    def _clear(self, rows: Sequence[int]) -> None:
        """Make rows idle: position 0, where an open column always is, and the lane nobody reads."""
        at = self._decoder.indices(rows)
        self._state[:3, at] = 0
        self._state[3, at] = self._decoder.rows * self._how.max_tokens
        self._decoder.reset_rows(at, torch.zeros_like(at))

    def _reset_masks(self, rows: Sequence[int]) -> None:
        at = self._decoder.indices(rows)
        self._decoder.reset_rows(at, self._state[1, at])

    def _measure(self) -> None:
        """Work out once what the steps until the next change of rows have in common."""
        if not self._rows:
            return
        self._batch = round_up(max(self._rows) + 1, ROW_BUCKET)
        self._reach = max(s.prefix - s.born for s in self._rows.values())
        self._deadline = min(s.born for s in self._rows.values()) + self._how.max_tokens
