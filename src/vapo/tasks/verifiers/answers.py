"""Where a response states its answer: the last marked place, and nothing else.

Plain string searches, linear in the text: this runs in the trainer too (majority votes), on whatever a model wrote.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
BOXES = ("\\boxed", "\\fbox")
LONGEST = 10_000
"""No more characters of an answer are read; every one so long is too long."""
LAST_LINES = 2000
"""An answer in words (`Answer: 5`) counts in so many last characters only."""


def last_answer(response: str) -> str | None:
    """The text of the last marked answer, or None if there is none or it never ends.

    A mark is `\\boxed{...}`; where a response has none, `<answer>...</answer>`; then `#### ...` (GSM8K); then a line
    `Answer: ...` or `The final answer is ...`. Earlier ones are what the writer thought better of.

    >>> last_answer("So \\\\boxed{4}, no: \\\\boxed{5}.")
    '5'
    """
    for find in (_boxed, _tagged, _hashed, _spoken):
        found, answer = find(response)
        if found:
            return answer if answer is None else _bare(answer[:LONGEST])
    return None


def _boxed(text: str) -> tuple[bool, str | None]:
    start = max(text.rfind(box) for box in BOXES)
    if start < 0:
        return False, None
    opening = start + len(BOXES[0] if text.startswith(BOXES[0], start) else BOXES[1])
    while opening < len(text) and text[opening] == " ":
        opening += 1
    if opening == len(text):
        return True, None
    if text[opening] != "{":
        return True, text[opening]  # TeX takes the next character: \boxed 5
    return True, _to_closing_brace(text, opening)


def _to_closing_brace(text: str, opening: int) -> str | None:
    """What stands between two braces; nobody needs more than the first `LONGEST` characters of it."""
    depth = 0
    for match in _BRACE.finditer(text, opening, opening + LONGEST):
        depth += (match[0] == "{") - (match[0] == "}")  # an escaped brace is a character
        if depth == 0:
            return text[opening + 1 : match.start()]
    return text[opening + 1 : opening + LONGEST] if len(text) > opening + LONGEST else None


def _tagged(text: str) -> tuple[bool, str | None]:
    start, end = text.rfind("<answer>"), text.rfind("</answer>")
    if start < 0:
        return False, None
    return True, text[start + len("<answer>") : end] if end > start else None


def _hashed(text: str) -> tuple[bool, str | None]:
    start = text.rfind("####")
    return start >= 0, text[start + 4 :].strip().partition("\n")[0]


def _spoken(text: str) -> tuple[bool, str | None]:
    for line in reversed(text[-LAST_LINES:].splitlines()):
        start = line.lower().rfind("answer")
        if start < 0:
            continue
        rest = line[start + len("answer") :].replace("*", "").strip()
        for mark in (":", "is:", "is"):
            if rest.startswith(mark) and (mark != "is" or rest[2:3] in ("", " ")):
                return True, rest[len(mark) :].strip(" :")
    return False, None


def _bare(answer: str) -> str:
    """Without the marks that typeset it: `**`, `$`, `\\( \\)`, and the sentence's full stop."""
    answer = answer.strip()
    while True:
        inner = answer.removeprefix("**").removesuffix("**").strip()
        inner = inner.rstrip(".").rstrip() if not inner.endswith("...") else inner
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if inner.startswith(opening) and inner.endswith(closing) and len(inner) >= len(opening) + len(closing):
                inner = inner[len(opening) : len(inner) - len(closing)].strip()
                break
        if inner == answer:
            return answer
        answer = inner
