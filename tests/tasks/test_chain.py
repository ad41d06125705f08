"""The chain task: its rules, and verdicts on final answers."""

from collections import Counter

import pytest

from vapo.tasks.chain import READINGS, Chain, ChainOptions
from vapo.tasks.words import CHAIN_WORDS
from vapo.types import Prompt, Verdict

PROMPT = Prompt(id="p", text="chain 7 raise grow :", answer={"number": 7, "words": ["raise", "grow"]})


@pytest.fixture(scope="module")
def chain():
    return Chain()


def test_solve_matches_rules_worked_by_hand(chain):
    # At the start `raise` adds 9 (its reading 3); after `raise`, `grow` is 2n + 1 (its reading 2).
    assert (chain.rule("", "raise"), chain.rule("raise", "grow")) == (3, 2)
    assert chain.solve(7, ["raise", "grow"]) == [16, 33]


def test_only_the_final_answer_is_judged(chain):
    right = chain.solve(7, ["raise", "grow"])[-1]
    other = (right + 1) % 100
    for steps in ("raise 10 grow 20", "raise 99", "", "hmm ok", "fold 3 fold 3", "7 7 7"):
        assert chain.verify(PROMPT, f"{steps} answer {right} done") == Verdict("right")
        verdict = chain.verify(PROMPT, f"{steps} answer {other} done")
        assert verdict == Verdict("wrong", f"answered {other}, it is {right}")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("raise 10 grow 20", "never stopped"),
        ("raise 10 lost", "gave up"),
        ("raise 10 done", "expected one 'answer' and a number before 'done'"),
        ("answer done", "expected one 'answer' and a number before 'done'"),
        ("answer 1 answer 2 done", "expected one 'answer' and a number before 'done'"),
        ("answer 100 done", "unknown word '100'"),
        ("answer 07 done", "unknown word '07'"),
        ("answer 7 done 8", "goes on with '8' after 'done'"),
        ("answer 7 done so", "ends with 'so', not with a last word"),
        ("", "empty response"),
    ],
)
def test_a_wrong_response_gets_its_reason(chain, response, reason):
    assert chain.verify(PROMPT, response) == Verdict("wrong", reason)


def test_the_solution_of_every_prompt_is_right(chain):
    for prompt in [*chain.heldout, *chain.train]:
        numbers = chain.solve(prompt.answer["number"], prompt.answer["words"])
        assert chain.verify(prompt, f"answer {numbers[-1]} done").right


def test_the_most_common_answer_is_rare(chain):
    answers = Counter(chain.solve(p.answer["number"], p.answer["words"])[-1] for p in chain.heldout)
    assert answers.most_common(1)[0][1] / len(chain.heldout) < 0.06


def test_readings_are_in_range_and_differ_for_most_numbers():
    for word in CHAIN_WORDS:
        for n in range(100):
            results = [reading(n) % 100 for reading in READINGS[word]]
            assert all(0 <= result < 100 for result in results)
        same = sum(len({reading(n) % 100 for reading in READINGS[word]}) < 4 for n in range(100))
        assert same <= 20, word


def test_different_rules_give_different_answers():
    prompt = Chain().heldout[0].answer
    answers = {Chain(ChainOptions(rules=r)).solve(prompt["number"], prompt["words"])[-1] for r in range(6)}
    assert len(answers) > 1
