"""`maze`: find a path to a goal in a map that only the weights know, and write every step.

    prompt    map a to tower from c4 :
    response  east d4 hmm north wall so east e4 ... south a1 done

The model must know the maps and the places of the landmarks, which no prompt states. Each move is a direction and its
outcome: the new cell, or `wall`. So the text always states the position of the solver, from which a critic can predict
the outcome. Filler words are allowed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from vapo.ranges import number
from vapo.tasks.builtin import check_options, check_range, decisive_words, judge_moves, last_word, mumble, quote, split
from vapo.tasks.grid import Grid, distances, make_grid, spread_out
from vapo.tasks.words import CELLS, DIRECTIONS, DONE, LANDMARKS, MAP_NAMES, MAX_SIDE, VOCABULARY, WALL
from vapo.types import Prompt, Verdict


@dataclass(frozen=True)
class MazeOptions:
    """The difficulty of the maze. The shipped base model knows the maps of the defaults only."""

    side: int = number(8, ge=4, le=MAX_SIDE, unit="cells")
    """Cells on each side of a map."""
    maps: int = number(2, ge=1, le=len(MAP_NAMES), unit="maps")
    """The number of maps."""
    goals: int = number(4, ge=1, le=len(LANDMARKS), unit="landmarks")
    """The number of landmarks, in the same cells of each map."""
    loops: float = number(0.2, ge=0.0, le=1.0, unit="share of inner walls")
    """The share of inner walls that are opened: 0 gives one path between two cells, 1 an open field."""
    min_distance: int = number(6, ge=1, le=80, unit="moves")
    """The smallest number of moves from a prompt's start to its goal."""
    max_distance: int = number(18, ge=1, le=80, unit="moves")
    """The largest number of moves from a prompt's start to its goal; at least min_distance."""
    heldout: int = number(200, ge=1, le=2000, unit="prompts")
    """The number of prompts kept for evaluation."""
    layout: int = number(0, ge=0, le=2**31)
    """Seed of the maps."""

    def __post_init__(self) -> None:
        check_options(self)
        check_range("max_distance", self.max_distance, self.min_distance, 80)


@dataclass(frozen=True)
class Clumsiness:
    """Probabilities, per decision, of what the solver of the noisy traces does."""

    compass: float = 0.1  # go towards the goal in a straight line, even into a wall
    bump: float = 0.2  # otherwise: try any direction, even into a wall, instead of an open one
    mumble: float = 0.2  # one more filler word
    notice: float = 0.7  # write `done` on the goal
    err: float = 0.006  # write `done` anywhere else
    despair: float = 0.001  # write `lost`
    practice: float = 0.5  # share of traces that start nearer to the goal than any prompt, or on it


