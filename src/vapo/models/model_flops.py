"""How many floating-point operations a model's passes need: the numerator of MFU (model FLOPs utilisation).

A product of P weights takes 2·P operations a token: 2·P for scoring, 6·P for an update that trains all of them (2·P
forward, 2·P for the gradient of the inputs, 2·P for that of the weights). Causal attention adds 2·L·d·T² a sequence of
T tokens, and twice that in the backward pass, with L layers of width d = heads x size. What is computed twice (gradient
checkpointing), padding, norms and the optimizer are not counted: the model does not need them.

Source: arXiv:2204.02311, appendix B, with the causal half of the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelFlops:
    """The operations of one model, by what they grow with."""

    body: float
    """Weights that meet every token."""
    head: float
    """Weights of a language model's output layer, which meets the response's tokens only."""
    trained: float
    """Share of both that is trained."""
    attention: int
    """Layers x heads x head size; 0 for a model without attention."""

    def score(self, lengths: Sequence[int], responses: int) -> float:
        """A forward pass over sequences of these lengths, with so many response tokens in all."""
        return self._weights(lengths, responses) + self._attention(lengths)

    def update(self, lengths: Sequence[int], responses: int) -> float:
        """A forward and a backward pass."""
        return (2 + self.trained) * self._weights(lengths, responses) + 3 * self._attention(lengths)

    def _weights(self, lengths: Sequence[int], responses: int) -> float:
        return 2 * (self.body * sum(lengths) + self.head * responses)

    def _attention(self, lengths: Sequence[int]) -> float:
        return 2 * self.attention * sum(length**2 for length in lengths)


def model_flops(model: PreTrainedModel) -> ModelFlops:
    """The operations of a policy or a critic; of experts, those that a token is sent to."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    sent = getattr(config, "num_experts_per_tok", None)
    experts = next(
        (n for name in ("num_experts", "num_local_experts", "n_routed_experts") if (n := getattr(config, name, None))),
        0,
    )
    used = sent / experts if sent and experts else 1.0
    body = trained = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or module is output:
            continue
        for weight in module.parameters(recurse=False):
            if weight.ndim >= 2:
                met = weight.numel() * (used if ".experts" in name else 1.0)
                body += met
                trained += met * weight.requires_grad
    head = 0.0
    if output is not None:
        head = float(sum(weight.numel() for weight in output.parameters() if weight.ndim >= 2))
        trained += sum(weight.numel() for weight in output.parameters() if weight.ndim >= 2 and weight.requires_grad)
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    layers = getattr(config, "num_hidden_layers", None) or 0
    return ModelFlops(body, head, trained / max(1.0, body + head), layers * heads * size)
