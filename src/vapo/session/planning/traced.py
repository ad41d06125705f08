"""What the passes of policy and critic need beside weights and gradients: the code itself runs, on tensors without
storage.

A pass has two parts: the body up to the last hidden states, which grows with the tokens, and a policy's output layer,
which works in chunks of a fixed size. Layers repeat, so a deep body is measured with the layers of one and of two
repetitions, and continued in a straight line.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from vapo.errors import ModelError
from vapo.models.backbone import backbone_of, checkpoint_gradients, decoder_layers, hidden_states, supports_packing
from vapo.models.critic import classifier_of, made_critic
from vapo.models.logprobs import token_logps
from vapo.models.lora import add_lora
from vapo.models.model_flops import ModelFlops, model_flops
from vapo.models.networks import logits_head, output_embeddings, precision
from vapo.models.placing import to_device
from vapo.models.side import SideConfig, SideModel
from vapo.session.foresight import NetworkSize, network_size
from vapo.session.planning.live_bytes import LiveBytes, drop_gradients, without_storage

CHUNKS = 3
"""So many chunks of the output layer are traced; the others are alike."""


@dataclass(frozen=True)
class Pass:
    """Bytes of one micro-batch beside weights and gradients."""

    kept: float
    """What the body keeps for the backward pass."""
    body: float
    """The most while the body is computed, forward or backward."""
    output: float
    """What the output layer adds to `kept`; a critic's head takes next to nothing."""

    @property
    def peak(self) -> float:
        """The most at once."""
        return max(self.body, self.kept + self.output)


@dataclass(frozen=True)
class Form:
    """What is traced of a model: everything that shapes a pass."""

    rank: int = 0
    """Of adapters; 0 trains all weights."""
    checkpointing: bool = False
    autocast: bool = False
    """Whether products are computed in bfloat16, of float32 weights."""
    packed: bool = True


@dataclass(frozen=True)
class Rows:
    """Equal sequences of one micro-batch."""

    count: int
    length: int
    """Tokens of each."""
    response: int
    """Of them, those of the response."""

    @property
    def tokens(self) -> int:
        """In all."""
        return self.count * self.length


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model without memory for weights; ModelError if it cannot be built so."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, RuntimeError, NotImplementedError, ImportError, TypeError, AttributeError) as error:
        raise ModelError(
            f"A {config.model_type} model cannot be built without its weights, so nothing can be planned for it: "
            f"{str(error).splitlines()[0]}. Install what the message names, or plan a model of like size."
        ) from error


def meta_critic(config: PreTrainedConfig) -> PreTrainedModel:
    """The critic that is made of a base model with this configuration, without memory for weights."""
    labels = {"id2label": {0: "value"}, "label2id": {"value": 0}}
    kind = classifier_of(config)
    with torch.device("meta"):
        if kind is None:
            made, own = made_critic(config, ["value"])
            return made(own)
        own = copy.deepcopy(config)
        own.num_labels = 1
        for name, value in labels.items():
            setattr(own, name, value)
        return kind.from_config(own)


def period(config: PreTrainedConfig) -> int:
    """After how many layers their kinds repeat; all layers if they do not."""
    text = config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers)
    return next(n for n in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))


