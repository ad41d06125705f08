"""Episodes of several turns: a policy and environments take turns, all episodes of a step together.

Each round samples the next turn of every episode that goes on. The engine is given the prompt and all tokens so far,
which are never tokenised again, then the environments answer. A turn's seed is a hash of its episode's seed and its
number, an environment's of its episode's seed: so an episode is the same alone and in company, if its environment is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from vapo.errors import VapoError
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.turn_state import Player, Start
from vapo.tasks.environments.channels import EnvironmentFaultError
from vapo.types import (
    NOT_JUDGED,
    Completion,
    Decoding,
    Environment,
    Episode,
    Prompt,
    Reply,
    Turn,
    Verdict,
    stable_hash,
)

T = TypeVar("T")


class Replies(Protocol):
    """Makes tokens of what environments say (`vapo.models.dialogue.Dialogue`)."""

    def opening(self, prompt: Prompt, text: str) -> tuple[Prompt, tuple[int, ...]]:
        """The prompt, and the tokens after it, with the text that an environment begins with."""
        ...

    def reply(self, prompt: Prompt, reply: Reply, last: int) -> tuple[int, ...]:
        """The tokens that follow the policy's turn, whose last token is `last`."""
        ...


@dataclass(frozen=True)
class TurnRules:
    """With whom the policy takes turns, and within which limits.

    `environment` makes the world of an episode from its prompt and seed; `workers` of them work at the same time, in
    threads. The episode ends after `max_turns` turns of the policy. A reply is cut to `max_characters`. `turn_end_ids`
    are tokens that end a turn besides the stop tokens. `context` is the most tokens that the model has positions for.
    """

    environment: Callable[[Prompt, int], Environment]
    replies: Replies
    max_turns: int
    max_characters: int = 100_000
    turn_end_ids: tuple[int, ...] = ()
    context: int | None = None
    workers: int = 1


def play(
    engine: RolloutEngine,
    samples: Sequence[tuple[Prompt, int]],
    seeds: Sequence[int],
    how: Decoding,
    decode: Callable[[Sequence[int]], str],
    rules: TurnRules,
    on_progress: Callable[[int, int], None],
    starts: Sequence[Start] = (),
) -> list[Episode]:
    """One episode for each (prompt, number of the sample), in order.

    Everything after the prompt counts towards `how.max_tokens`, text of the environment included. An episode ends when
    its environment says so; with the finish reason "length" at the limit of tokens or turns, or where a reply leaves no
    room for another token (that reply is left out). A turn that was cut off is not shown to the environment. If the
    environment raises, or gives something else than a `Reply`, the verdict is invalid, with the reason. With `starts`,
    one for each sample, the episodes go on from there.

    `on_progress(episodes that are over, their tokens)` is called from time to time.
    """
    players = [
        Player(prompt, number, seed, how.max_tokens) for (prompt, number), seed in zip(samples, seeds, strict=True)
    ]
    for player, start in zip(players, starts, strict=False):
        player.start = start
    stops = set(how.stop_token_ids)

    def report() -> None:
        over = [player for player in players if player.finish]
        on_progress(len(over), sum(len(player.tokens) for player in over))

    with ThreadPoolExecutor(rules.workers, "environment") as threads:

        def worked(work: Callable[[Player], None], chosen: Sequence[Player]) -> Iterator[None]:
            """Work on the players, several at a time where environments may; in this thread where they may not."""
            return threads.map(work, chosen) if rules.workers > 1 else map(work, chosen)

        def each(work: Callable[[Player], None], chosen: Sequence[Player]) -> None:
            for _ in worked(work, chosen):
                report()

        try:
            each(lambda player: _open(player, rules), players)
            while going := [player for player in players if not player.finish]:
                for group in _calls(going, rules.context):
                    _sample_turns(engine, group, how, decode, stops, rules, report)
                each(lambda player: _answer(player, rules), [player for player in going if not player.finish])
        finally:
            list(worked(_close, [player for player in players if player.environment is not None]))
    return [_episode(player, engine.version) for player in players]


def _open(player: Player, rules: TurnRules) -> None:
    """Make the environment, and put what it begins with after the prompt."""
    prompt = player.prompt
    try:
        player.environment = rules.environment(prompt, player.environment_seed)
        text = player.environment.reset()
    except VapoError:
        raise
    except Exception as error:  # the environment may be the user's code
        player.end("stop", _raised(error))
        return
    if not isinstance(text, str):
        player.end("stop", Verdict("invalid", f"reset of the environment gave a {type(text).__name__}, not a text"))
        return
    player.prompt, ids = rules.replies.opening(prompt, _cut(text, rules.max_characters))
    player.opened = len(player.prompt.token_ids) - len(prompt.token_ids)
    player.limit -= player.opened
    if len(ids) >= player.room:
        told, most = player.opened + len(ids), player.opened + player.limit
        reason = f"what the environment begins with leaves no room for a response: {told} of {most} tokens"
        player.end("length", Verdict("invalid", reason))
    elif player.start is not None:
        _replay(player, player.start)
    elif ids:
        player.add(Turn("environment", ids, text=text))


def _replay(player: Player, start: Start) -> None:
    """Take the turns of the start, and let the environment answer again the policy's whole ones.

    What it hides is then drawn anew, if it can: the text so far does not tell it.
    """
    assert player.environment is not None
    for turn in start.turns:
        player.add(turn)
    try:
        for turn in start.turns:
            if turn.author == "policy" and turn is not start.begun:
                player.environment.step(turn.text)
        if redraw := getattr(player.environment, "redraw", None):
            redraw(stable_hash("redraw", player.seed))
    except VapoError:
        raise
    except Exception as error:  # the environment may be the user's code
        player.end("stop", _raised(error))


