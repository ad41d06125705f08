"""Episodes of several turns: what the engine is asked, what the environment hears, and how they end."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
from scripted import STOP, Numbers, ScriptedEngine, Told, words

import toys
from vapo.errors import VapoError
from vapo.models.dialogue import Dialogue
from vapo.models.tokens import render
from vapo.rollout.collect import judge_episodes, sample_episodes
from vapo.rollout.torch_engine import TorchEngine
from vapo.rollout.turn_state import start_after
from vapo.rollout.turns import TurnRules, play
from vapo.tasks.full_task import FullTask
from vapo.types import Decoding, Prompt, Reply, Verdict

PROMPT = Prompt("p", "p", token_ids=(40, 41))
HOW = Decoding(12, (STOP,))
RIGHT = Verdict("right", score=1.0)


def played(write, world: Told, how: Decoding = HOW, starts=(), **rules):
    engine = ScriptedEngine(write)
    limits = TurnRules(lambda prompt, seed: world, Numbers(), **{"max_turns": 4, **rules})
    (episode,) = play(engine, [(PROMPT, 0)], [7], how, words, limits, lambda done, tokens: None, starts)
    return episode, engine


def test_an_episode_of_two_turns_token_by_token():
    world = Told(Reply("20 21"), Reply("99", done=True, verdict=RIGHT), begin="30")
    episode, engine = played(lambda state, seed: (10, 11, STOP) if len(state) < 5 else (12, STOP), world)
    assert [(t.author, t.token_ids) for t in episode.turns] == [
        ("environment", (30,)), ("policy", (10, 11, 1)), ("environment", (20, 21)), ("policy", (12, 1)),
    ]  # fmt: skip
    # the engine goes on from the very tokens, the environment hears texts without the stop token
    assert engine.calls == [([(40, 41, 30)], 11), ([(40, 41, 30, 10, 11, 1, 20, 21)], 6)]
    assert world.heard == ["10 11", "12"]
    assert episode.written == (False, True, True, True, False, False, True, True)
    assert episode.logprobs == (0.0, -10.0, -11.0, -1.0, 0.0, 0.0, -12.0, -1.0)
    assert (episode.response, episode.verdict, episode.judged) == ("10 11\n12", RIGHT, True)
    assert (episode.finish_reason, episode.policy_version, world.closed) == ("stop", 3, 1)


def test_a_turn_may_end_with_a_token_of_the_task_that_the_environment_hears():
    world = Told(Reply("20"), Reply(done=True))
    episode, _ = played(lambda state, seed: (10, 9, 11), world, turn_end_ids=(9,))
    assert world.heard == ["10 9", "10 9"]
    assert [t.token_ids for t in episode.turns] == [(10, 9), (20,), (10, 9)]


def test_two_turns_with_nothing_said_between_them_stay_two():
    world = Told(Reply(""), Reply(done=True))
    episode, _ = played(lambda state, seed: (10, STOP), world)
    assert [(t.author, t.token_ids) for t in episode.turns] == [
        ("policy", (10, 1)), ("environment", ()), ("policy", (10, 1)),
    ]  # fmt: skip
    assert episode.turn_starts == (True, False, True, False)
    start = start_after(episode.turns, 2, 7)
    again, _ = played(lambda state, seed: (10, STOP), Told(Reply(""), Reply(done=True)), starts=[start])
    assert (again.num_turns, again.turn_starts) == (2, episode.turn_starts)


@pytest.mark.parametrize(
    ("write", "answers", "rules", "lengths", "heard"),
    [
        # a turn that is cut off is not shown to the environment
        (lambda state, seed: (10,) * 20, (), {}, [12], 0),
        (lambda state, seed: (10, STOP) if len(state) == 2 else (10,) * 20, (Reply("20"),), {}, [2, 1, 9], 1),
        # a reply that leaves no room for another token is left out
        (lambda state, seed: (10, STOP), (Reply("20 " * 10),), {}, [2], 1),
        (lambda state, seed: (10, STOP), (Reply("20"), Reply("20")), {"max_turns": 2}, [2, 1, 2], 2),
    ],
    ids=["first turn", "second turn", "reply", "turns"],
)
def test_limits_end_an_episode_as_cut_off(write, answers, rules, lengths, heard):
    world = Told(*answers)
    episode, _ = played(write, world, **rules)
    assert episode.truncated
    assert not episode.judged
    assert [len(turn.token_ids) for turn in episode.turns] == lengths
    assert len(world.heard) == heard
    assert world.closed == 1


def test_a_verdict_counts_where_the_episode_ends():
    wrong = Verdict("wrong", "not yet")
    world = Told(Reply("20", verdict=wrong), Reply("20", verdict=wrong))
    episode, _ = played(lambda state, seed: (10, STOP), world, max_turns=2)
    assert (episode.verdict, episode.truncated) == (wrong, True)


@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (Told(ValueError("no")), "the environment raised ValueError: no"),
        (Told(begin=ValueError("no")), "the environment raised ValueError: no"),
        (Told(begin=None), "reset of the environment gave a NoneType"),
        (Told("text"), "gave a str, not a vapo.types.Reply"),
        (Told(Reply(7)), "gave a text of the type int"),
        (Told(Reply(done=True, verdict=True)), "gave a verdict of the type bool"),
        (Told(begin="30 " * 12), "leaves no room for a response: 12 of 12 tokens"),
    ],
)
def test_an_environment_that_fails_makes_an_invalid_verdict_with_the_reason(world, reason):
    episode, _ = played(lambda state, seed: (10, STOP), world)
    assert episode.verdict.status == "invalid"
    assert reason in episode.verdict.reason
    assert world.closed == 1


def test_a_stop_of_the_run_passes_through_and_closes_environments():
    world = Told(VapoError("stop"))
    with pytest.raises(VapoError, match="stop"):
        played(lambda state, seed: (10, STOP), world)
    assert world.closed == 1


def test_an_environment_that_works_alone_lives_and_ends_in_one_thread():
    class OneThread(Told):
        def reset(self):
            self.connection = sqlite3.connect(":memory:")  # refuses other threads
            return ""

        def close(self):
            self.connection.close()
            super().close()

    world = OneThread(Reply(done=True, verdict=RIGHT))
    episode, _ = played(lambda state, seed: (10, STOP), world)
    assert (episode.verdict, world.closed) == (RIGHT, 1)


def test_a_reply_is_cut_to_its_limit_with_a_mark():
    class Heard(Numbers):
        def reply(self, prompt, reply, last):
            seen.append(reply.text)
            return (20,)

    seen: list[str] = []
    world = Told(Reply("x" * 50), Reply(done=True))
    rules = TurnRules(lambda prompt, seed: world, Heard(), max_turns=4, max_characters=10)
    play(ScriptedEngine(lambda state, seed: (STOP,)), [(PROMPT, 0)], [7], HOW, words, rules, lambda *_: None)
    assert seen == ["x" * 10 + "\n[the rest is left out]"]


@pytest.mark.parametrize("in_prompt", [True, False])
def test_what_an_environment_says_first_takes_of_the_limit_inside_the_prompt_too(in_prompt: bool):
    class Opening(Numbers):
        def opening(self, prompt, text):
            return (
                (replace(prompt, token_ids=(*prompt.token_ids, 30, 31, 32)), ())
                if in_prompt
                else (prompt, (30, 31, 32))
            )

    rules = TurnRules(lambda prompt, seed: Told(Reply(done=True), begin="30 31 32"), Opening(), max_turns=4)
    engine = ScriptedEngine(lambda state, seed: (10,) * 20)
    (played,) = play(engine, [(PROMPT, 0)], [7], HOW, words, rules, lambda *_: None)
    assert played.opened == (3 if in_prompt else 0)
    assert played.opened + len(played.token_ids) == HOW.max_tokens


def test_first_words_inside_the_prompt_that_fill_the_limit_are_counted_against_the_whole_of_it():
    class Opening(Numbers):
        def opening(self, prompt, text):
            return replace(prompt, token_ids=(*prompt.token_ids, *[30] * 20)), ()

    limits = TurnRules(lambda prompt, seed: Told(begin="30"), Opening(), max_turns=4)
    (episode,) = play(ScriptedEngine(lambda state, seed: ()), [(PROMPT, 0)], [7], HOW, words, limits, lambda *_: None)
    assert "leaves no room for a response: 20 of 12 tokens" in episode.verdict.reason


def test_half_a_surrogate_pair_in_what_an_environment_says_becomes_a_question_mark():
    class Heard(Numbers):
        def opening(self, prompt, text):
            seen.append(text)
            return prompt, ()

        def reply(self, prompt, reply, last):
            seen.extend([reply.text, *reply.messages])
            return (20,)

    seen = []
    message = {"role": "tool", "name": "f\ud83d", "content": "b\ud83d", "index": 0}
    world = Told(Reply("a\ud83d", messages=(message,)), Reply(done=True), begin="30 \ud83d")
    rules = TurnRules(lambda prompt, seed: world, Heard(), max_turns=4)
    play(ScriptedEngine(lambda state, seed: (STOP,)), [(PROMPT, 0)], [7], HOW, words, rules, lambda *_: None)
    assert seen == ["30 ?", "a?", {"role": "tool", "name": "f?", "content": "b?", "index": 0}]


def test_one_call_has_the_limit_of_the_most_room_and_cuts_off_the_others():
    # two episodes: the first uses 9 of 12 tokens in its first turn, the second 2; both then write on for 20 tokens
    prompts = [Prompt("a", "a", token_ids=(50,)), Prompt("b", "b", token_ids=(51,))]

    def write(state, seed):
        if len(state) > 1:
            return (10,) * 20
        return (*(10,) * (8 if state == (50,) else 1), STOP)

    for context, calls in ((None, 2), (20, 2), (13, 3)):
        engine = ScriptedEngine(write)
        rules = TurnRules(lambda prompt, seed: Told(Reply("20")), Numbers(), max_turns=4, context=context)
        found = play(engine, [(p, 0) for p in prompts], [1, 2], HOW, words, rules, lambda *_: None)
        assert [[len(t.token_ids) for t in e.turns] for e in found] == [[9, 1, 2], [2, 1, 9]]
        assert len(engine.calls) == calls
        assert context is None or all(max(map(len, states)) + most <= context for states, most in engine.calls)


def test_judging_asks_the_task_only_for_episodes_that_no_environment_has_judged():
    worlds = iter([Told(Reply(done=True, verdict=RIGHT)), Told(Reply(done=True))])
    rules = TurnRules(lambda prompt, seed: next(worlds), Numbers(), max_turns=4)
    found = sample_episodes(
        ScriptedEngine(lambda state, seed: (10, STOP)), [PROMPT], per_prompt=2, how=HOW, decode=words, seed=0, step=0,
        rules=rules,
    )  # fmt: skip
    asked = []
    task = FullTask("t", [], [], 8, lambda p, r: asked.append(r) or Verdict("wrong"))
    assert [e.verdict.status for e in judge_episodes(found, task, per_prompt=2)] == ["right", "wrong"]
    assert asked == ["10"]


class Echo:
    """Says the last digit that it heard, and a digit of its own seed."""

    def __init__(self, seed: int) -> None:
        self.own = str(seed % 10)

    def reset(self) -> str:
        return self.own

    def step(self, response: str) -> Reply:
        digits = [word for word in response.split() if word.isdigit()]
        return Reply(" ".join(["x", *digits[-1:], self.own]))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("slots", [2, 16])
def test_an_episode_is_the_same_alone_and_in_company(slots: int):
    tokenizer = toys.tokenizer()
    engine = TorchEngine(toys.tiny_llama(), slots=slots)
    prompts = [render(tokenizer, Prompt(f"p{i}", f"{i} x" + " x" * (i % 3))) for i in range(6)]
    rules = TurnRules(lambda prompt, seed: Echo(seed), Dialogue(tokenizer, (1,)), max_turns=3, context=64)

    def sample(chosen):
        return sample_episodes(
            engine, chosen, per_prompt=3, how=Decoding(24, (1,)), decode=tokenizer.decode, seed=5, step=2, rules=rules
        )

    together = sample(prompts)
    assert max(episode.num_turns for episode in together) == 3
    assert {episode.finish_reason for episode in together} == {"length"}
    alone = [episode for prompt in prompts for episode in sample([prompt])]
    assert [(e.turns, e.sample, e.response) for e in alone] == [(e.turns, e.sample, e.response) for e in together]


def test_a_prefix_of_an_episode_goes_on_with_the_environment_where_it_was():
    world = Told(Reply("20 21"), Reply(done=True, verdict=RIGHT))
    whole, _ = played(lambda state, seed: (10, 11, STOP) if len(state) == 2 else (12, STOP), world)
    for length, heard in (
        (0, ["13"]),
        (1, ["10 13"]),
        (2, ["10 11 13"]),
        (5, ["10 11", "13"]),
        (6, ["10 11", "12 13"]),
    ):
        again = Told(Reply("20 21"), Reply(done=True, verdict=RIGHT)) if length > 2 else Told(Reply(done=True))
        start = start_after(whole.turns, length, 7)
        episode, engine = played(lambda state, seed: (13, STOP), again, starts=[start])
        assert engine.calls[0] == ([(40, 41, *whole.token_ids[:length])], 12 - length)
        assert again.heard == heard
        assert episode.token_ids == (*whole.token_ids[:length], 13, STOP)


def test_what_an_environment_hides_is_drawn_anew_after_a_prefix_and_never_else():
    class Hiding(Told):
        def redraw(self, seed):
            self.heard.append(seed)

    whole, _ = played(lambda state, seed: (10, STOP), Hiding(Reply("20"), Reply(done=True)))
    heard = []
    for seed in (7, 8):
        world = Hiding(Reply("20"), Reply(done=True))
        engine = ScriptedEngine(lambda state, seed: (13, STOP))
        limits = TurnRules(lambda prompt, seed, world=world: world, Numbers(), max_turns=4)
        start = start_after(whole.turns, 3, 7)
        play(engine, [(PROMPT, 0)], [seed], HOW, words, limits, lambda done, tokens: None, [start])
        heard.append(world.heard)
    assert [what[0] for what in heard] == ["10", "10"]
    assert [len(what) for what in heard] == [3, 3]
    assert [what[2] for what in heard] == ["13", "13"]
    assert heard[0][1] != heard[1][1]
    unasked = Hiding(Reply("20"), Reply(done=True))
    played(lambda state, seed: (10, STOP), unasked)
    assert unasked.heard == ["10", "10"]


def test_a_turn_that_is_written_on_and_the_next_one_have_seeds_of_their_own():
    whole, _ = played(lambda state, seed: (10, 11, STOP), Told(Reply("20"), Reply(done=True)))
    seeds = []

    def write(state, seed):
        seeds.append(seed)
        return (13, STOP)

    start = start_after(whole.turns, 1, 7)
    again = Told(Reply("20"), Reply("20"), Reply(done=True))
    played(write, again, starts=[start])
    assert len(seeds) == 3
    assert len(set(seeds)) == 3


def test_the_seeds_of_turns_and_environments_are_known_values():
    seeds, worlds = [], []

    def write(state, seed):
        seeds.append(seed)
        return (STOP,)

    rules = TurnRules(
        lambda prompt, seed: worlds.append(seed) or Told(Reply("20"), Reply(done=True)), Numbers(), max_turns=4
    )
    play(ScriptedEngine(write), [(PROMPT, 0)], [7], HOW, words, rules, lambda *_: None)
    # a change here changes the samples of every run; the first turn has the seed of an episode of one turn
    assert seeds == [7, 4691447436934744211]
    assert worlds == [1659303105692733481]
