"""Finds the answer of a response: the text at its last answer mark.

Uses plain string searches that are linear in the text, because it also runs in the trainer process (for majority
votes) on untrusted text.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_JOINED = re.compile(r"\s*\$?\s*(?:,|;|,?\s*(?:and|or))\s*\$?\s*(?:[A-Za-z]\s*=\s*)?")  # between two boxes
_NAMED = re.compile(r"(?<![A-Za-z])([A-Za-z])\s*=\s*$")
BOXES = ("\\boxed", "\\fbox")
MAX_BOXES = 8
"""At most this many boxes are read as one list."""
MAX_BETWEEN = 40
"""Largest number of characters between two boxes of one list."""
SPOKEN = ("answer", "答案")
"""`SPOKEN` are words that introduce an answer, `SPOKEN_MARKS` what may stand between word and answer. A dash needs a
space after it, because `-7` is a number."""
SPOKEN_MARKS = (":", "：", "=", "- ", "– ", "— ", "is:", "is", "是", "为")
_REASON = re.compile(r",? +(?:because|since)(?![a-z])|[. ]+I hope (?:it|this) is correct")
_OPTION = re.compile(r"(?:option|choice) +(?=\S)", re.IGNORECASE)
MAX_READ = 10_000
"""At most this many characters of an answer are read. It is far above `notation.MAX_ANSWER`, the longest valid one."""
_HEADING = re.compile(r"(?:\d+[.):] *|[*_]+)?[^\W\d_]{2}")
"""The start of a line of words: `Case 2`, `2. Check`, `**Step 1**`. `x = 2`, `72` and `4 apples` are values."""
SPOKEN_WITHIN = 2000
"""A spoken answer (`Answer: 5`) counts only within this many last characters."""


def last_answer(response: str) -> str | None:
    """The text of the last marked answer; None if there is no mark, or the last one is not closed.

    Marks, the first kind that occurs in the response counts: `\\boxed{...}`; `<answer>...</answer>`; `#### ...`
    (GSM8K), if it is no heading such as `#### Case 2`; a line `Answer: ...` or `The final answer is ...`, with the
    answer on it or on the next line; the heading.
    Earlier marks of that kind count as corrected, but `\\boxed{1} and \\boxed{2}` is one answer, "1, 2".

    >>> last_answer("So \\\\boxed{4}, no: \\\\boxed{5}.")
    '5'
    """
    for find in (_boxed, _tagged, _hashed_or_spoken):
        found, answer = find(response)
        if found:
            return answer if answer is None else without_markup(answer[:MAX_READ])
    return None


def _boxed(text: str) -> tuple[bool, str | None]:
    """The content of the last box, or of the last boxes as a list if only a comma, "and" or "or" separates them."""
    start = _last_box(text, len(text))
    if start < 0:
        return False, None
    answer, _ = _box_at(text, start)
    items, names = [answer], [_name_before(text, start)]
    while answer is not None and len(items) < MAX_BOXES and (before := _last_box(text, start)) >= 0:
        item, end = _box_at(text, before)
        if item is None or not 0 < start - end < MAX_BETWEEN or not _JOINED.fullmatch(text, end, start):
            break
        items.insert(0, item)
        names.insert(0, _name_before(text, before))
        start = before
    if answer is None or len(set(items)) == 1:
        return True, answer
    named = all(names)
    return True, ", ".join(f"{name} = {item}" if named else str(item) for name, item in zip(names, items, strict=True))


def _last_box(text: str, end: int) -> int:
    """The start of the last box before `end`, -1 if there is none."""
    return max(text.rfind(box, 0, end) for box in BOXES)


def _name_before(text: str, start: int) -> str:
    """The variable before a box, x in `x = \\boxed{5}`; "" if there is none."""
    match = _NAMED.search(text[max(start - 8, 0) : start])
    return match[1] if match else ""


def _box_at(text: str, start: int) -> tuple[str | None, int]:
    """The content of the box that starts here (None if it is not closed), and the position after it."""
    opening = start + len(BOXES[0] if text.startswith(BOXES[0], start) else BOXES[1])
    while opening < len(text) and text[opening] == " ":
        opening += 1
    if opening == len(text):
        return None, opening
    if text[opening] != "{":
        return text[opening], opening + 1  # TeX takes the next character: \boxed 5
    answer = _to_closing_brace(text, opening)
    return answer, opening + 2 + len(answer or "")


def _to_closing_brace(text: str, opening: int) -> str | None:
    """The text from an opening brace to its closing brace, at most `MAX_READ` characters; None if it is not closed."""
    depth = 0
    for match in _BRACE.finditer(text, opening, opening + MAX_READ):
        depth += (match[0] == "{") - (match[0] == "}")  # an escaped brace is not counted
        if depth == 0:
            return text[opening + 1 : match.start()]
    return text[opening + 1 : opening + MAX_READ] if len(text) > opening + MAX_READ else None


def _tagged(text: str) -> tuple[bool, str | None]:
    """Whether there is an `<answer>` tag, and the text inside the last one (None if it is not closed)."""
    start, end = text.rfind("<answer>"), text.rfind("</answer>")
    if start < 0:
        return False, None
    return True, text[start + len("<answer>") : end] if end > start else None


def _hashed_or_spoken(text: str) -> tuple[bool, str | None]:
    """Whether there is a `####` or an `Answer:`, and the rest of its line or the text after it.

    `#### 72` counts before any `Answer:`; `#### Case 2` is a heading where there is one.
    """
    start = text.rfind("####")
    line = text[start + 4 :].strip().partition("\n")[0] if start >= 0 else ""
    if start < 0 or _HEADING.match(line):
        found, answer = _spoken(text)
        if found or start < 0:
            return found, answer
    return True, line


def _spoken(text: str) -> tuple[bool, str | None]:
    """Whether there is an `Answer:`, and the text after it: on the same line, or on the next line that is not empty."""
    lines = text[-SPOKEN_WITHIN:].splitlines()
    for at in range(len(lines) - 1, -1, -1):
        rest = _after_mark(lines[at])
        if rest is not None:
            answer = rest or _next_line(lines, at + 1)
            return True, _OPTION.sub("", _REASON.split(answer, maxsplit=1)[0].strip(), count=1)
    return False, None


def _after_mark(line: str) -> str | None:
    """The rest of the line after a mark like `Answer:`, None if there is no mark."""
    line = line.replace("*", "")
    ends = [at + len(word) for word in SPOKEN if (at := line.lower().rfind(word)) >= 0]
    rest = line[max(ends) :].strip() if ends else ""
    for mark in SPOKEN_MARKS:
        if rest.startswith(mark) and (mark != "is" or rest[2:3] in ("", " ")):
            return rest[len(mark) :].strip(" :：")
    return None


def _next_line(lines: list[str], start: int) -> str:
    """The first line that is not empty; for displayed mathematics all lines until it closes."""
    found = [line.strip() for line in lines[start:] if line.strip()][:4]
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if found and found[0].startswith(opening) and closing not in found[0][2:]:
            last = next((at for at, line in enumerate(found) if at and closing in line), 0)
            return " ".join(found[: last + 1])
    return found[0] if found else ""


def without_markup(answer: str) -> str:
    """An answer without `**`, `$`, `\\( \\)` around it and without the full stop of its sentence."""
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
