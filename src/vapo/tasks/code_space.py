"""The codes of a code-breaking game: the marks of a guess, and the codes that a mark leaves possible."""

from __future__ import annotations

from enum import StrEnum
from itertools import product

Code = tuple[int, ...]
"""The colour of each peg, from 0."""


class Mark(StrEnum):
    """What a peg of a guess has to do with the code."""

    EXACT = "exact"
    """The code has this colour in this place."""
    MISPLACED = "misplaced"
    """The code has this colour in another place, which no exact or earlier peg of the guess accounts for."""
    ABSENT = "absent"
    """Neither."""


def mark(code: Code, guess: Code) -> tuple[Mark, ...]:
    """The marks of the pegs of a guess. Each peg of the code accounts for one peg of the guess, exact ones first.

    >>> [str(peg) for peg in mark(code=(0, 0, 1), guess=(0, 1, 1))]
    ['exact', 'absent', 'exact']
    """
    unmatched = [colour for colour, guessed in zip(code, guess, strict=True) if colour != guessed]
    marks: list[Mark] = []
    for colour, guessed in zip(code, guess, strict=True):
        if colour == guessed:
            marks.append(Mark.EXACT)
        elif guessed in unmatched:
            unmatched.remove(guessed)
            marks.append(Mark.MISPLACED)
        else:
            marks.append(Mark.ABSENT)
    return tuple(marks)


class CodeSpace:
    """All codes of so many pegs and colours. A set of codes is a whole number: bit i says whether code i is in it."""

    def __init__(self, pegs: int, colours: int) -> None:
        self.codes: tuple[Code, ...] = tuple(product(range(colours), repeat=pegs))
        self.all = (1 << len(self.codes)) - 1
        self._here: dict[tuple[int, int], int] = {}  # by (peg, colour): the codes with that colour there
        self._agreeing: dict[tuple[Code, tuple[Mark, ...]], int] = {}
        for peg, colour in product(range(pegs), range(colours)):
            self._here[peg, colour] = sum(1 << i for i, code in enumerate(self.codes) if code[peg] == colour)

    def left_by(self, guess: Code, marks: tuple[Mark, ...]) -> list[int]:
        """For each peg of a guess, the codes that its mark leaves possible.

        Of a colour that the guess has twice, an absent peg says no more than that it is not in this place.
        """
        sets: list[int] = []
        for peg, (colour, given) in enumerate(zip(guess, marks, strict=True)):
            here, elsewhere = self._here[peg, colour], 0
            for other in range(len(guess)):
                if other != peg:
                    elsewhere |= self._here[other, colour]
            if given is Mark.EXACT:
                sets.append(here)
            elif given is Mark.MISPLACED:
                sets.append(elsewhere & ~here)
            else:
                sets.append(self.all & ~here & (self.all if guess.count(colour) > 1 else ~elsewhere))
        return sets

    def agreeing(self, guess: Code, marks: tuple[Mark, ...]) -> int:
        """The codes for which a guess has exactly these marks."""
        known = self._agreeing.get((guess, marks))
        if known is None:
            known = sum(1 << number for number, code in enumerate(self.codes) if mark(code, guess) == marks)
            self._agreeing[guess, marks] = known
        return known

    def draw(self, codes: int, uniform: float) -> Code:
        """A code of a set that is not empty; `uniform` in [0, 1) says which."""
        members = [number for number, bit in enumerate(bin(codes)[:1:-1]) if bit == "1"]
        return self.codes[members[int(uniform * len(members))]]
