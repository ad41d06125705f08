"""How good a base model is before any training: success rate, lengths, reasons for failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import quantiles
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from vapo.bases.base_traces import EOS_ID, encode, world_of
from vapo.models.tokens import response_text
from vapo.tasks.full_task import part_of
from vapo.types import Prompt, Task, Verdict, stable_hash

# (phase, done, total, figures): "train" counts optimizer steps, "measure" tokens of the longest response.
Progress = Callable[[str, int, int, dict[str, float]], None]


class Played(NamedTuple):
    """An episode of a base model."""

    length: int
    """Tokens after the prompt."""
    cut: bool
    """Whether it reached the limit of tokens or turns."""
    verdict: Verdict


def measure_base(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The model's success rate (avg@samples), lengths and reasons for failure on prompts, at temperature 1.

    Greedy decoding is not representative: the most likely response is not a typical one if the wording is free.
    """
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    several_turns = part_of(task, "environment", None) is not None
    play = play_turns if several_turns else _play_one_turn
    played = play(model, tokenizer, task, repeated, seed, on_progress)
    lengths = [episode.length for episode in played]
    solved, wrong_because = set[str](), Counter[str]()
    for prompt, episode in zip(repeated, played, strict=True):
        if episode.verdict.right:
            solved.add(prompt.id)
        elif episode.cut:
            wrong_because["cut at the limit"] += 1
        else:
            wrong_because[episode.verdict.kind] += 1
    count = len(repeated)
    return {
        "prompts": len(prompts),
        "samples_per_prompt": samples,
        "success": round(1 - wrong_because.total() / count, 4),
        "prompts_ever_solved": round(len(solved) / len(prompts), 4),
        "wrong_because": {why: round(n / count, 4) for why, n in wrong_because.most_common()},
        "mean_length": round(sum(lengths) / count, 1),
        "length_deciles": [round(decile) for decile in quantiles(lengths, n=10)] if count > 1 else lengths,
    }


def sample_responses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    max_tokens: int,
    seed: int,
    on_progress: Progress | None = None,
    rows: int = 800,
) -> list[tuple[list[int], bool]]:
    """`(response tokens, stopped)` per prompt at temperature 1; `stopped` is False if cut at `max_tokens`.

    A simple sampler for measuring new base models; training uses `vapo.rollout`.
    """
    generator = torch.Generator().manual_seed(stable_hash("measure base", seed))
    contexts = [encode(tokenizer, str(prompt.text)) for prompt in prompts]
    return _sample(model, contexts, max_tokens, generator, on_progress, rows)


def play_turns(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Any,
    prompts: Sequence[Prompt],
    seed: int,
    on_progress: Progress | None = None,
) -> list[Played]:
    """An episode of several turns for each prompt, at temperature 1."""
    generator = torch.Generator().manual_seed(stable_hash("measure base", seed))
    worlds = [world_of(task, prompt, seed) for prompt in prompts]
    tokens = [encode(tokenizer, str(prompt.text)) for prompt in prompts]
    starts = [len(prompt) for prompt in tokens]
    lost = Verdict("wrong", "cut off")
    played: dict[int, Played] = {}
    for i, world in enumerate(worlds):
        assert world is not None
        tokens[i] += encode(tokenizer, world.reset())
    for turn in range(task.max_turns):
        going = [i for i in range(len(prompts)) if i not in played]
        room = {i: task.max_response_tokens - (len(tokens[i]) - starts[i]) for i in going}
        drawn = _sample(model, [tokens[i] for i in going], max(room.values(), default=0), generator)
        for i, (response, stopped) in zip(going, drawn, strict=True):
            world = worlds[i]
            assert world is not None
            tokens[i] += response[: room[i]]
            if not stopped or len(response) > room[i]:
                played[i] = Played(len(tokens[i]) - starts[i], True, lost)
                continue
            reply = world.step(response_text(tokenizer, response, (EOS_ID,)))
            following = encode(tokenizer, reply.text)
            if reply.done:
                played[i] = Played(len(tokens[i]) - starts[i], False, reply.verdict or lost)
            elif turn + 1 == task.max_turns or len(response) + len(following) >= room[i]:
                played[i] = Played(len(tokens[i]) - starts[i], True, reply.verdict or lost)
            else:
                tokens[i] += following
        if on_progress:
            on_progress("measure", turn + 1, task.max_turns, {})
    return [played[i] for i in range(len(prompts))]


def _play_one_turn(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    prompts: Sequence[Prompt],
    seed: int,
    on_progress: Progress | None = None,
) -> list[Played]:
    """A response to each prompt, judged by the task."""
    responses = sample_responses(model, tokenizer, prompts, task.max_response_tokens, seed, on_progress)
    return [
        Played(len(tokens), not stopped, task.verify(prompt, response_text(tokenizer, tokens, (EOS_ID,))))
        for prompt, (tokens, stopped) in zip(prompts, responses, strict=True)
    ]


@torch.no_grad()
def _sample(
    model: LlamaForCausalLM,
    contexts: Sequence[list[int]],
    max_tokens: int,
    generator: torch.Generator,
    on_progress: Progress | None = None,
    rows: int = 800,
) -> list[tuple[list[int], bool]]:
    """`(tokens, stopped)` behind each context."""
    responses: list[list[int]] = [[] for _ in contexts]
    by_length = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    batches = [
        same[at : at + rows]
        for _, group in groupby(by_length, key=lambda i: len(contexts[i]))
        for same in [list(group)]
        for at in range(0, len(same), rows)
    ]
    total = len(batches) * max_tokens
    for number, active in enumerate(batches):  # the contexts of a batch have equal length, so it needs no padding
        cache = DynamicCache()
        inputs = torch.tensor([contexts[i] for i in active])
        for step in range(max_tokens):
            logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1]
            chosen = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
            for i, token in zip(active, chosen.squeeze(1).tolist(), strict=True):
                responses[i].append(token)
            going = torch.nonzero(chosen.squeeze(1) != EOS_ID).squeeze(1)
            if len(going) < len(active):
                active = [active[i] for i in going.tolist()]
                cache.batch_select_indices(going)
            if not active:
                break
            inputs = chosen[going]
            if on_progress and step % 16 == 0:
                on_progress("measure", number * max_tokens + step, total, {})
    if on_progress:
        on_progress("measure", total, total, {})
    return [(tokens, tokens[-1] == EOS_ID) for tokens in responses]
