"""The walk task: operations, the ends of the number line, and the verdicts on wrong responses."""

from collections import deque

import pytest

from vapo.tasks.walk import KITS, Walk
from vapo.tasks.words import WALK_OPERATIONS
from vapo.types import Prompt, Verdict

PROMPT = Prompt(
    id="p",
    text="reach 37 with +3 -8 x2 from 5 :",
    answer={"start": 5, "target": 37, "with": ["+3", "-8", "x2"]},
)


@pytest.fixture(scope="module")
def walk():
    return Walk()


@pytest.mark.parametrize(
    "response",
    [
        # 5 x2 10 +3 13 x2 26 -8 18 x2 36 +3 39 +3 42 +3 45 -8 37
        "x2 10 +3 13 x2 26 -8 18 x2 36 +3 39 +3 42 +3 45 -8 37 done",
        "-8 out x2 10 hmm +3 13 x2 26 ok -8 18 x2 so 36 +3 39 +3 42 +3 45 -8 37 now done",
        "x2 10 x2 20 x2 40 x2 80 x2 out -8 72 -8 64 -8 56 -8 48 -8 40 -8 32 +3 35 +3 38 -8 30 +3 33 +3 36"
        " +3 39 +3 42 +3 45 -8 37 done",
    ],
)
def test_a_walk_to_the_target_is_right(walk, response):
    assert walk.verify(PROMPT, response) == Verdict("right")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("x2 11 done", "move 1: 5 x2 is 10, wrote '11'"),
        ("x2 out done", "move 1: 5 x2 is 10, wrote 'out'"),
        ("-8 -3 done", "move 1: 5 -8 is off the number line, wrote '-3'"),
        ("x2 10 x2 20 x2 40 x2 80 x2 160 done", "move 5: 80 x2 is off the number line, wrote '160'"),
        ("+3 08 done", "move 1: 5 +3 is 8, wrote '08'"),
        ("+4 9 done", "expected one of +3 -8 x2 after move 0, got '+4'"),
        ("x2 10 done", "stopped at 10, not at 37"),
        ("x2 10", "never stopped: at 10 after 1 move"),
        ("x2", "move 1, 5 x2, has no outcome"),
        ("x2 10 lost", "gave up at 10"),
        ("x2 10 lost x2", "goes on with 'x2' after 'lost'"),
        ("37 done", "expected one of +3 -8 x2 after move 0, got '37'"),
        ("done ok", "ends with 'ok', not with a last word"),
        ("", "empty response"),
    ],
)
def test_a_wrong_response_gets_its_reason(walk, response, reason):
    assert walk.verify(PROMPT, response) == Verdict("wrong", reason)


def test_the_shortest_walk_of_every_prompt_is_right(walk):
    for prompt in [*walk.heldout, *walk.train]:
        answer = prompt.answer
        moves = search(answer["start"], answer["target"], answer["with"], walk.options.limit)
        assert walk.options.min_distance <= len(moves) <= walk.options.max_distance
        response = " ".join(f"{operation} {number}" for operation, number in moves) + " done"
        assert walk.verify(prompt, response).right
        assert walk.verify(prompt, response.rsplit(" ", 3)[0] + " done").reason.startswith("stopped at")


def test_all_operations_are_in_the_vocabulary_and_all_kits_differ():
    assert {operation for kit in KITS for operation in kit} <= set(WALK_OPERATIONS)
    assert len(set(KITS)) == len(KITS)


def search(start: int, target: int, kit: list[str], limit: int) -> list[tuple[str, int]]:
    """A shortest list of (operation, number) by breadth-first search, independent of the task's own."""
    queue: deque[tuple[int, list[tuple[str, int]]]] = deque([(start, [])])
    seen = {start}
    while queue:
        number, walk = queue.popleft()
        if number == target:
            return walk
        for operation in kit:
            n = int(operation[1:])
            after = number + n if operation[0] == "+" else number - n if operation[0] == "-" else number * n
            if 0 <= after <= limit and after not in seen:
                seen.add(after)
                queue.append((after, [*walk, (operation, after)]))
    raise AssertionError(f"no walk from {start} to {target}")
