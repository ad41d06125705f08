"""The model under the torch engine, with its cache and masks: runs prompts and decode steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vapo.errors import ConfigError, DataError, ModelError, counted
from vapo.rollout.draws import check_decoding
from vapo.rollout.kv_cache import SlotCache, StepMasks, attention_width, round_up
from vapo.rollout.lean_step import LeanStep, is_lean
from vapo.rollout.ragged_attention import CALL_BYTES, NAME, Reach, reaches, reading
from vapo.rollout.row_counts import ROW_BUCKET, exact_row_counts
from vapo.rollout.step_graphs import StepGraphs, rows_of, width_of
from vapo.types import Decoding, Prompt

SLOWER = "Sample with the model's own cache, which is slower: --set rollout.engine=generate."


class Decoder:
    """The model with its cache and masks, on rows of tokens; the engine knows which sample has which row."""

    def __init__(
        self, model: nn.Module, slots: int, *, graphs: bool = True, on_alarm: Callable[[str], None] | None = None
    ) -> None:
        self.model = model
        self._on_alarm = on_alarm
        self._graphs: StepGraphs | None = None
        self.graphs_fault = ""
        """Why steps are not replayed as CUDA graphs, though they were to be."""
        # At least 128, also for few slots: prompts of a shared prefill have together more rows than there are slots.
        self._row_counts = exact_row_counts(model, max(slots, 128))
        self.rows = self.row_count(slots)
        """Rows of the cache, at least one for each slot."""
        every = range(ROW_BUCKET, max(self._row_counts, default=0) + 1, ROW_BUCKET)
        self.prefills_many = bool(self._row_counts) and self._row_counts == list(every)
        """Whether prompts share a prefill. Else each has its own, so that it always has the same number of rows."""
        self.spare_row = self.rows
        """A cache row that never decodes. It keeps the prompt of a group that is admitted in several parts."""
        self.config = _text_config(model)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.context = context_of(self.config)
        self._layer_windows = _layer_windows(self.config)
        kinds = getattr(self.config, "layer_types", None) or list(self._layer_windows) * self.config.num_hidden_layers
        self._windows = [self._layer_windows[kind] for kind in kinds]
        self._chooses_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._no_logits = torch.zeros(0, dtype=torch.int64, device=self.device)
        embeddings = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        self.vocab_size: int = embeddings.weight.shape[0]  # pyright: ignore[reportAttributeAccessIssue]
        self._cache: SlotCache | None = None
        self._masks: dict[int | None, StepMasks] = {}
        self._prefilled = 0
        self._may_be_lean = True
        self._lean: LeanStep | None = None  # while the model is borrowed
        # on a GPU one call for all rows is faster than several, and graphs hold one shape
        self._reads_runs = self.device.type == "cpu" and bool(getattr(model, "_supports_attention_backend", False))
        if graphs and self.device.type == "cuda":
            self._graphs = StepGraphs(self._step, self.rows, self.device)

    @property
    def uses_graphs(self) -> bool:
        """Whether steps are replayed as CUDA graphs."""
        return self._graphs is not None

    @property
    def cache(self) -> SlotCache:
        """The cache that `reserve` made."""
        assert self._cache is not None
        return self._cache

    def row_count(self, count: int) -> int:
        """How many rows to compute for `count` of them: the fewest that sum alike, else a multiple of 16; with graphs
        one of few numbers."""
        if self._graphs is not None:
            return rows_of(count, self.rows, ROW_BUCKET)
        return next((n for n in self._row_counts if n >= count), round_up(count, ROW_BUCKET))

    def release(self) -> None:
        """Free the cache, the masks, and the graphs that read them."""
        self._forget_graphs()
        self._cache = None
        self._masks = {}

    def take_prefilled_count(self) -> int:
        """Prompt tokens prefilled since the last call."""
        count, self._prefilled = self._prefilled, 0
        return count

    @contextmanager
    def borrowed_model(self) -> Iterator[None]:
        """Within: eval mode, no graph, an attention that takes 4-D masks. Afterwards the model is as it was before."""
        flags = [(module, module.training) for module in self.model.modules()]
        attention = self.config._attn_implementation
        try:
            self.model.eval()
            self._lean = LeanStep(self.model) if self._may_be_lean and is_lean(self.model) else None
            if attention not in ("sdpa", "eager"):
                self.config._attn_implementation = "sdpa"
            if self._reads_runs and self.config._attn_implementation == "sdpa":
                self.config._attn_implementation = NAME
            # Against no_grad, inference_mode saves 8 % of a small model's step.
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self._lean = None
            self.config._attn_implementation = attention
            for module, training in flags:
                module.training = training
                _drop_inference_tensors(module)

    def check_request(self, prompts: Sequence[Prompt], how: Decoding, seeds: Sequence[int]) -> None:
        """See the function `check_request`."""
        check_request(prompts, how, seeds, context=self.context, vocab_size=self.vocab_size)

    def reserve(self, length: int) -> None:
        """Make the cache wide enough for sequences of `length` tokens; keeps what is stored."""
        width = attention_width(length)
        if self._cache is None:
            self._cache = SlotCache(self.rows + 1, width)
        elif self._cache.capacity < width:
            self._cache.grow(width)
        elif self._masks:
            return
        self._forget_graphs()
        self._masks = {
            window: StepMasks(self.rows, self.cache.capacity, window, self.dtype, self.device)
            for window in set(self._layer_windows.values())
        }

    def prefill(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Run prompts (without their last tokens) of one padded length; store prompt i in rows targets[i]."""
        length = padded_length(len(prompts[0]))
        # Right padding: a causal query never reads it, and decode steps overwrite its columns. It repeats a real
        # token, because models warn about padding tokens without a mask.
        ids = torch.tensor([[*p, *[p[-1]] * (length - len(p))] for p in prompts], device=self.device)
        source = [i for i, rows in enumerate(targets) for _ in rows]
        target = [row for rows in targets for row in rows]
        self.cache.begin_prefill(self.indices(source), self.indices(target))
        # Padding may reach beyond the last position of a model with a table of positions.
        positions = torch.arange(length, device=self.device).clamp_(max=self.context - 1)
        positions = positions.expand(len(prompts), length)
        self._forward(ids, positions, None, self._no_logits)
        self._prefilled += sum(len(p) for p in prompts)

    def runs(self, lengths: Sequence[int]) -> tuple[Reach, ...]:
        """How the attention of rows that hold so many tokens (0: an unused row) is cut; for `step`."""
        if not self._reads_runs:
            return ()
        widths = [attention_width(length) if length else 0 for length in lengths]
        return reaches(widths, call=CALL_BYTES / self.cache.column_bytes)

    def step(self, ids: Tensor, positions: Tensor, width: int, runs: tuple[Reach, ...] = ()) -> Tensor:
        """Feed row i the token ids[i] at positions[i]; logits for the next tokens, (B, V), to be used before the next
        step. B = len(ids). With `runs`, the logits of rows in none of them are of no use."""
        if self._graphs is not None:
            try:
                return self._graphs.run(ids, positions, width_of(width, self.cache.capacity))
            except RuntimeError as error:  # recording this size failed; the step itself may be done again
                self._give_up_graphs(error)
        return self._step(ids, positions, width, runs)

    def _step(self, ids: Tensor, positions: Tensor, width: int, runs: tuple[Reach, ...] = ()) -> Tensor:
        masks = {window: masks.step(positions, width) for window, masks in self._masks.items()}
        self.cache.begin_step(positions, width)
        if self._lean is not None:
            return self._lean(ids, positions, self.cache, [masks[window] for window in self._windows], runs)
        by_kind = {kind: masks[window] for kind, window in self._layer_windows.items()}
        # Models with layers of one kind take the mask itself, the others build or take one per kind.
        mask = by_kind if len(by_kind) > 1 else next(iter(by_kind.values()))
        with reading(runs):
            return self._forward(ids[:, None], positions[:, None], mask, 1)[:, -1]

    def reset_rows(self, rows: Tensor, positions: Tensor) -> None:
        """Set the masks of `rows`: the next tokens go to `positions`, and the columns before are the rows' own."""
        for masks in self._masks.values():
            masks.reset(rows, positions)

    def check_against_full_forward(self) -> None:
        """Raise ModelError if decoding step by step gives other logits than a full forward pass."""
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
                positions = torch.zeros(ROW_BUCKET, dtype=torch.int64, device=self.device)
                last = torch.zeros_like(positions)
                positions[:2], last[:2] = self.indices(lengths), ids[[0, 1], list(lengths)].to(self.device)
                self.reset_rows(rows, positions[:2])
                width = attention_width(max(lengths) + 1)
                runs = (Reach(0, 1, width), Reach(1, 2, width)) if self._reads_runs else ()
                lean, self._lean = self._lean, None
                got = self._step(last, positions, width, runs)[:2].float()
                self._try_graphs(last, positions, width)
                self._lean = lean
                self._may_be_lean = lean is not None and self._gives(got, last, positions, width, runs)
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
                raise ModelError(
                    f"TorchEngine cannot decode {name} with its cache ({type(error).__name__}: {error}). {SLOWER}"
                ) from error
            finally:
                self.release()
                self.take_prefilled_count()
        tolerance = (1e-3 if self.dtype == torch.float32 else 0.1) * max(1.0, expected.abs().max().item())
        gap = (got - expected).abs().max().item()
        if gap > tolerance:  # a NaN passes: the weights may not be loaded yet
            raise ModelError(
                f"TorchEngine's cached decoding of {name} differs from a full forward pass by {gap:.2g} in the "
                f"logits (allowed: {tolerance:.2g}), so its samples would be wrong. {SLOWER}"
            )

    def _gives(self, logits: Tensor, ids: Tensor, positions: Tensor, width: int, runs: tuple[Reach, ...]) -> bool:
        """Whether a step gives these logits for its first rows; the lean one may meet a model that it does not know."""
        try:
            return _close(self._step(ids, positions, width, runs)[: len(logits)], logits)
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False

    def _try_graphs(self, ids: Tensor, positions: Tensor, width: int) -> None:
        """Keep the graphs only if a replayed step gives the logits of the step itself, over the same columns."""
        if self._graphs is None:
            return
        plain = self._step(ids, positions, width_of(width, self.cache.capacity)).clone()
        try:
            replayed = self.step(ids, positions, width)
            gap = (replayed - plain).abs().max().item()
        except TypeError as error:
            self._give_up_graphs(error)
        else:
            largest = plain.abs().max().item()
            # NaN in the step itself passes: the weights may not be loaded yet
            if gap > 1e-3 * max(1.0, largest):
                self._give_up_graphs(f"replayed logits differ by {gap:.2g}")

    def _give_up_graphs(self, reason: object) -> None:
        self.graphs_fault, self._graphs = str(reason).splitlines()[0], None
        if self._on_alarm is not None:
            self._on_alarm(
                f"CUDA graphs are off, so sampling is slower: {self.graphs_fault}. The samples are right. "
                "rollout.engine.graphs=false does not try them."
            )

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _forward(self, ids: Tensor, positions: Tensor, mask: Any, kept: int | Tensor) -> Tensor:
        """The logits of the last `kept` tokens, or of those with these indices, where the model lets one choose."""
        extra = {"logits_to_keep": kept} if self._chooses_logits else {}
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            **extra,
        )
        return output.logits

    def indices(self, values: Sequence[int]) -> Tensor:
        """An int64 tensor on the model's device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def check_request(
    prompts: Sequence[Prompt], how: Decoding, seeds: Sequence[int], *, context: int, vocab_size: int
) -> None:
    """Check what an engine's `generate` was given, before it samples.

    Raises ValueError if there is not one seed per prompt, DataError for prompts without tokens or with tokens beyond
    `vocab_size`, ConfigError for settings out of range or responses that do not fit into `context` tokens.
    """
    if len(seeds) != len(prompts):
        raise ValueError(
            f"one seed per prompt: got {counted(len(seeds), 'seed')} for {counted(len(prompts), 'prompt')}"
        )
    check_decoding(how)
    for prompt in prompts:
        _check_prompt(prompt, how.max_tokens, context=context, vocab_size=vocab_size)


def _check_prompt(prompt: Prompt, max_tokens: int, *, context: int, vocab_size: int) -> None:
    if not prompt.token_ids:
        raise DataError(
            f"Prompt {prompt.id!r} has no token_ids. Render it with a tokenizer first; a model without a "
            "BOS token cannot continue an empty text."
        )
    if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < vocab_size:
        raise DataError(
            f"Prompt {prompt.id!r} has token ids from {min(prompt.token_ids)} to {max(prompt.token_ids)}, "
            f"but the model knows 0 to {vocab_size - 1}. Was it rendered with another tokenizer?"
        )
    room = context - len(prompt.token_ids)
    if max_tokens > room:
        fix = f"Lower rollout.max_response_tokens to at most {room}, or" if room > 0 else "Shorten it,"
        raise ConfigError(
            f"Prompt {prompt.id!r} has {counted(len(prompt.token_ids), 'token')}; with max_tokens={max_tokens} that is "
            f"more than the {context} positions of the model's context. {fix} leave out such prompts, "
            "or take a model with a longer context."
        )


def padded_length(length: int) -> int:
    """The length a prompt is padded to, a function of its own length: a multiple of 16 up to 64, then of 64."""
    return round_up(length, 16 if length <= 64 else 64)


def _close(ours: Tensor, logits: Tensor) -> bool:
    """Whether the logits are equal up to rounding; NaN passes: the weights may not be loaded yet."""
    gap, largest = (ours - logits).abs().max().item(), logits.abs().max().item()
    return not gap > 1e-4 * max(1.0, largest)


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
            f"column. TorchEngine needs attention in every layer. {SLOWER}"
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
            f"{', '.join(sorted(unknown))} (recurrent, hybrid or chunked layers). {SLOWER}"
        )
    if window is not None and window >= context_of(config):
        window = None  # the window covers the whole context
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def context_of(config: Any) -> int:
    """The longest sequence that the model takes."""
    context = getattr(config, "max_position_embeddings", None) or 2**31
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes] if "rope_type" in ropes else ropes.values():
        # Beyond its original context such a model rotates all keys differently, also those of shorter rows in the
        # batch and those already cached.
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            context = min(context, rope.get("original_max_position_embeddings") or context)
    return context


def _drop_inference_tensors(module: nn.Module) -> None:
    """Replace inference tensors that a forward pass left in the module: its next backward pass could not use them."""
    for store in (module._buffers, module.__dict__):
        for name, value in store.items():
            if isinstance(value, Tensor) and value.is_inference():
                store[name] = value.clone()


@torch.no_grad()
def copy_weights(model: nn.Module, weights: Sequence[tuple[str, Tensor]]) -> None:
    """Copy named tensors into the model's own. ModelError, and no copy, if any name or shape is wrong."""
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
