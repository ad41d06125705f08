"""The code-breaking game: marks, turns, and the player of its noisy traces."""

import json
import random

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from vapo.bases.base_figures import measure_base
from vapo.bases.shipped import builtin_model
from vapo.errors import ConfigError
from vapo.tasks import make_task
from vapo.tasks.code_space import CodeSpace, Mark, mark
from vapo.tasks.codebreaker import Codebreaker, CodebreakerOptions, CodeGame, Forgetfulness, code_text
from vapo.tasks.words import COLOURS
from vapo.types import Prompt, Reply, Verdict, stable_hash

E, M, A = Mark.EXACT, Mark.MISPLACED, Mark.ABSENT
CODE = (0, 4, 0, 3)  # red blue red green
MARKS = [
    # by hand, each peg of the code accounting for one peg of the guess
    ("0403", "0403", (E, E, E, E)),
    ("0403", "1111", (A, A, A, A)),
    ("0123", "3210", (M, M, M, M)),
    ("0123", "0132", (E, E, M, M)),
    ("0403", "0000", (E, A, E, A)),  # two reds in the code: both exact, none left for the others
    ("0403", "4040", (M, M, A, M)),  # one 4 in the code
    ("0403", "3000", (M, M, E, A)),  # one red is exact, one is misplaced, the third is too many
    ("0012", "1100", (M, A, M, M)),  # one 1 in the code: the first claims it
    ("1203", "0010", (M, A, M, A)),  # one 0 in the code, further right: the first 0 of the guess claims it
    ("1203", "0000", (A, A, E, A)),  # the exact one claims it before those to its left
    ("01", "10", (M, M)),
]


@pytest.fixture(scope="module")
def game():
    return Codebreaker()


def game_of(**options):
    task = Codebreaker(CodebreakerOptions(**options))
    return CodeGame(CODE, task.options, task.space)


def prompt_of(*colours):
    return Prompt(id="p", text="t", answer={"code": " ".join(colours), "guesses": 5})


@pytest.mark.parametrize(("code", "guess", "marks"), MARKS)
def test_marks_are_those_worked_by_hand(code, guess, marks):
    assert mark(tuple(map(int, code)), tuple(map(int, guess))) == marks


def test_a_mark_never_excludes_the_code_and_one_by_one_leaves_few_more_than_all_marks_together():
    space, rng = CodeSpace(3, 4), random.Random(0)
    more = []
    for _ in range(300):
        code, guess = rng.choice(space.codes), rng.choice(space.codes)
        left = space.all
        for codes in space.left_by(guess, mark(code, guess)):
            left &= codes
        agreeing = {c for c in space.codes if mark(c, guess) == mark(code, guess)}
        by_marks = {c for i, c in enumerate(space.codes) if left >> i & 1}
        assert code in agreeing <= by_marks
        more.append(len(by_marks) - len(agreeing))
        if len(set(guess)) == len(guess):  # without a repeated colour the marks one by one say all
            assert agreeing == by_marks
    assert max(more) > 0


def test_a_code_is_drawn_from_the_set_each_as_often():
    space = CodeSpace(2, 3)
    members = 0b100100010
    drawn = {space.draw(members, uniform) for uniform in (0.0, 0.3, 0.34, 0.6, 0.67, 0.999)}
    assert drawn == {space.codes[1], space.codes[5], space.codes[8]}
    assert space.draw(members, 0.32) == space.codes[1]


def test_another_code_is_hidden_among_those_that_agree_with_all_answers():
    guesses = ["red red blue yellow", "no code"]
    hidden = set()
    for number in range(1000):
        world = game_of()
        said = [world.step(guess).text for guess in guesses]
        world.redraw(stable_hash("draw", number))
        hidden.add(world.code)
        again = CodeGame(world.code, world.options, world.space)
        assert [again.step(guess).text for guess in guesses] == said
    space, left = game_of().space, []
    for code in space.codes:
        world = CodeGame(code, CodebreakerOptions(), space)
        if [world.step(guess).text for guess in guesses] == said:
            left.append(code)
    assert CODE in left
    assert 1 < len(left) < 150
    assert hidden == set(left)


def test_an_episode_answers_every_guess_and_ends_with_the_code():
    world = game_of()
    assert world.reset() == ""
    assert world.step("red red blue yellow") == Reply("red=exact red=misplaced blue=misplaced yellow=absent left=4")
    assert world.step(" red  blue\tred green ") == Reply(done=True, verdict=Verdict("right"))
    world.close()


def test_the_last_guess_ends_the_game():
    world = game_of(guesses=2)
    assert not world.step("red red red red").done
    reply = world.step("red red red red")
    assert reply.done
    assert reply.verdict == Verdict("wrong", "not found in 2 guesses; it was red blue red green")


NO_GUESSES = [
    *(
        "",
        " ",
        "red",
        "red red red red red",
        "red red red pink",
        "red red red white",
        "RED red red red",
        "red=exact left=4",
    ),
    *("<unk> \x00 東", "red,red,red,red", "red " * 100_000, "x" * 3_000_000),
]


@pytest.mark.parametrize("text", NO_GUESSES)
def test_text_that_is_no_guess_is_malformed_and_counts(text):
    world = game_of(guesses=3)
    assert world.step(text) == Reply("malformed left=2")
    assert world.step(text) == Reply("malformed left=1")
    reply = world.step(text)
    assert reply.done
    assert reply.verdict is not None
    assert (reply.verdict.status, reply.verdict.kind) == ("wrong", "unreadable")
    assert len(reply.verdict.reason) < 200
    assert reply.verdict.reason.isprintable()


