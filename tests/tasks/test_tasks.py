"""The contract of every built-in task."""

import json
import pickle
import random
import time

import pytest

from vapo.errors import ConfigError
from vapo.tasks import BUILTIN, make_task
from vapo.tasks.words import FILLERS, VOCABULARY
from vapo.types import Prompt, Verdict

FAMILIES = [name for name in BUILTIN if name != "codebreaker"]  # the game of several turns has a test of its own
GARBAGE = [
    "",
    "   \n\t ",
    "done",
    "lost",
    "done done",
    "hmm",
    "hmm ok so",
    "wall",
    "answer",
    "the answer is 42",
    "<unk> <unk>",
    "\x00\x01",
    "東 d4 終",
    "east",
    "east d4 hmm",
    "\\boxed{7}",
    "x" * 3_000_000,
    "east " * 100_000,
    "done " * 100_000,
]


@pytest.fixture(scope="module", params=FAMILIES)
def task(request):
    return make_task(request.param)


def test_the_example_is_right_and_has_a_filler_word(task):
    prompt, response = task.example()
    assert task.verify(prompt, response) == Verdict("right")
    assert set(response.split()) & set(FILLERS)
    assert prompt in task.train


def test_fillers_before_the_last_word_do_not_change_the_verdict(task):
    prompt, response = task.example()
    assert task.verify(prompt, " hmm ok  ".join(["", *response.split()])).right


def test_a_filler_after_the_last_word_is_wrong(task):
    prompt, response = task.example()
    verdict = task.verify(prompt, response + " ok")
    assert verdict.status == "wrong"
    assert "'ok'" in verdict.reason


def test_a_word_after_the_last_word_is_wrong(task):
    prompt, response = task.example()
    for more in ("done", "lost", "east", "7", "blah"):
        verdict = task.verify(prompt, f"{response} {more}")
        assert verdict == Verdict("wrong", f"goes on with '{more}' after 'done'") or "unknown" in verdict.reason


def test_a_response_without_its_last_word_is_wrong(task):
    prompt, response = task.example()
    assert task.verify(prompt, response.removesuffix("done")).reason.startswith("never stopped")


def test_giving_up_is_wrong(task):
    prompt, response = task.example()
    assert task.verify(prompt, response.replace("done", "lost")).reason.startswith("gave up")
    assert task.verify(prompt, "hmm lost").reason.startswith("gave up")


def test_arbitrary_text_is_wrong_with_a_short_printable_reason(task):
    prompt, response = task.example()
    for text in [*GARBAGE, response.upper(), response.replace(" ", ""), response * 2, response * 20_000]:
        started = time.monotonic()
        verdict = task.verify(prompt, text)
        assert time.monotonic() - started < 2
        assert verdict.status == "wrong", text[:40]
        assert 0 < len(verdict.reason) < 120
        assert verdict.reason.isprintable()


def test_random_words_of_the_vocabulary_get_a_valid_verdict(task):
    rng = random.Random(0)
    for prompt in rng.sample(task.heldout, 50):
        text = " ".join(rng.choices(VOCABULARY, k=rng.randrange(30)))
        assert task.verify(prompt, text).valid


def test_a_right_response_without_or_with_a_repeated_word_gets_a_valid_verdict(task):
    prompt, response = task.example()
    words = response.split()
    for i in range(len(words)):
        for changed in (words[:i] + words[i + 1 :], words[:i] + words[i : i + 1] + words[i:]):
            assert task.verify(prompt, " ".join(changed)).valid


@pytest.mark.parametrize("answer", [None, 7, "x", [], {}, {"map": "z"}, {"start": 10**30, "with": ["+3"]}])
def test_a_prompt_of_another_task_is_invalid_not_wrong(task, answer):
    assert task.verify(Prompt(id="x", text="y", answer=answer), "done").status == "invalid"


def test_the_splits_are_disjoint_large_enough_and_without_duplicates(task):
    train, heldout = task.train, task.heldout
    assert len(heldout) >= 200
    assert len(train) >= 100
    for key in ("id", "text"):
        assert len({getattr(p, key) for p in [*train, *heldout]}) == len(train) + len(heldout)


def test_every_instance_has_the_same_prompts(task):
    again = make_task(task.name)
    assert list(again.train) == list(task.train)
    assert list(again.heldout) == list(task.heldout)


