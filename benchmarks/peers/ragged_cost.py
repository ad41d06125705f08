"""What a real token costs in a ragged batch and in one of equal lengths: the policy's score and its gradient.

Both batches have about the same number of tokens. Attention's own work grows with the square of a length, so the
ragged batch has more of it: the last figure says how much, as a share of the products with weights.
"""

from __future__ import annotations

import time

import torch
from protocol import Channel
from transformers import AutoModelForCausalLM, PreTrainedModel

from models import ragged_lengths
from vapo.models.networks import Policy, Sequences, choose_layout
from vapo.trainer.local_network import CPU_TOKENS

TOKENS, LONGEST = 16_384, 2000


def sequences(lengths: list[int], vocabulary: int) -> list[Sequences]:
    """Micro-batches of at most `CPU_TOKENS` tokens, rows of like length together, as the trainer cuts them."""
    parts: list[list[int]] = [[]]
    for length in sorted(lengths):
        if sum(parts[-1]) + length > CPU_TOKENS:
            parts.append([])
        parts[-1].append(length)
    return [
        Sequences(tuple(torch.randint(0, vocabulary, (n,)) for n in part), tuple(n - 1 for n in part)) for part in parts
    ]


def attention_share(model: PreTrainedModel, parts: list[Sequences]) -> float:
    """Multiplications of causal attention over those with the weights, in a forward pass."""
    config = model.config
    lengths = [len(row) for part in parts for row in part.tokens]
    attention = sum(n * n for n in lengths) * config.hidden_size * config.num_hidden_layers
    return attention / (model.num_parameters() * sum(lengths))


def main() -> None:
    channel = Channel()
    torch.set_num_threads(channel.job["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(channel.job["model"], dtype=torch.float32)
    policy = Policy(model, choose_layout(model))
    count = next(n for n in range(1, 1000) if sum(ragged_lengths(n, LONGEST)) >= TOKENS)
    ragged = ragged_lengths(count, LONGEST)
    equal = [sum(ragged) // count] * count
    work = {name: (sum(n), sequences(n, model.config.vocab_size)) for name, n in (("equal", equal), ("ragged", ragged))}
    channel.send(name="ragged cost", torch=torch.__version__, lengths={"equal": equal, "ragged": ragged})
    while True:
        channel.wait()
        found = {}
        for name, (tokens, parts) in work.items():
            began = time.perf_counter()
            with torch.no_grad():
                for part in parts:
                    policy.logp(part, max(part.response_lengths), with_entropy=True)
            scored = time.perf_counter()
            for part in parts:
                policy.logp(part, max(part.response_lengths))[0].mean().backward()
            ended = time.perf_counter()
            model.zero_grad(set_to_none=True)
            found[name] = {
                "score, µs per token": 1e6 * (scored - began) / tokens,
                "gradient, µs per token": 1e6 * (ended - scored) / tokens,
                "attention / weights, products": attention_share(model, parts),
            }
        channel.send(parts=found)


if __name__ == "__main__":
    main()
