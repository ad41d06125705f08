"""The maze task: maps, moves, and the verdicts on wrong responses."""

import dataclasses
import random
from collections import deque

import pytest

from vapo.tasks.grid import Grid, distances, make_grid, spread_out
from vapo.tasks.maze import Maze, MazeOptions
from vapo.types import Prompt, Verdict

# One map drawn by hand:      north
#   a2 - b2                     |
#    |                   west --+-- east
#   a1 | b1   (a wall between a1 and b1; b1 - b2 open)
STEPS: dict[str, dict[str, str | None]] = {
    "a1": {"north": "a2", "east": None, "south": None, "west": None},
    "a2": {"north": None, "east": "b2", "south": "a1", "west": None},
    "b1": {"north": "b2", "east": None, "south": None, "west": None},
    "b2": {"north": None, "east": None, "south": "b1", "west": "a2"},
}
PROMPT = Prompt(id="p", text="map a to lake from a1 :", answer={"map": "a", "start": "a1", "goal": "lake"})


@pytest.fixture(scope="module")
def small():
    task = Maze(MazeOptions(side=4))
    task.landmarks = {"lake": "b1"}
    task.grids = {"a": Grid("a", STEPS)}
    return task


@pytest.fixture(scope="module")
def maze():
    return Maze()


@pytest.mark.parametrize(
    "response",
    [
        "north a2 east b2 south b1 done",
        "hmm north a2 ok so east hmm b2 south b1 now done",
        "east wall north a2 east b2 south b1 done",
        "north a2 south a1 north a2 east b2 south b1 done",
        "north a2 east b2 south b1 north b2 south b1 done",
        "  north\ta2\neast b2 south b1 done  ",
    ],
)
def test_a_path_to_the_goal_is_right(small, response):
    assert small.verify(PROMPT, response) == Verdict("right")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("east b1 done", "move 1: a wall is east of a1, wrote b1"),
        ("north a2 east b1 done", "move 2: east of a2 is b2, wrote b1"),
        ("north wall east b1 done", "move 1: no wall north of a1"),
        ("north a2 east b2 done", "stopped at b2, the lake is at b1"),
        ("done", "stopped at a1, the lake is at b1"),
        ("north a2 east b2 south b1", "never stopped: at b1 after 3 moves"),
        ("north a2 east", "move 2, east of a2, has no outcome"),
        ("north a2 lost", "gave up at a2"),
        ("north a2 east b2 south b1 done done", "goes on with 'done' after 'done'"),
        ("north a2 lost east b2", "goes on with 'east' after 'lost'"),
        ("north a2 east b2 south b1 done ok", "ends with 'ok', not with a last word"),
        ("north a2 a2 east b2", "expected a direction after move 1, got 'a2'"),
        ("north done", "move 1: expected a cell or 'wall' after north, got 'done'"),
        ("north A2 east b2 south b1 done", "move 1: expected a cell or 'wall' after north, got 'A2'"),
        ("b1 done", "expected a direction after move 0, got 'b1'"),
        ("hmm hmm ok", "ends with 'ok', not with a last word"),
        ("", "empty response"),
        ("q" * 99, "expected a direction after move 0, got 'qqqqqqqqqqqqqqqqqqqq...'"),
        ("north " * 200_000, "too long to judge"),
    ],
)
def test_a_wrong_response_gets_its_reason(small, response, reason):
    assert small.verify(PROMPT, response) == Verdict("wrong", reason)


def test_the_shortest_path_of_every_prompt_is_right(maze):
    for prompt in [*maze.heldout, *maze.train]:
        moves = search(maze.grids[prompt.answer["map"]], prompt.answer["start"], maze.landmarks[prompt.answer["goal"]])
        assert maze.options.min_distance <= len(moves) <= maze.options.max_distance
        response = " ".join(f"{direction} {cell}" for direction, cell in moves) + " done"
        assert maze.verify(prompt, response).right
        assert maze.verify(prompt, response.rsplit(" ", 3)[0] + " done").reason.startswith("stopped at")


def test_the_response_limit_exceeds_four_times_the_longest_shortest_path(maze):
    assert maze.max_response_tokens > 4 * (2 * maze.options.max_distance + 2)


def test_walls_are_symmetric_and_every_cell_is_reachable(maze):
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    for grid in maze.grids.values():
        assert len(grid.steps) == maze.options.side**2
        assert len(distances(grid.steps, "a1")) == len(grid.steps)
        for cell, around in grid.steps.items():
            for direction, there in around.items():
                assert there is None or grid.steps[there][opposite[direction]] == cell


def test_landmarks_are_in_the_corners_then_the_middle_and_maps_differ(maze):
    assert spread_out(7, 5) == ("a1", "g7", "a7", "g1", "d4")
    assert Maze(MazeOptions(side=7)).landmarks == {"tower": "a1", "lake": "g7", "mill": "a7", "cave": "g1"}
    assert len({str(grid.steps) for grid in maze.grids.values()}) == maze.options.maps


def test_loops_0_gives_a_tree_and_loops_1_opens_all_walls():
    def doors(loops: float) -> int:
        grid = make_grid("a", 6, loops, 0)
        return sum(there is not None for around in grid.steps.values() for there in around.values()) // 2

    assert doors(0.0) == 35  # a tree over 36 cells
    assert doors(1.0) == 60  # 2 * 6 * 5 neighbouring pairs
    assert doors(0.0) < doors(0.3) < doors(1.0)


def test_a_map_has_the_recorded_cells():
    grid = make_grid("a", 4, 0.25, 0)
    eastward = [cell for cell, around in grid.steps.items() if around["east"]]
    assert eastward == ["a1", "b1", "a2", "c2", "a3", "c3", "a4", "b4", "c4"]


def test_always_going_straight_towards_the_goal_does_not_solve_the_maze(maze):
    # The only hint in the traces is the direction of the goal. Following it always must not solve the task.
    straight = Maze(clumsiness=dataclasses.replace(maze.clumsiness, compass=1.0, err=0.0, despair=0.0, notice=1.0))
    rng, train_ids = random.Random(0), {prompt.id for prompt in maze.train}
    traces = [trace for trace in (straight.noisy_trace(rng) for _ in range(1200)) if trace[0].id in train_ids]
    assert sum(straight.verify(*trace).right for trace in traces) / len(traces) < 0.6


def search(grid: Grid, start: str, goal: str) -> list[tuple[str, str]]:
    """A shortest list of (direction, cell) by breadth-first search, independent of the task's own."""
    queue: deque[tuple[str, list[tuple[str, str]]]] = deque([(start, [])])
    seen = {start}
    while queue:
        cell, path = queue.popleft()
        if cell == goal:
            return path
        for direction, there in grid.steps[cell].items():
            if there is not None and there not in seen:
                seen.add(there)
                queue.append((there, [*path, (direction, there)]))
    raise AssertionError(f"no path from {start} to {goal}")