class Maze:
    """The maze task; see the docstring of the module. Prompts are distinct (map, start, landmark) triples."""

    name = "maze"
    description = "find the way through a map the weights must know, every step written down"
    max_response_tokens = 256
    vocabulary = VOCABULARY

    def __init__(self, options: MazeOptions | None = None, clumsiness: Clumsiness | None = None) -> None:
        self.options = options or MazeOptions()
        self.clumsiness = clumsiness or Clumsiness()
        o = self.options
        # Landmarks are in the same cells of every map. Prompts name the landmark, not its cell, so that a tiny model
        # can distinguish the goal from the cells it has written.
        self.landmarks: dict[str, str] = dict(zip(LANDMARKS, spread_out(o.side, o.goals), strict=False))
        self.grids: dict[str, Grid] = {name: make_grid(name, o.side, o.loops, o.layout) for name in MAP_NAMES[: o.maps]}

    @cached_property
    def _prompts(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        o = self.options
        return split(
            (
                _prompt(grid.name, start, landmark)
                for grid in self.grids.values()
                for landmark, goal in self.landmarks.items()
                for start, distance in distances(grid.steps, goal).items()
                if o.min_distance <= distance <= o.max_distance
            ),
            o.heldout,
        )

    @cached_property
    def _practice(self) -> list[Prompt]:
        """Prompts that start nearer to the landmark than any prompt of the task.

        They give the traces enough examples of reaching the goal, which are rare on long paths.
        """
        return [
            _prompt(grid.name, start, landmark)
            for grid in self.grids.values()
            for landmark, goal in self.landmarks.items()
            for start, distance in distances(grid.steps, goal).items()
            if distance < self.options.min_distance
        ]

    @property
    def train(self) -> tuple[Prompt, ...]:
        """The prompts to train on."""
        return self._prompts[0]

    @property
    def heldout(self) -> tuple[Prompt, ...]:
        """The prompts to evaluate on; none of them is in `train` or in a noisy trace."""
        return self._prompts[1]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Right if every written outcome is true, and the last word is `done`, written on the goal."""
        problem = self._read(prompt)
        if problem is None:
            return Verdict("invalid", "this prompt is not of this maze: check task options")
        words = decisive_words(response)
        if isinstance(words, Verdict):
            return words
        grid, cell, goal = problem
        return judge_moves(
            words,
            cell,
            goal,
            moves=DIRECTIONS,
            expected="a direction",
            named=lambda cell, direction: f"{direction} of {cell}",
            make=lambda cell, direction, outcome: _move(cell, direction, grid.steps[cell][direction], outcome),
            stopped=lambda cell: f"stopped at {cell}, the {prompt.answer['goal']} is at {goal}",
        )

    def example(self) -> tuple[Prompt, str]:
        """The first training prompt and a shortest path, with a move into a wall and a filler word as examples."""
        prompt = self.train[0]
        problem = self._read(prompt)
        assert problem is not None
        grid, cell, goal = problem
        to_goal = distances(grid.steps, goal)
        words: list[str] = []
        bumped = False
        while cell != goal:
            walled = [direction for direction, there in grid.steps[cell].items() if there is None]
            if walled and not bumped:
                words += [walled[0], WALL, "hmm"]
                bumped = True
            direction, cell = next(
                (d, c) for d, c in grid.steps[cell].items() if c is not None and to_goal[c] < to_goal[cell]
            )
            words += [direction, cell]
        return prompt, " ".join([*words, DONE])

    def noisy_trace(self, rng: random.Random) -> tuple[Prompt, str]:
        """A prompt and a mostly random walk, cut off at `max_response_tokens`.

        The prompt is a training prompt, or one that starts nearer to the goal. At each move the solver goes in a
        random direction, or sometimes in a straight line towards the goal; it never looks up a path in the map. It
        writes filler words, moves into walls and back, and sometimes passes the goal, stops elsewhere or gives up.
        """
        clumsy = self.clumsiness
        prompt = rng.choice(self._practice if rng.random() < clumsy.practice else self.train)
        problem = self._read(prompt)
        assert problem is not None
        grid, cell, goal = problem
        words: list[str] = []
        while len(words) < self.max_response_tokens:
            if last := last_word(rng, clumsy, arrived=cell == goal):
                words.append(last)
                break
            words += mumble(rng, clumsy.mumble)
            direction = _clumsy_direction(rng, clumsy, grid, cell, goal)
            there = grid.steps[cell][direction]
            words += [direction, there or WALL]
            cell = there or cell
        return prompt, " ".join(words[: self.max_response_tokens])

    def _read(self, prompt: Prompt) -> tuple[Grid, str, str] | None:
        """`(grid, start, goal)` of a prompt, None if the prompt is not one of this task."""
        answer = prompt.answer
        if not isinstance(answer, dict):
            return None
        grid = self.grids.get(str(answer.get("map")))
        start, goal = str(answer.get("start")), self.landmarks.get(str(answer.get("goal")))
        if grid is None or start not in grid.steps or goal is None:
            return None
        return grid, start, goal


def _prompt(name: str, start: str, landmark: str) -> Prompt:
    return Prompt(
        id=f"maze/{name}/{start}/{landmark}",
        text=f"map {name} to {landmark} from {start} :",
        answer={"map": name, "start": start, "goal": landmark},
    )


def _move(cell: str, direction: str, there: str | None, outcome: str) -> tuple[str, str]:
    """The cell after a move, and the error in its written outcome, "" if there is none."""
    return there or cell, _error(cell, direction, there, outcome)


def _error(cell: str, direction: str, there: str | None, outcome: str) -> str:
    """The error in the written outcome of a move, "" if there is none."""
    if outcome == (there or WALL):
        return ""
    if outcome == WALL:
        return f"no wall {direction} of {cell}"
    if outcome not in CELLS:
        return f"expected a cell or {WALL!r} after {direction}, got {quote(outcome)}"
    if there is None:
        return f"a wall is {direction} of {cell}, wrote {outcome}"
    return f"{direction} of {cell} is {there}, wrote {outcome}"


def _clumsy_direction(rng: random.Random, clumsy: Clumsiness, grid: Grid, cell: str, goal: str) -> str:
    """The direction of the next move of a noisy trace."""
    if cell != goal and rng.random() < clumsy.compass:
        east, north = ord(goal[0]) - ord(cell[0]), int(goal[1]) - int(cell[1])
        return rng.choice([d for d, (e, n) in DIRECTIONS.items() if e * east > 0 or n * north > 0])
    if rng.random() < clumsy.bump:
        return rng.choice(list(DIRECTIONS))
    return rng.choice([direction for direction, there in grid.steps[cell].items() if there is not None])