def shallow(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration with its first layers only."""
    text = copy.deepcopy(config.get_text_config())
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:layers]
    return text


class Tracer:
    """Sizes, operations and passes of one model; what was found out is remembered."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self._known: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def packs(self) -> bool:
        """Whether the sequences of a micro-batch stand end to end in one row."""
        return supports_packing(meta_model(shallow(self.config, 1)))

    @cached_property
    def flops(self) -> ModelFlops:
        """The policy's operations."""
        return model_flops(meta_model(self.config))

    @cached_property
    def critic_flops(self) -> ModelFlops:
        """Those of a critic that is made of it."""
        return model_flops(meta_critic(self.config))

    @cached_property
    def layer_parameters(self) -> tuple[int, int]:
        """Parameters of one layer, and of all that is in no layer."""
        one = meta_model(shallow(self.config, 1))
        layer = sum(p.numel() for p in decoder_layers(one)[0].parameters())
        return layer, one.num_parameters() - layer

    def size(self, rank: int, *, critic: bool) -> NetworkSize:
        """Parameters of a policy or a critic, with adapters of this rank."""
        key = ("size", rank, critic)
        if key not in self._known:
            self._known[key] = network_size(self.config, rank, critic=critic)
        return self._known[key]

    def update(self, rows: Rows, form: Form, *, max_logits: int | None) -> Pass:
        """A policy's update (`max_logits` in one chunk of its output layer), or with None a critic's."""
        body = self._deep(rows, form, backward=True)
        return Pass(*body, 0.0 if max_logits is None else self._output(rows, form, max_logits, backward=True))

    def score(self, rows: Rows, form: Form, *, max_logits: int | None) -> Pass:
        """Log-probabilities or values without a gradient."""
        body = self._deep(rows, form, backward=False)
        return Pass(*body, 0.0 if max_logits is None else self._output(rows, form, max_logits, backward=False))

    def side(self, side: SideConfig, rows: Rows, form: Form, *, kept: bool) -> Pass:
        """A side critic's update, with the policy's hidden states: computed for it, or `kept` since scoring."""
        key = ("side", str(side.to_dict()), rows, form, kept)
        if key not in self._known:
            with without_storage() as mode:
                model = SideModel(side)
                drop_gradients(model)
                states = len(side.policy_layers or ()) * side.policy_width
                with LiveBytes(model.parameters()) as live, mode:
                    features = [torch.empty(rows.length, states) for _ in range(rows.count)]
                    out = model(features, [rows.length - rows.response] * rows.count)
                    now = live.now
                    out.sum().backward()
                    del out
            made = 0.0 if kept else self._deep(rows, form, backward=False)[1]
            self._known[key] = Pass(now, max(live.peak, now + made), 0.0)
        return self._known[key]

    def _deep(self, rows: Rows, form: Form, *, backward: bool) -> tuple[float, float]:
        """(bytes kept, bytes at most) of the whole body."""
        layers, step = self.config.get_text_config().num_hidden_layers, period(self.config)
        # a single layer's peak may lie elsewhere: its input is also the embeddings
        first = 2 * step if step == 1 else step
        if layers <= first + step:
            kept, *peaks = self._body(layers, rows, form, backward)
            return kept, max(peaks)
        few, more = (self._body(n, rows, form, backward) for n in (first, first + step))
        # what is kept, the most of the forward and of the backward pass: each a straight line, their maximum is none
        kept, *peaks = (a + (layers - first) / step * (b - a) for a, b in zip(few, more, strict=True))
        return kept, max(peaks)

    def _body(self, layers: int, rows: Rows, form: Form, backward: bool) -> tuple[int, int, int]:
        key = ("body", layers, rows, form, backward)
        if key not in self._known:
            self._known[key] = self._traced_body(layers, rows, form, backward)
        return self._known[key]

    def _traced_body(self, layers: int, rows: Rows, form: Form, backward: bool) -> tuple[int, int, int]:
        """Bytes that the forward pass keeps, and the most of the forward and of the backward pass."""
        mode = without_storage()
        model = self._model(shallow(self.config, layers), form, mode)
        with mode, fused_recurrence(model):
            known = [*model.parameters(), *model.buffers()]
            half = form.autocast
            with LiveBytes(known) as live, mode, torch.set_grad_enabled(backward):
                with precision(half, model):
                    states = _states(model, rows, form.packed)
                kept, forward = live.now, live.peak
                live.restart()
                if backward:
                    states.backward(torch.empty_like(states))
                del states
        return kept, forward, live.peak

    def _output(self, rows: Rows, form: Form, max_logits: int, backward: bool) -> float:
        key = ("output", rows, form, max_logits, backward)
        if key not in self._known:
            self._known[key] = self._traced_output(rows, form, max_logits, backward)
        return self._known[key]

    def _traced_output(self, rows: Rows, form: Form, max_logits: int, backward: bool) -> float:
        vocabulary = self.config.get_text_config().vocab_size
        predicted = rows.count * rows.response
        traced = min(predicted, CHUNKS * max(1, max_logits // vocabulary))
        mode = without_storage()
        model = self._model(shallow(self.config, 1), form, mode)
        with mode:
            half = form.autocast
            with LiveBytes([*model.parameters(), *model.buffers()]) as live, mode, torch.set_grad_enabled(backward):
                width = self.config.get_text_config().hidden_size
                dtype = torch.bfloat16 if half else torch.float32
                hidden = torch.empty(traced, width, dtype=dtype, requires_grad=backward)
                with precision(half, model, keep_weights=True):
                    logp, _ = token_logps(
                        hidden,
                        torch.zeros(traced, dtype=torch.long),
                        logits_head(model),
                        list(output_embeddings(model).parameters()),
                        vocab_size=vocabulary,
                        max_logits=max_logits,
                        with_entropy=not backward,
                    )
                if backward:
                    logp.sum().backward()
        # the states of the tokens that were left out, and their gradient
        left = (predicted - traced) * width * hidden.element_size() * (2 if backward else 1)
        return float(live.peak + left)

    def _model(self, config: PreTrainedConfig, form: Form, mode: FakeTensorMode) -> PreTrainedModel:
        """The model as it is trained, its gradients dropped as they come."""
        model = to_device(meta_model(config), torch.float32)
        with mode:
            model = cast(PreTrainedModel, model.to_empty(device="cpu")).eval()
        if form.rank:
            add_lora(model, form.rank, None)
        if form.checkpointing:
            checkpoint_gradients(model)
        drop_gradients(model)
        return model


def _states(model: PreTrainedModel, rows: Rows, packed: bool) -> Tensor:
    """The last hidden states of every token."""
    if packed:
        return hidden_states(model, [torch.zeros(rows.length, dtype=torch.long) for _ in range(rows.count)], "packed")
    tokens = torch.zeros(rows.count, rows.length, dtype=torch.long)
    return backbone_of(model)(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)


class _Recurrence(torch.autograd.Function):
    """The shapes of a gated delta rule as a fused kernel computes it: it keeps its inputs, and 64 numbers for each
    token and head. transformers' own, which is for machines without the kernel, keeps many times that."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        value = inputs[2]
        ctx.save_for_backward(*inputs, value.new_empty(*value.shape[:3], 64))
        return torch.empty_like(value)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:5])


@contextmanager
def fused_recurrence(model: PreTrainedModel) -> Iterator[None]:
    """Within, layers with a gated delta rule (Qwen3.5) take what a fused kernel takes."""
    module, name = sys.modules[type(model).__module__], "torch_chunk_gated_delta_rule"
    before = getattr(module, name, None)
    if before is None:
        yield
        return

    def fused(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **_: Any) -> tuple[Any, None]:
        return _Recurrence.apply(query, key, value, g, beta), None

    setattr(module, name, fused)
    try:
        yield
    finally:
        setattr(module, name, before)


@lru_cache(maxsize=32)
def _tracer(text: str) -> Tracer:
    values = json.loads(text)
    return Tracer(AutoConfig.for_model(values.pop("model_type"), **values))


def tracer_of(config: PreTrainedConfig) -> Tracer:
    """The tracer of a configuration; the same one for equal configurations, which knows what was traced."""
    return _tracer(config.to_json_string(use_diff=False))
