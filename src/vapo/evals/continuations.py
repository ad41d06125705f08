"""Cut responses at several places, and draw and judge K continuations of each prefix.

A continuation of a prefix of n tokens has at most limit - n tokens, as the response itself had, so that the share of
right continuations is an unbiased estimate of the policy's value of that state.

Source: VinePPO, arXiv:2410.01679, §4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vapo.errors import ConfigError
from vapo.evals.kept_lines import KeptLines
from vapo.rollout.collect import judge_episodes, sample_episodes
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.turn_state import start_after
from vapo.rollout.turns import TurnRules, play
from vapo.tasks.full_task import FullTask
from vapo.types import Completion, Decoding, Episode, FinishReason, Prompt, sample_seed, stable_hash

BLOCK = 1024
"""Continuations that are sampled, judged and saved together; work that is interrupted loses at most these."""
LIMIT_STEP = 8
"""Prefixes of about equal length go on in one call: their limits differ by at most this part of the response limit."""


@dataclass(frozen=True)
class Prefix:
    """The first `length` tokens of a response, and the verdicts on its continuations."""

    sample: int
    """The first response of the prompt that begins with it."""
    length: int
    right: int
    valid: int


@dataclass(frozen=True)
class Response:
    """A sampled response: its tokens, its verdict (None: the verifier could not tell), and its prefix at each
    position, as a place in the prompt's list."""

    token_ids: tuple[int, ...]
    right: bool | None
    truncated: bool
    prefixes: tuple[int, ...]


@dataclass(frozen=True)
class ContinuedPrompt:
    """A prompt, G responses to it, and their prefixes: equal ones are one prefix."""

    prompt: Prompt
    responses: tuple[Response, ...]
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True)
class Sampler:
    """What responses and continuations are drawn with. `context` is the most tokens the model has positions for."""

    engine: RolloutEngine
    task: FullTask
    how: Decoding
    decode: Callable[[Sequence[int]], str]
    seed: int
    context: int | None = None
    rules: TurnRules | None = None
    """How episodes of several turns are played."""