def test_prompts_are_those_the_shipped_models_were_trained_on():
    # The shipped models know these maps, numbers and rules. A change needs new models.
    prompts = {name: (make_task(name).heldout[0].text, make_task(name).train[0].text) for name in FAMILIES}
    assert prompts == {
        "maze": ("map a to lake from f3 :", "map b to cave from a1 :"),
        "walk": ("reach 76 with +4 -9 x2 from 4 :", "reach 47 with +3 -8 x2 from 9 :"),
        "chain": ("chain 48 raise flip flip :", "chain 62 grow raise raise :"),
    }


def test_prompts_and_tasks_survive_json_and_pickle(task):
    for prompt in task.heldout[:20]:
        assert json.loads(json.dumps(prompt.answer)) == prompt.answer
    copy = pickle.loads(pickle.dumps(task))
    prompt, response = task.example()
    assert copy.verify(prompt, response).right


def test_noisy_traces_have_no_heldout_prompt_and_fit_the_limit(task):
    rng = random.Random(1)
    heldout = {prompt.text for prompt in task.heldout}
    for _ in range(500):
        prompt, response = task.noisy_trace(rng)
        assert prompt.text not in heldout
        assert 0 < len(response.split()) <= task.max_response_tokens
        assert task.verify(prompt, response).valid


def test_5_to_20_percent_of_the_noisy_traces_are_right(task):
    rng = random.Random(2)
    train_ids = {prompt.id for prompt in task.train}
    traces = [trace for trace in (task.noisy_trace(rng) for _ in range(3000)) if trace[0].id in train_ids]
    success = sum(task.verify(*trace).right for trace in traces) / len(traces)
    assert 0.05 < success < 0.2


def test_the_same_seed_gives_the_same_traces(task):
    first = [task.noisy_trace(random.Random(5)) for _ in range(3)]
    assert first == [make_task(task.name).noisy_trace(random.Random(5)) for _ in range(3)]


def test_every_word_of_prompts_and_responses_is_in_the_vocabulary(task):
    known, rng = set(task.vocabulary), random.Random(3)
    for prompt in [*task.train, *task.heldout]:
        assert known.issuperset(prompt.text.split())
    for _ in range(200):
        assert known.issuperset(task.noisy_trace(rng)[1].split())


def test_the_description_is_one_line(task):
    assert task.description == BUILTIN[task.name].description
    assert 20 < len(task.description) < 100
    assert "\n" not in task.description


def test_an_unknown_task_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"no built-in task 'maz'; did you mean 'maze'\?"):
        make_task("maz")


def test_an_unknown_option_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"no option 'sied'; did you mean 'side'\?"):
        make_task("maze", sied=5)


@pytest.mark.parametrize(
    ("name", "option", "value", "allowed"),
    [
        ("maze", "side", 3, "from 4 to 9"),
        ("maze", "side", 10, "from 4 to 9"),
        ("maze", "side", 5.5, "from 4 to 9"),
        ("maze", "side", "7", "from 4 to 9"),
        ("maze", "side", True, "from 4 to 9"),
        ("maze", "maps", 0, "from 1 to 4"),
        ("maze", "loops", 1.5, "from 0.0 to 1.0"),
        ("maze", "loops", float("nan"), "from 0.0 to 1.0"),
        ("maze", "max_distance", 2, "from 6 to 80"),
        ("walk", "limit", 100, "from 20 to 99"),
        ("walk", "kits", 7, "from 1 to 6"),
        ("walk", "targets", 0, "from 1 to 99"),
        ("chain", "words", 7, "from 2 to 6"),
        ("chain", "max_words", 2, "from 3 to 12"),
        ("chain", "heldout", 0, "from 1 to"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_name_and_range(name, option, value, allowed):
    with pytest.raises(ConfigError, match=rf"task\.{option} must be .*{allowed}"):
        make_task(name, **{option: value})


def test_options_that_leave_too_few_prompts_are_refused():
    with pytest.raises(ConfigError, match="allow only"):
        _ = make_task("maze", side=4, maps=1, goals=1).train
    with pytest.raises(ConfigError, match="may be at most"):
        make_task("chain", words=2, min_words=1, max_words=1)


def test_other_difficulties_give_examples_and_traces():
    for name, options in [
        ("maze", {"side": 9, "maps": 4, "goals": 8, "loops": 0.0, "max_distance": 40}),
        ("maze", {"side": 5, "maps": 1, "loops": 1.0, "min_distance": 1, "heldout": 40}),
        ("walk", {"limit": 30, "kits": 6, "targets": 30, "min_distance": 2}),
        ("chain", {"words": 6, "min_words": 2, "max_words": 8}),
    ]:
        task = make_task(name, **options)
        assert task.verify(*task.example()).right
        assert task.noisy_trace(random.Random(0))[1]
