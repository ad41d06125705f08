"""The viewer's logic without a page, run in node: the state in the address, filters, order, λ-weighted errors."""

import json
import shutil
import subprocess
from importlib import resources

import pytest

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node; the browser's tests cover it, too")

INDEX = {
    "prompts": [["p0", "What is 2 + 2?"], ["p1", "What is 6 / 2?"], ["p2", "Name a <b>prime</b>"]],
    "rows": {
        "prompt": [0, 0, 1, 1, 2, 2],
        "verdict": ["right", "wrong", "right", "right", "wrong", "invalid"],
        "reward": [1.0, 0.0, 1.0, 1.0, 0.0, None],
        "tokens": [10, 300, 20, 30, 40, 50],
        "truncated": [False, True, False, False, False, False],
        "full": [True, True, True, True, False, False],
    },
}


def evaluated(expression, **values):
    """The value of an expression over `view_state.js`."""
    script = (resources.files("vapo.reports") / "assets" / "view_state.js").read_text()
    given = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    program = f'"use strict";\n{script}\n{given}\nconsole.log(JSON.stringify({expression}));'
    done = subprocess.run([str(NODE), "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def shown(**state):
    """(prompt, rows) of the groups that pass."""
    call = "shownGroups(index, {...DEFAULTS, ...state}).map((g) => [g.id, g.rows])"
    return evaluated(call, index=INDEX, state=state)


def test_the_state_comes_back_from_the_address():
    state = {"step": "step_000010", "prompt": "a&b=c#%/é\n", "verdict": "right,wrong", "token": "0", "q": "x+y z"}
    back = evaluated("readFragment(writeFragment({...DEFAULTS, ...state}))", state=state)
    assert back == evaluated("({...DEFAULTS, ...state})", state=state)
    assert evaluated("writeFragment(DEFAULTS)") == "#"


def test_what_is_no_state_is_left_out_of_it():
    assert evaluated("readFragment('#curves')") == evaluated("DEFAULTS")
    assert evaluated("readFragment('#__proto__=1&toString=2&constructor=3&step=s')") == evaluated(
        "({...DEFAULTS, step: 's'})"
    )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, [["p0", [0, 1]], ["p1", [2, 3]], ["p2", [4, 5]]]),
        ({"verdict": "right"}, [["p0", [0]], ["p1", [2, 3]]]),
        ({"verdict": "wrong,invalid"}, [["p0", [1]], ["p2", [4, 5]]]),
        ({"end": "cut"}, [["p0", [1]]]),
        ({"end": "stop", "verdict": "right"}, [["p0", [0]], ["p1", [2, 3]]]),
        ({"record": "text"}, [["p2", [4, 5]]]),
        ({"min": "30", "max": "40"}, [["p1", [3]], ["p2", [4]]]),
        ({"name": "WHAT"}, [["p0", [0, 1]], ["p1", [2, 3]]]),
        ({"name": "p2"}, [["p2", [4, 5]]]),
        ({"name": "nothing"}, []),
        ({"sort": "mixed first"}, [["p0", [0, 1]], ["p1", [2, 3]], ["p2", [4, 5]]]),
        ({"sort": "best first"}, [["p1", [2, 3]], ["p0", [0, 1]], ["p2", [4, 5]]]),
        ({"sort": "worst first"}, [["p2", [4, 5]], ["p0", [0, 1]], ["p1", [2, 3]]]),
        ({"sort": "longest first"}, [["p0", [0, 1]], ["p2", [4, 5]], ["p1", [2, 3]]]),
    ],
)
def test_filters_and_order(state, expected):
    assert shown(**state) == expected


def test_a_search_leaves_its_results():
    call = "shownGroups(index, DEFAULTS, new Set([3, 5])).map((g) => [g.id, g.rows, g.all])"
    assert evaluated(call, index=INDEX) == [["p1", [3], 2], ["p2", [5], 2]]


def test_a_group_without_a_valid_response_has_no_mean():
    call = "shownGroups(index, {...DEFAULTS, verdict: 'invalid'}).map((g) => g.mean)"
    assert evaluated(call, index=INDEX) == [None]


def test_the_weighted_errors_of_a_token_sum_to_its_advantage():
    # δ = (.1, -.2, env, .4), γλ = .5: A_0 = .1 - .1 + .1 = .1, A_1 = -.2 + .2 = 0
    errors = [0.1, -0.2, None, 0.4]
    assert evaluated("weightedErrors(errors, 0.5, 1.0, 0)", errors=errors) == pytest.approx([0.1, -0.1, None, 0.1])
    by_token = "weightedErrors(errors, [1, 0.5, 1, 0.5], 1.0, 0)"
    assert evaluated(by_token, errors=errors) == pytest.approx([0.1, -0.2, None, 0.2])
    assert evaluated("weightedErrors(errors, 1.0, 0.5, 1)", errors=errors) == pytest.approx([None, -0.2, None, 0.2])


def test_the_nearest_step_of_another_run_is_of_the_same_phase():
    steps = [{"phase": "pretrain", "step": 9}, {"phase": "train", "step": 1}, {"phase": "train", "step": 20}]
    call = "[nearestStep(steps, {phase: 'train', step: 9}), nearestStep([], {phase: 'train', step: 9})]"
    assert evaluated(call, steps=steps) == [steps[1], None]
    assert evaluated("nearestStep(steps, {phase: 'train', step: 3})", steps=steps[:1]) == steps[0]


def test_turns_numbers_and_answers():
    assert evaluated("turnSpans([['policy', 2], ['environment', 3]])") == [
        {"author": "policy", "start": 0, "end": 2}, {"author": "environment", "start": 2, "end": 5}
    ]  # fmt: skip
    numbers = [None, 0, -0.25, 0.00012, 1234.5, 7, 1e-9]
    assert evaluated("numbers.map(plainNumber)", numbers=numbers) == [
        "–", "0", "−0.250", "0.00012", "1235", "7", "1.0e−9"
    ]  # fmt: skip
    assert evaluated("[answerText('4'), answerText({a: 1}), answerText(3)]") == ["4", '{"a":1}', "3"]
    assert evaluated("[moved([1, 2], 1, 1), moved([1, 2], -1, 1), moved([], 0, 1) ?? null]") == [2, 1, None]