def continue_prompts(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    *,
    responses: int,
    fractions: Sequence[float],
    continuations: int,
    kept: KeptLines | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> list[ContinuedPrompt]:
    """Every prompt with `responses` responses, cut at each fraction f of their length l behind token floor(f·l) of
    those that the policy wrote, and `continuations` of each prefix.

    In an episode of several turns the environment answers the turns of the prefix again, made with its own seed: what
    it draws later is what it drew there, so the value is that for this draw. An environment with `redraw` then hides
    something else that agrees with its answers, in each continuation: so the value is that of the text.

    Every seed depends on the run seed, the prompt, and the numbers of response, prefix and continuation, so a result
    does not depend on its company. Prompts in `kept` are taken from there; new ones are put there. `on_block(done,
    total)` counts the blocks of prompts that are done, `on_progress` what is sampled within one.
    """
    found = {prompt.id: _read(prompt, kept.get(prompt.id), continuations) if kept else None for prompt in prompts}
    missing = [prompt for prompt in prompts if found[prompt.id] is None]
    size = _block_size(responses, len(fractions), continuations)
    blocks = [missing[at : at + size] for at in range(0, len(missing), size)]
    on_block(0, len(blocks))
    for number, block in enumerate(blocks, start=1):
        for done in _continue_block(sampler, block, responses, fractions, continuations, on_progress):
            found[done.prompt.id] = done
            if kept:
                kept.put(done.prompt.id, _record(done))
        on_block(number, len(blocks))
    return [done for prompt in prompts if (done := found[prompt.id])]


def num_blocks(prompts: int, responses: int, positions: int, continuations: int) -> int:
    """The blocks in which `continue_prompts` takes so many prompts."""
    return -(-prompts // _block_size(responses, positions, continuations))


def _block_size(responses: int, positions: int, continuations: int) -> int:
    return max(1, BLOCK // (responses * positions * continuations))


def prefix_length(length: int, fraction: float) -> int:
    """Tokens before the cut of a response of `length` tokens; at least one token is left."""
    return min(int(fraction * length + 1e-9), max(0, length - 1))


def _continue_block(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    responses: int,
    fractions: Sequence[float],
    continuations: int,
    on_progress: Callable[[int, int], None],
) -> Iterator[ContinuedPrompt]:
    total = len(prompts) * responses
    sampled = sample_episodes(
        sampler.engine,
        prompts,
        per_prompt=responses,
        how=sampler.how,
        decode=sampler.decode,
        seed=sampler.seed,
        step="judge",
        rules=sampler.rules,
        on_progress=lambda done, _: on_progress(done, total),
    )
    sampled = judge_episodes(sampled, sampler.task, lambda done, of: on_progress(done, of), per_prompt=responses)
    _check_openings(prompts, sampled, responses)
    apart = sampler.rules is not None
    cut = [_cut(sampled[at : at + responses], fractions, apart=apart) for at in range(0, total, responses)]
    asked = [(at, prefix) for at, (_, prefixes) in enumerate(cut) for prefix in range(len(prefixes))]
    cuts = [(sampled[at * responses + cut[at][1][i].sample], cut[at][1][i].length) for at, i in asked]
    if sampler.rules is not None:
        verdicts = _played_verdicts(sampler, sampler.rules, cuts, continuations, on_progress)
    else:
        starts = [(episode.prompt, episode.token_ids[:length]) for episode, length in cuts]
        verdicts = _verdicts(sampler, starts, continuations, on_progress)
    counted: dict[tuple[int, int], Prefix] = {}
    for (at, i), (right, valid) in zip(asked, verdicts, strict=True):
        counted[at, i] = replace(cut[at][1][i], right=right, valid=valid)
    for at, prompt in enumerate(prompts):
        sampled_responses, prefixes = cut[at]
        yield ContinuedPrompt(prompt, sampled_responses, tuple(counted[at, i] for i in range(len(prefixes))))


def _check_openings(prompts: Sequence[Prompt], episodes: Sequence[Episode], responses: int) -> None:
    """Raise ConfigError where environments have added to the prompts: then a prompt's responses have none in common."""
    for number, episode in enumerate(episodes):
        if episode.prompt.token_ids != prompts[number // responses].token_ids:
            raise ConfigError(
                "vapo critic cannot judge episodes whose environment adds to a chat's prompt in reset(). Let the "
                "problem say it, and reset() return nothing."
            )


def _cut(
    episodes: Sequence[Episode], fractions: Sequence[float], *, apart: bool
) -> tuple[tuple[Response, ...], list[Prefix]]:
    """The responses to one prompt and their prefixes, each once; those of other responses `apart`, if each has an
    environment of its own."""
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    prefixes: list[Prefix] = []
    responses = []
    for number, episode in enumerate(episodes):
        tokens, at = episode.token_ids, []
        own = [i for i, written in enumerate(episode.written) if written] or [0]
        for fraction in fractions:
            start = tokens[: own[prefix_length(len(own), fraction)]]
            place = (number if apart else 0, start)
            if place not in places:
                places[place] = len(prefixes)
                prefixes.append(Prefix(number, len(start), 0, 0))
            at.append(places[place])
        right = episode.verdict.right if episode.verdict.valid else None
        responses.append(Response(tokens, right, episode.truncated, tuple(at)))
    return tuple(responses), prefixes


def _verdicts(
    sampler: Sampler,
    starts: Sequence[tuple[Prompt, tuple[int, ...]]],
    continuations: int,
    on_progress: Callable[[int, int], None],
) -> list[tuple[int, int]]:
    """Of each prefix of a prompt's response, how many of its continuations are right, and how many the verifier could
    judge."""
    total, done = len(starts) * continuations, 0
    whole: dict[int, list[Episode]] = {}
    for group in _alike(starts, sampler.how.max_tokens, sampler.context):
        shortest = min(len(starts[i][1]) for i in group)
        how = replace(sampler.how, max_tokens=sampler.how.max_tokens - shortest)
        asked = [i for i in group for _ in range(continuations)]
        seeds = [_seed(sampler.seed, *starts[i], k) for i in group for k in range(continuations)]
        states = [replace(p, token_ids=(*p.token_ids, *start)) for p, start in (starts[i] for i in asked)]
        drawn = sampler.engine.generate(
            states, how, seeds, lambda now, _, before=done: on_progress(before + now, total)
        )
        done += len(drawn)
        for i, completion in zip(asked, drawn, strict=True):
            whole.setdefault(i, []).append(_joined(sampler, *starts[i], completion))
    episodes = [episode for i in range(len(starts)) for episode in whole[i]]
    return _counted(sampler, episodes, continuations, on_progress)


def _played_verdicts(
    sampler: Sampler,
    rules: TurnRules,
    cuts: Sequence[tuple[Episode, int]],
    continuations: int,
    on_progress: Callable[[int, int], None],
) -> list[tuple[int, int]]:
    """`_verdicts` of episodes of several turns, each cut after so many tokens."""
    total = len(cuts) * continuations
    samples, seeds, starts = [], [], []
    for episode, length in cuts:
        start = start_after(
            episode.turns, length, sample_seed(sampler.seed, "judge", episode.prompt.id, episode.sample)
        )
        state = (*episode.token_ids[:length], episode.sample)
        for number in range(continuations):
            samples.append((episode.prompt, number))
            seeds.append(_seed(sampler.seed, episode.prompt, state, number))
            starts.append(start)
    played = play(
        sampler.engine,
        samples,
        seeds,
        sampler.how,
        sampler.decode,
        rules,
        lambda done, _: on_progress(done, total),
        starts,
    )
    return _counted(sampler, played, continuations, on_progress)


def _counted(
    sampler: Sampler, episodes: Sequence[Episode], continuations: int, on_progress: Callable[[int, int], None]
) -> list[tuple[int, int]]:
    """How many of each prefix's continuations are right, and how many the verifier could judge."""
    total = len(episodes)
    # the count stays the same; the call shows that the work continues
    judged = judge_episodes(episodes, sampler.task, lambda *_: on_progress(total, total), per_prompt=continuations)
    found = []
    for at in range(0, total, continuations):
        verdicts = [episode.verdict for episode in judged[at : at + continuations]]
        found.append((sum(v.right for v in verdicts), sum(v.valid for v in verdicts)))
    return found


def _alike(starts: Sequence[tuple[Prompt, tuple[int, ...]]], limit: int, context: int | None) -> Iterator[list[int]]:
    """Prefixes that go on in one call, all with the limit of the shortest: what is too long is cut off afterwards."""
    order = sorted(range(len(starts)), key=lambda i: len(starts[i][1]))
    group: list[int] = []
    for i in order:
        prompt, start = starts[i]
        if group:
            shortest = len(starts[group[0]][1])
            fits = context is None or len(prompt.token_ids) + len(start) + limit - shortest <= context
            if not fits or len(start) - shortest > limit // LIMIT_STEP:
                yield group
                group = []
        group.append(i)
    if group:
        yield group


def _joined(sampler: Sampler, prompt: Prompt, start: tuple[int, ...], completion: Completion) -> Episode:
    """Prefix and continuation as one response, no longer than the response limit."""
    added = completion.token_ids[: sampler.how.max_tokens - len(start)]
    finish: FinishReason = completion.finish_reason if len(added) == len(completion.token_ids) else "length"
    tokens = (*start, *added)
    stops = set(sampler.how.stop_token_ids)
    unknown = (float("nan"),) * len(tokens)  # no verdict needs the log-probabilities
    text = sampler.decode([token for token in tokens if token not in stops])
    return Episode.of_completion(prompt, 0, Completion(tokens, unknown, finish, completion.policy_version), text)


def _seed(seed: int, prompt: Prompt, start: tuple[int, ...], number: int) -> int:
    return stable_hash("continuation", seed, prompt.id, start, number)


def _record(done: ContinuedPrompt) -> dict[str, Any]:
    return {
        "responses": [
            {
                "tokens": list(r.token_ids),
                "verdict": {True: "right", False: "wrong", None: "invalid"}[r.right],
                "truncated": r.truncated,
                "prefixes": list(r.prefixes),
            }
            for r in done.responses
        ],
        "prefixes": [{"sample": p.sample, "length": p.length, "right": p.right, "valid": p.valid}
                     for p in done.prefixes],
    }  # fmt: skip


def _read(prompt: Prompt, line: Any | None, continuations: int) -> ContinuedPrompt | None:
    if line is None:
        return None
    invalid = any(r["verdict"] == "invalid" for r in line["responses"])
    if invalid or any(p["valid"] < continuations for p in line["prefixes"]):
        return None  # the verifier may be able to tell this time
    verdicts = {"right": True, "wrong": False, "invalid": None}
    responses = tuple(
        Response(tuple(r["tokens"]), verdicts[r["verdict"]], r["truncated"], tuple(r["prefixes"]))
        for r in line["responses"]
    )
    return ContinuedPrompt(prompt, responses, tuple(Prefix(**p) for p in line["prefixes"]))