def test_the_verifier_judges_the_guesses_as_the_episode_does(game):
    prompt = prompt_of(*code_text(CODE).split())
    right, other = code_text(CODE), "red red red red"
    assert game.verify(prompt, f"{other}\nred\n{right}") == Verdict("right")
    assert game.verify(prompt, f"{right}\n{other}").reason == "goes on after guess 1, the last one"
    assert game.verify(prompt, "\n".join([other] * 5)).reason.startswith("not found in 5 guesses")
    assert game.verify(prompt, "\n".join([*[other] * 5, right])).reason == "goes on after guess 5, the last one"
    assert game.verify(prompt, other).reason == "stopped after 1 of 5 guesses"
    assert game.verify(prompt, right.replace(" ", "\n")).reason == "stopped after 4 of 5 guesses"


@pytest.mark.parametrize(
    "text", ["", "\n\n\n\n\n\n\n\n", "red", "\x00\n東", "x" * 3_000_000, "red red red red\n" * 50_000]
)
def test_the_verifier_calls_any_text_wrong(game, text):
    assert game.verify(game.train[0], text).status == "wrong"


@pytest.mark.parametrize(
    "answer",
    [None, 7, "red", {}, {"code": 7, "guesses": 5}, {"code": "red red red", "guesses": 5}, {"code": "red red red red"}],
)
def test_a_prompt_of_another_task_has_no_game_and_no_verdict(game, answer):
    prompt = Prompt(id="x", text="y", answer=answer)
    assert game.verify(prompt, "red red red red").status == "invalid"
    with pytest.raises(ConfigError, match="prompt x is not of this code-breaking game"):
        game.environment(prompt, 0)


def test_train_and_heldout_codes_are_disjoint_and_all_there_are(game):
    train, heldout = ({prompt.answer["code"] for prompt in prompts} for prompts in (game.train, game.heldout))
    assert not train & heldout
    assert (len(train), len(heldout)) == (6**4 - 200, 200)
    assert list(Codebreaker().heldout) == list(game.heldout)
    assert [p.answer for p in make_task("codebreaker", guesses=6).heldout] != [p.answer for p in game.heldout]


def test_the_prompt_does_not_tell_the_code(game):
    assert {prompt.text for prompt in game.train} == {"break 4 pegs of 6 colours in 5 guesses :"}


def test_an_episode_fits_the_limit_and_every_word_is_known(game):
    known = set(game.vocabulary)
    for options in (CodebreakerOptions(), CodebreakerOptions(pegs=5, colours=5, guesses=12)):
        task = Codebreaker(options)
        prompt = task.train[0]
        world = task.environment(prompt, 0)
        assert known.issuperset(str(prompt.text).split())
        tokens = 0
        while True:
            guess = " ".join([COLOURS[0]] * options.pegs)
            reply = world.step(guess)
            tokens += options.pegs + 1 + len(reply.text.split())
            assert known.issuperset([*guess.split(), *reply.text.split()])
            if reply.done:
                break
        assert tokens <= task.max_response_tokens
        assert task.max_turns == options.guesses
    assert known.issuperset(game_of().step("x").text.split())


def test_a_player_who_recalls_more_wins_more():
    rng = random.Random(0)
    shares = []
    for exponent in (100.0, 2.0, 0.0):  # recalls next to nothing, as the traces do, everything
        task = Codebreaker(forgetfulness=Forgetfulness(exponent, practice=0.0))
        shares.append(sum(task.verify(*task.noisy_trace(rng)).right for _ in range(300)) / 300)
    assert shares[0] < 0.06
    assert 0.15 < shares[1] < 0.4
    assert shares[2] > 0.9


def test_practice_has_more_guesses_a_careful_player_and_no_heldout_code(game):
    rng = random.Random(0)
    traces = [game.noisy_trace(rng) for _ in range(400)]
    heldout = {prompt.answer["code"] for prompt in game.heldout}
    assert not heldout & {prompt.answer["code"] for prompt, _ in traces}
    practice = [trace for trace in traces if trace[0].answer["guesses"] == 7]
    assert 150 < len(practice) < 250
    assert all(prompt in game.train for prompt, _ in traces if prompt.answer["guesses"] == 5)
    assert sum(game.verify(*trace).right for trace in practice) / len(practice) > 0.95
    assert practice[0][0].text == "break 4 pegs of 6 colours in 7 guesses :"
    assert game.environment(practice[0][0], 0).step("x").text == "malformed left=6"


def test_the_same_seed_gives_the_same_traces(game):
    first = [game.noisy_trace(random.Random(5)) for _ in range(3)]
    assert first == [Codebreaker().noisy_trace(random.Random(5)) for _ in range(3)]


def test_too_many_codes_are_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"task\.pegs=5 and task\.colours=8 make 32768 codes.* 4096 at most"):
        CodebreakerOptions(pegs=5, colours=8)
    with pytest.raises(ConfigError, match="allow only 16 prompts"):
        _ = Codebreaker(CodebreakerOptions(pegs=2, colours=4, heldout=10)).train


def test_the_shipped_base_wins_at_the_rate_of_its_provenance(game):
    folder = builtin_model("codebreaker", game.options)
    told = json.loads((folder / "provenance.json").read_text())["measured"]["success"]
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    won = measure_base(model, tokenizer, game, game.heldout, 3, seed=1)["success"]
    assert abs(won - told) < 4 * (told * (1 - told) / 600) ** 0.5
