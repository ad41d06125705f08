"""The two trained networks: a policy for log-probabilities, a critic for values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from vapo.algo.heads import head_values, start_bias
from vapo.algo.method import Head, LinearHead
from vapo.errors import ModelError
from vapo.models.backbone import Layout, hidden_states, layer_states, supports_packing
from vapo.models.critic_notes import ValueAt, value_head
from vapo.models.full_products import full_products
from vapo.models.logprobs import token_logps
from vapo.models.pretrained import context_length
from vapo.models.side import SideModel
from vapo.models.whole import Pass, plain_pass, shard_like, whole

PROBE = 19
"""Tokens of `choose_layout`'s test sequence: more than the windows of tiny models."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses, ragged: the input for scoring every response token.

    `tokens[i]` is prompt and response, 1-D; the last `response_lengths[i]` of them are the response. `features[i]`
    is (tokens, K): the policy's hidden states, for a side critic.
    """

    tokens: tuple[Tensor, ...]
    response_lengths: tuple[int, ...]
    features: tuple[Tensor, ...] | None = None

    def predicting_positions(self) -> Tensor:
        """Rows of the flat hidden states from which the response tokens are predicted, in order."""
        rows, start = [], 0
        for tokens, response in zip(self.tokens, self.response_lengths, strict=True):
            end = start + len(tokens)
            # the state before response token t is the one at the token to its left (docs/pitfalls.md, 18)
            rows.append(torch.arange(end - response - 1, end - 1))
            start = end
        return torch.cat(rows)

    def targets(self) -> Tensor:
        """The response tokens, flat."""
        return torch.cat([t[len(t) - n :] for t, n in zip(self.tokens, self.response_lengths, strict=True)])

    def rectangle(self, flat: Tensor, width: int) -> Tensor:
        """Per-token numbers (n,) or (n, K), flat, as (B, width) or (B, width, K); 0 beyond each response.
        Differentiable."""
        lengths = torch.tensor(self.response_lengths, device=flat.device)
        inside = torch.arange(width, device=flat.device)[None] < lengths[:, None]
        shape = (len(lengths), width, *flat.shape[1:])
        return flat.new_zeros(shape).masked_scatter(inside.view(*inside.shape, *[1] * (flat.ndim - 1)), flat)


@dataclass(frozen=True)
class Policy:
    """A causal language model, as a distribution over the next token."""

    model: PreTrainedModel
    layout: Layout = "packed"
    temperature: float = 1.0
    autocast: bool = False
    side_layers: tuple[int, ...] = ()
    """The decoder layers that a side critic reads, from 0."""
    passes: Pass = plain_pass
    """Runs a forward pass; a sharded model gathers its weights there."""

    def logp(self, sequences: Sequences, width: int, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """log π of every response token at the sampling temperature, and the entropy: (B, width), nats, float32."""
        logp, entropy, _ = self.passes(self._read, sequences, width, with_entropy, ())
        return logp, entropy

    @torch.no_grad()
    def logp_and_features(self, sequences: Sequences, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """`logp`, entropy and `features` of one forward pass, the features end to end: (sum of lengths, K)."""
        logp, entropy, features = self.passes(self._read, sequences, width, True, self.side_layers)
        assert entropy is not None
        assert features is not None
        return logp, entropy, features.float()

    @torch.no_grad()
    def features(self, sequences: Sequences) -> tuple[Tensor, ...]:
        """What a side critic reads, without a gradient: per row (tokens, K), the states after each of `side_layers`
        side by side, float32."""
        with precision(self.autocast, self.model):
            _, features = self.passes(layer_states, self.model, sequences.tokens, self.layout, self.side_layers)
        assert features is not None
        return features.float().split([len(tokens) for tokens in sequences.tokens])

    def _read(
        self, sequences: Sequences, width: int, with_entropy: bool, layers: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with precision(self.autocast, self.model):
            hidden, features = layer_states(self.model, sequences.tokens, self.layout, layers)
        with precision(self.autocast, self.model, keep_weights=True):
            hidden = hidden[sequences.predicting_positions().to(hidden.device)]
            logp, entropy = token_logps(
                hidden,
                sequences.targets(),
                logits_head(self.model),
                list(output_embeddings(self.model).parameters()),
                temperature=self.temperature,
                vocab_size=self.model.config.get_text_config().vocab_size,
                with_entropy=with_entropy,
            )
        per_token = sequences.rectangle(logp, width), None if entropy is None else sequences.rectangle(entropy, width)
        return (*per_token, features)


@dataclass(frozen=True)
class Critic:
    """A separate network with a scalar head: V of the state before each response token.

    A side critic's model is a `SideModel`: it reads the policy's hidden states instead of tokens.
    """

    model: PreTrainedModel
    layout: Layout = "packed"
    autocast: bool = False
    origin: str = ""
    """What the weights were loaded from, for the run's log."""
    value_at: ValueAt = "tokens"
    """Where a whole response is judged: before its last token, or at its end (a reward model)."""
    head: Head = field(default_factory=LinearHead)
    """How values are made of the outputs; its range is filled in."""
    features_of: Callable[[Sequences], tuple[Tensor, ...]] | None = None
    """Where a side critic takes the features of sequences that come without: `Policy.features`."""
    beside: PreTrainedModel | None = None
    """The policy whose states a side critic reads: a sample of its weights is saved with the critic."""
    passes: Pass = plain_pass
    """Runs a forward pass; a sharded model gathers its weights there."""

    def outputs(self, sequences: Sequences, width: int) -> Tensor:
        """What the head reads at every response token: (B, width, K), float32."""
        return sequences.rectangle(self._read(sequences, sequences.predicting_positions()), width)

    def values(self, sequences: Sequences, width: int) -> Tensor:
        """V(s_t) for every response token, in reward units: (B, width), float32; 0 beyond each response."""
        flat = head_values(self.head, self._read(sequences, sequences.predicting_positions()))
        return sequences.rectangle(flat, width)

    def final_outputs(self, sequences: Sequences) -> Tensor:
        """What the head reads after the last token: (B, K), float32."""
        return self._read(sequences, torch.tensor([len(t) for t in sequences.tokens]).cumsum(0) - 1)

    def final_values(self, sequences: Sequences) -> Tensor:
        """V of the state after the last token, (B,): the expected outcome of a response that was cut off."""
        return head_values(self.head, self.final_outputs(sequences))

    @torch.no_grad()
    def start_at(self, value: float) -> bool:
        """Let a head that has learned nothing (its weights are 0) answer `value`; False if it has learned."""
        layer = value_head(self.model)
        if bool(whole(layer.weight).any()):
            return False
        if layer.bias is None:
            raise ModelError(
                f"The value head of {type(self.model).__name__} has no bias, so it cannot start at a value. Set "
                "algorithm.credit.head={kind: linear, start: 0}."
            )
        layer.bias.copy_(shard_like(start_bias(self.head, value), layer.bias))
        return True

    def _read(self, sequences: Sequences, positions: Tensor) -> Tensor:
        # the policy's pass comes before this network's, because both may be sharded
        features = self._features(sequences) if isinstance(self.model, SideModel) else None
        return self.passes(self._outputs, sequences, positions, features)

    def _features(self, sequences: Sequences) -> tuple[Tensor, ...]:
        """The policy's hidden states: those that came along, else the policy is asked."""
        if sequences.features is not None:
            return sequences.features
        assert self.features_of is not None, "a side critic needs the policy's features"
        return self.features_of(sequences)

    def _outputs(self, sequences: Sequences, positions: Tensor, features: tuple[Tensor, ...] | None) -> Tensor:
        hidden = self._hidden(sequences, features)
        head = value_head(self.model)
        hidden = hidden[positions.to(hidden.device)].float()
        # in float32 also under autocast: bf16 has steps of 2^-8 near 1, as large as the TD errors
        return F.linear(hidden, head.weight.float(), None if head.bias is None else head.bias.float())

    def _hidden(self, sequences: Sequences, features: tuple[Tensor, ...] | None) -> Tensor:
        if features is None:
            with precision(self.autocast, self.model):
                return hidden_states(self.model, sequences.tokens, self.layout)
        prompts = [len(t) - n for t, n in zip(sequences.tokens, sequences.response_lengths, strict=True)]
        return self.model(tuple(rows.detach() for rows in features), prompts)


