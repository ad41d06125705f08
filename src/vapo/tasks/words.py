"""The vocabulary of the built-in tasks: one tokenizer for those of one turn, another for the code-breaking game."""

from __future__ import annotations

# Words without meaning, allowed anywhere before the last word. Verifiers skip them. As in real reasoning, they add
# entropy that does not affect the outcome, so that credit assignment must find the tokens that do.
FILLERS = ("hmm", "ok", "so", "then", "now", "well", "maybe", "wait", "again", "see")

DONE = "done"  # ends a response: the solver claims to have reached the goal
LOST = "lost"  # ends a response: the solver gives up

MAX_SIDE = 9  # a cell is a letter and a digit, a1 to i9
MAP_NAMES = ("a", "b", "c", "d")
DIRECTIONS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
WALL = "wall"
LANDMARKS = ("tower", "lake", "mill", "cave", "bridge", "farm", "inn", "park")

MAX_NUMBER = 99
OUT = "out"  # the outcome of an operation that would leave the number line


def cell_name(column: int, row: int) -> str:
    """The name of a cell, such as `c4` for column 2 and row 3. Letters increase to the east, digits to the north."""
    return f"{'abcdefghi'[column]}{row + 1}"


CELLS = tuple(cell_name(column, row) for row in range(MAX_SIDE) for column in range(MAX_SIDE))
NUMBERS = tuple(str(number) for number in range(MAX_NUMBER + 1))
WALK_OPERATIONS = ("+3", "+4", "+5", "+7", "-1", "-2", "-4", "-5", "-8", "-9", "x2", "x3")
CHAIN_WORDS = ("raise", "lower", "grow", "flip", "fold", "shift")
ANSWER = "answer"

# Keep the order: in the shipped models, a token's id is its index here plus the number of special tokens.
VOCABULARY = (
    *(":", "map", "reach", "chain", "from", "to", "with", DONE, LOST, WALL, OUT, ANSWER),
    *DIRECTIONS,
    *MAP_NAMES,
    *LANDMARKS,
    *FILLERS,
    *WALK_OPERATIONS,
    *CHAIN_WORDS,
    *CELLS,
    *NUMBERS,
)

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
MAX_PEGS = 5
MAX_GUESSES = 12
MALFORMED = "malformed"  # the answer to a guess that is not one colour for each peg

# The code-breaking game's own tokenizer: a small one, since every token of a guess is a choice among all words.
CODE_VOCABULARY = (
    *("break", "pegs", "of", "colours", "in", "guesses", ":", MALFORMED),
    *(str(number) for number in range(1, MAX_GUESSES + 1)),
    *COLOURS,
    *(f"{colour}={mark}" for colour in COLOURS for mark in ("exact", "misplaced", "absent")),
    *(f"left={guesses}" for guesses in range(1, MAX_GUESSES)),
)