def _calls(players: Sequence[Player], context: int | None) -> Iterator[list[Player]]:
    """Players whose turns are sampled in one call, as many as the model's context allows.

    A call has one limit, that of the player with the most room; what is too long for another is cut off afterwards,
    and is the same tokens.
    """
    if context is None:
        yield list(players)
        return
    group: list[Player] = []
    for player in sorted(players, key=lambda player: len(player.state.token_ids)):
        most = max(each.room for each in [*group, player])
        if group and len(player.state.token_ids) + most > context:
            yield group
            group = []
        group.append(player)
    yield group


def _sample_turns(
    engine: RolloutEngine,
    players: Sequence[Player],
    how: Decoding,
    decode: Callable[[Sequence[int]], str],
    stops: set[int],
    rules: TurnRules,
    report: Callable[[], None],
) -> None:
    """Let the policy write the next turn of each player."""
    ends = (*how.stop_token_ids, *(token for token in rules.turn_end_ids if token not in stops))
    asked = replace(how, max_tokens=max(player.room for player in players), stop_token_ids=ends)
    states, seeds = [player.state for player in players], [player.turn_seed for player in players]
    completions = engine.generate(states, asked, seeds, lambda *_: report())
    for player, completion in zip(players, completions, strict=True):
        whole = _within(completion, player.room)
        if player.version not in (None, whole.policy_version):
            raise VapoError(
                f"The weights changed from version {player.version} to {whole.policy_version} within an episode: a bug "
                "of the rollout engine, or weights were handed over while it sampled."
            )
        player.version = whole.policy_version
        begun = player.take_begun()
        tokens, logprobs = begun.token_ids + whole.token_ids, begun.logprobs + whole.logprobs
        player.add(Turn("policy", tokens, logprobs, decode([token for token in tokens if token not in stops])))
        if whole.finish_reason == "length":
            player.end("length")


def _within(completion: Completion, room: int) -> Completion:
    """The completion as it is with a limit of `room` tokens."""
    if len(completion.token_ids) <= room:
        return completion
    tokens, logprobs = completion.token_ids[:room], completion.logprobs[:room]
    return replace(completion, token_ids=tokens, logprobs=logprobs, finish_reason="length")


def _answer(player: Player, rules: TurnRules) -> None:
    """Let the environment answer the turn that the policy has just ended."""
    assert player.environment is not None
    try:
        reply = player.environment.step(player.turns[-1].text)
    except VapoError:
        raise
    except Exception as error:  # the environment may be the user's code
        player.end("stop", _raised(error))
        return
    if fault := _fault(reply):
        player.end("stop", Verdict("invalid", f"step of the environment gave {fault}"))
    elif reply.done:
        player.end("stop", reply.verdict)
    elif player.num_turns >= rules.max_turns:
        player.end("length", reply.verdict)
    else:
        reply = _limited(reply, rules.max_characters)
        ids = rules.replies.reply(player.prompt, reply, player.tokens[-1])
        if len(ids) >= player.room:
            player.end("length", reply.verdict)
        else:
            player.add(Turn("environment", ids, text=reply.text))


def _fault(reply: Any) -> str:
    """What is wrong with a reply, in words; "" if nothing is."""
    if not isinstance(reply, Reply):
        return f"a {type(reply).__name__}, not a vapo.types.Reply"
    if not isinstance(reply.text, str):
        return f"a text of the type {type(reply.text).__name__}"
    if not (reply.verdict is None or isinstance(reply.verdict, Verdict)):
        return f"a verdict of the type {type(reply.verdict).__name__}"
    return ""


def _limited(reply: Reply, most: int) -> Reply:
    """The reply with texts of at most so many characters."""
    messages = tuple(_limited_message(message, most) for message in reply.messages)
    return replace(reply, text=_cut(reply.text, most), messages=messages)


def _limited_message(message: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The message with its content as text, and all its own texts (not those of what it holds) cut."""
    texts = {**message, "content": str(message.get("content"))}
    return {key: _cut(value, most) if isinstance(value, str) else value for key, value in texts.items()}


def _cut(text: str, most: int) -> str:
    """The text, cut to its first characters, with a mark where it was cut.

    It does not say how much is left out: a host has cut the text before, and nobody knows. A half of a surrogate pair
    becomes a question mark: no tokenizer takes it.
    """
    kept = text[:most].encode(errors="replace").decode()
    return kept if len(text) <= most else f"{kept}\n[the rest is left out]"


def _raised(error: Exception) -> Verdict:
    if isinstance(error, EnvironmentFaultError):
        return Verdict("invalid", str(error))
    return Verdict("invalid", f"the environment raised {type(error).__name__}: {str(error)[:300]}")


def _close(player: Player) -> None:
    """End the environment, and keep what it leaves for reward functions."""
    assert player.environment is not None
    fault = verdict = None
    try:
        player.environment.close()
        player.left = dict(getattr(player.environment, "left", {}))
        verdict = getattr(player.environment, "verdict", None)
    except Exception as error:  # the environment may be the user's code
        fault = _raised(error)
    if player.verdict is NOT_JUDGED and (known := fault or verdict) is not None:
        player.verdict = known


def _episode(player: Player, version: int) -> Episode:
    assert player.finish is not None
    return Episode(
        prompt=player.prompt,
        sample=player.sample,
        turns=tuple(player.turns),
        response="\n".join(turn.text for turn in player.turns if turn.author == "policy"),
        finish_reason=player.finish,
        policy_version=version if player.version is None else player.version,
        verdict=player.verdict,
        environment=player.left,
        judged=player.verdict is not NOT_JUDGED,
        opened=player.opened,
    )
