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

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vapo.errors import ConfigError, DataError, DivergedError, ModelError
from vapo.rollout.kv_cache import SlotCache, StepMasks, attention_width, round_up
from vapo.rollout.sampling import sample, uniforms
from vapo.types import Completion, Decoding, Prompt

_ROW_BUCKET = 16
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
        self._decoder = _Decoder(model if device is None else model.to(device), rows=round_up(slots, _ROW_BUCKET))
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
        _copy_weights(self._decoder.model, list(weights))
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
        _check_decoding(how)
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


class _Decoder:
    """The model with its cache and masks: runs prompts and steps, knows nothing of samples."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        self.model = model
        self.rows = rows
        self.parking = rows
        """A cache row that never decodes; it keeps the prompt of a group that is admitted in parts."""
        self.config = _text_config(model)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.context = _context(self.config)
        self._layer_windows = _layer_windows(self.config)
        self._keep_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        embeddings = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        self.vocab_size: int = embeddings.weight.shape[0]  # pyright: ignore[reportAttributeAccessIssue]
        self._cache: SlotCache | None = None
        self._masks: dict[int | None, StepMasks] = {}
        self._prefilled = 0

    @property
    def cache(self) -> SlotCache:
        """The cache that `reserve` made."""
        assert self._cache is not None
        return self._cache

    def release(self) -> None:
        """Forget the cache and the masks."""
        self._cache = None
        self._masks = {}

    def take_prefilled_count(self) -> int:
        """Prompt tokens prefilled since the last call."""
        count, self._prefilled = self._prefilled, 0
        return count

    @contextmanager
    def borrowed_model(self) -> Iterator[None]:
        """Eval mode, no graph, an attention that takes 4-D masks; everything as it was afterwards."""
        flags = [(module, module.training) for module in self.model.modules()]
        attention = self.config._attn_implementation
        try:
            self.model.eval()
            if attention not in ("sdpa", "eager"):
                self.config._attn_implementation = "sdpa"
            # Against no_grad, inference_mode saves 8 % of a small model's step.
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.config._attn_implementation = attention
            for module, training in flags:
                module.training = training
                _drop_inference_tensors(module)

    def check_prompt(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise if the prompt cannot be completed by `max_tokens` tokens."""
        if not prompt.token_ids:
            raise DataError(
                f"Prompt {prompt.id!r} has no token_ids. Render it with a tokenizer first; a model without a "
                "BOS token cannot continue an empty text."
            )
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < self.vocab_size:
            raise DataError(
                f"Prompt {prompt.id!r} has token ids from {min(prompt.token_ids)} to {max(prompt.token_ids)}, "
                f"but the model knows 0 to {self.vocab_size - 1}. Was it rendered with another tokenizer?"
            )
        room = self.context - len(prompt.token_ids)
        if max_tokens > room:
            fix = f"Lower rollout.max_response_tokens to at most {room}, or" if room > 0 else "Shorten it,"
            raise ConfigError(
                f"Prompt {prompt.id!r} has {len(prompt.token_ids)} tokens; with max_tokens={max_tokens} that is "
                f"more than the {self.context} positions of the model's context. {fix} leave out such prompts, "
                "or take a model with a longer context."
            )

    def reserve(self, length: int) -> None:
        """Have a cache for sequences of `length` tokens; what is stored stays."""
        width = attention_width(length)
        if self._cache is None:
            self._cache = SlotCache(self.rows + 1, width)
        elif self._cache.capacity < width:
            self._cache.grow(width)
        elif self._masks:
            return
        self._masks = {
            window: StepMasks(self.rows, self.cache.capacity, window, self.dtype, self.device)
            for window in set(self._layer_windows.values())
        }

    def prefill(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Run prompts (without their last tokens) of one padded length; store prompt i in rows targets[i]."""
        length = _padded_length(len(prompts[0]))
        # Right padding: a causal query never looks at it, and decode steps overwrite its columns. A copy of a
        # real token, because models warn about padding tokens that come without a mask.
        ids = torch.tensor([[*p, *[p[-1]] * (length - len(p))] for p in prompts], device=self.device)
        source = [i for i, rows in enumerate(targets) for _ in rows]
        target = [row for rows in targets for row in rows]
        self.cache.begin_prefill(self.indices(source), self.indices(target))
        # Padding may reach beyond the last position of a model that looks positions up in a table.
        positions = torch.arange(length, device=self.device).clamp_(max=self.context - 1)
        positions = positions.expand(len(prompts), length)
        self._forward(ids, positions, None)
        self._prefilled += sum(len(p) for p in prompts)

    def step(self, ids: Tensor, positions: Tensor, width: int) -> Tensor:
        """Feed row i the token ids[i] at positions[i]; logits for the next tokens, (B, V). B = len(ids)."""
        masks = {window: masks.step(positions, width) for window, masks in self._masks.items()}
        self.cache.begin_step(positions, width)
        by_kind = {kind: masks[window] for kind, window in self._layer_windows.items()}
        # Models with layers of one kind take the mask itself, the others build or take one per kind.
        mask = by_kind if len(by_kind) > 1 else next(iter(by_kind.values()))
        return self._forward(ids[:, None], positions[:, None], mask)

    def reset_rows(self, rows: Tensor, positions: Tensor) -> None:
        """Start `rows` anew: their next tokens go to `positions`, and what stands before is theirs."""
        for masks in self._masks.values():
            masks.reset(rows, positions)

    def check_against_full_forward(self) -> None:
        """Refuse a model that this way of decoding would sample from wrongly, whatever the reason."""
        lengths = (3, 7)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocab_size, (2, max(lengths) + 1), generator=generator)
        rows, name = self.indices([0, 1]), type(self.model).__name__
        with self.borrowed_model():
            try:
                expected = torch.stack(
                    [
                        self.model(ids[i : i + 1, : n + 1].to(self.device), use_cache=False).logits[0, -1]
                        for i, n in enumerate(lengths)
                    ]
                ).float()
                self.reserve(max(lengths) + 1)
                for i, n in enumerate(lengths):
                    self.prefill([ids[i, :n].tolist()], [[i]])
                positions = torch.zeros(_ROW_BUCKET, dtype=torch.int64, device=self.device)
                last = torch.zeros_like(positions)
                positions[:2], last[:2] = self.indices(lengths), ids[[0, 1], list(lengths)].to(self.device)
                self.reset_rows(rows, positions[:2])
                got = self.step(last, positions, attention_width(max(lengths) + 1))[:2].float()
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
                raise ModelError(
                    f"TorchEngine cannot decode {name} with its cache ({type(error).__name__}: {error}). Use "
                    "another rollout.engine for this model."
                ) from error
            finally:
                self.release()
                self.take_prefilled_count()
        tolerance = (1e-3 if self.dtype == torch.float32 else 0.1) * max(1.0, expected.abs().max().item())
        gap = (got - expected).abs().max().item()
        if gap > tolerance:  # a NaN passes: weights that are not loaded yet are no reason to refuse
            raise ModelError(
                f"TorchEngine's cached decoding of {name} differs from a full forward pass by {gap:.2g} in the "
                f"logits (allowed: {tolerance:.2g}), so its samples would be wrong. Use another rollout.engine."
            )

    def _forward(self, ids: Tensor, positions: Tensor, mask: Any) -> Tensor:
        extra = {"logits_to_keep": 1} if self._keep_last else {}
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            **extra,
        )
        return output.logits[:, -1]

    def indices(self, values: Sequence[int]) -> Tensor:
        """An int64 tensor on the model's device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)


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
        decoder: _Decoder,
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
        prompt_columns = _padded_length(longest)
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
                by_length.setdefault(_padded_length(len(prompt) - 1), []).append((prompt[:-1], targets))
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
        if round_up(count, _ROW_BUCKET) >= self._batch:
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
        self._batch = round_up(max(self._rows) + 1, _ROW_BUCKET)
        self._reach = max(s.prefix - s.born for s in self._rows.values())
        self._deadline = min(s.born for s in self._rows.values()) + self._how.max_tokens


def _padded_length(length: int) -> int:
    """What a prompt is padded to, decided by its own length alone: coarser for longer ones."""
    return round_up(length, 16 if length <= 64 else 64)


def _text_config(model: nn.Module) -> Any:
    """The language model's config; `ModelError` if the engine cannot handle the architecture."""
    config = getattr(model, "config", None)
    name = type(model).__name__
    if config is None or not hasattr(config, "get_text_config"):
        raise ModelError(f"TorchEngine samples from transformers models; {name} has no transformers config.")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; TorchEngine samples from decoder-only models.")
    if getattr(model, "_is_stateful", False):
        raise ModelError(
            f"{name} is recurrent or hybrid: it keeps a state that cannot be cut back to a prefix or moved by "
            "column. TorchEngine needs attention in every layer; take another model."
        )
    return config.get_text_config()


def _layer_windows(config: Any) -> dict[str, int | None]:
    """Attention kinds of the model's layers, each with its window (None: sees everything).

    The same reading of a config as `transformers.masking_utils.create_masks_for_generate`.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not kinds:
        if getattr(config, "attention_chunk_size", None) is not None:
            kinds = {"chunked_attention"}
        else:
            kinds = {"full_attention" if window is None else "sliding_attention"}
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"TorchEngine knows layers with full and sliding attention; this {config.model_type} model also has "
            f"{', '.join(sorted(unknown))} (recurrent, hybrid or chunked layers). Take a model with plain attention."
        )
    if window is not None and window >= _context(config):
        window = None  # it never leaves a column behind
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def _context(config: Any) -> int:
    """Positions a sequence may have."""
    context = getattr(config, "max_position_embeddings", None) or 2**31
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes] if "rope_type" in ropes else ropes.values():
        # Beyond its original context such a model turns all keys differently, those of shorter neighbours in
        # the batch and those already cached included.
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            context = min(context, rope.get("original_max_position_embeddings") or context)
    return context


def _drop_inference_tensors(module: nn.Module) -> None:
    """Replace what a forward pass left in the module: its next backward could not use an inference tensor."""
    for store in (module._buffers, module.__dict__):
        for name, value in store.items():
            if isinstance(value, Tensor) and value.is_inference():
                store[name] = value.clone()


def _check_decoding(how: Decoding) -> None:
    if how.max_tokens < 1:
        raise ConfigError(f"rollout.max_response_tokens must be at least 1, got {how.max_tokens}.")
    if not 0.0 <= how.temperature < float("inf"):
        raise ConfigError(f"rollout.temperature must be 0 (greedy) or positive, got {how.temperature}.")
    if not 0.0 < how.top_p <= 1.0:
        raise ConfigError(f"rollout.top_p must be above 0 and at most 1, got {how.top_p}.")


@torch.no_grad()
def _copy_weights(model: nn.Module, weights: Sequence[tuple[str, Tensor]]) -> None:
    """Copy named tensors into the model's own; nothing is changed if any name or shape is wrong."""
    own = model.state_dict()
    given = dict(weights)
    provided = {own[name].data_ptr() for name in given if name in own}
    unknown = sorted(given.keys() - own.keys())
    missing = sorted(name for name, tensor in own.items() if tensor.data_ptr() not in provided)
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    for what, names in (("unknown", unknown), ("missing", missing), ("of the wrong shape", wrong)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(
                f"Weights for {type(model).__name__} do not fit; {what}: {shown}. Give all tensors of the "
                "policy's state_dict under its names; nothing was loaded."
            )
    for name, tensor in given.items():
        if tensor.data_ptr() != own[name].data_ptr():
            own[name].copy_(tensor)