def output_embeddings(model: PreTrainedModel) -> torch.nn.Module:
    """The projection onto the vocabulary; raises ModelError for a model that has none."""
    projection = model.get_output_embeddings()
    if projection is None:
        raise ModelError(
            f"{type(model).__name__} has no output embeddings; the policy must be a causal language model."
        )
    return projection


def logits_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The function hidden (n, d) -> logits (n, vocabulary), with the architecture's scaling or capping."""
    projection = output_embeddings(model)
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
    scale = scale * (getattr(config, "lm_head_multiplier", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)

    def head(hidden: Tensor) -> Tensor:
        logits = projection(hidden)
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head


@torch.no_grad()
@full_products()
def choose_layout(model: PreTrainedModel, wanted: Layout | None = None) -> Layout:
    """`packed` if it gives the padded layout's numbers on a test, else `padded`.

    The test runs two short sequences in both layouts, with full float32 products, and, for a causal language model,
    compares our logits with the model's own. Raises ModelError for an architecture whose numbers would be wrong, and
    for one that cannot run.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    longest = min(PROBE, context_length(config) or PROBE)
    tokens = [torch.arange(1, n + 1, device=model.device) * 7 % config.vocab_size for n in (longest, 4)]
    tokens[0][-1] = config.vocab_size - 1  # the largest id: the model's tables must have a row for it
    own = ours = None
    try:
        padded = hidden_states(model, tokens, "padded")
        alone = hidden_states(model, tokens[1:], "padded")
        if model.get_output_embeddings() is not None:
            own = model(input_ids=tokens[0][None], use_cache=False).logits[0]
            ours = logits_head(model)(padded[: len(tokens[0])])
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an unknown architecture may raise anything
        raise ModelError(
            f"{name} ({config.model_type}) cannot be trained here: running its backbone on two short sequences failed "
            f"with {type(error).__name__}: {error}. Take a decoder-only text model of another architecture."
        ) from error
    if not bool(padded.isfinite().all()):
        raise ModelError(
            f"{name} gives numbers that are not finite for two short sequences: its weights are damaged. Take another "
            "folder."
        )
    if own is not None and ours is not None and not _close(ours, own):
        raise ModelError(
            f"The logits of {name} are not its output embedding applied to its last hidden state; "
            "training it here would optimise wrong probabilities. Use another architecture."
        )
    if not _close(padded[-len(tokens[1]) :], alone):
        raise ModelError(
            f"{name} gives other numbers for a sequence with padding on its right than alone; training it here would "
            "optimise wrong probabilities. Use another architecture."
        )
    if wanted == "padded" or not supports_packing(model):
        return "padded"
    try:
        same = torch.allclose(hidden_states(model, tokens, "packed"), padded, atol=1e-3, rtol=1e-3)
    except (ModelError, TypeError, RuntimeError, ValueError):
        same = False
    if not same and wanted == "packed":
        raise ModelError(
            f"{type(model).__name__} gives other numbers on packed sequences. Set trainer.layout to padded."
        )
    return "packed" if same else "padded"


def _close(ours: Tensor, own: Tensor) -> bool:
    """Whether the numbers are equal up to rounding. Tight, because a cap on logits changes small ones only a little."""
    return torch.allclose(ours.float(), own.float(), atol=1e-4, rtol=1e-4)


def precision(autocast: bool, model: PreTrainedModel, *, keep_weights: bool = False) -> Any:
    """Within, products are computed in bfloat16 if `autocast`.

    Bfloat16 copies of weights are kept until the end for `keep_weights` only: the output layer reads its weight once a
    chunk. A body reads each once, and the copies of all layers would take 2 bytes a parameter.
    """
    kind = model.device.type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=autocast, cache_enabled=keep_weights)
