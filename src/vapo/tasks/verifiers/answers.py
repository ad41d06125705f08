"""Where a response states its answer: the last marked place, and nothing else.

Plain string searches, linear in the text: this runs in the trainer too (majority votes), on whatever a model wrote.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_JOINED = re.compile(r"\s*\$?\s*(?:,|;|,?\s*(?:and|or))\s*\$?\s*(?:[A-Za-z]\s*=\s*)?")  # between two boxes
_NAMED = re.compile(r"(?<![A-Za-z])([A-Za-z])\s*=\s*$")
BOXES = ("\\boxed", "\\fbox")
MAX_BOXES = 8
"""So many boxes at most are read as one list."""
MAX_BETWEEN = 40
"""Characters between two boxes of one list."""
SPOKEN = ("answer", "答案")
"""Words behind which an answer may stand, and the marks between the two. A dash takes a space behind it: `-7` is a
number."""
SPOKEN_MARKS = (":", "：", "=", "- ", "– ", "— ", "is:", "is", "是", "为")
_REASON = re.compile(r",? +(?:because|since)(?![a-z])|[. ]+I hope (?:it|this) is correct")
_OPTION = re.compile(r"(?:option|choice) +(?=\S)", re.IGNORECASE)
LONGEST = 10_000
"""No more characters of an answer are read; every one so long is too long."""
LAST_LINES = 2000
"""An answer in words (`Answer: 5`) counts in so many last characters only."""


def last_answer(response: str) -> str | None:
    """The text of the last marked answer, or None if there is none or it never ends.

    A mark is `\\boxed{...}`; where a response has none, `<answer>...</answer>`; then `#### ...` (GSM8K); then a line
    `Answer: ...` or `The final answer is ...`, or the line below it. Earlier ones are what the writer thought better
    of, but `\\boxed{1} and \\boxed{2}` is one answer, "1, 2".

    >>> last_answer("So \\\\boxed{4}, no: \\\\boxed{5}.")
    '5'
    """
    for find in (_boxed, _tagged, _hashed, _spoken):
        found, answer = find(response)
        if found:
            return answer if answer is None else _bare(answer[:LONGEST])
    return None


def _boxed(text: str) -> tuple[bool, str | None]:
    """The last box, or the list of the last ones if only a comma, "and" or "or" stands between them."""
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
    return max(text.rfind(box, 0, end) for box in BOXES)


def _name_before(text: str, start: int) -> str:
    """The x of `x = \\boxed{5}`, "" without one."""
    match = _NAMED.search(text[max(start - 8, 0) : start])
    return match[1] if match else ""


def _box_at(text: str, start: int) -> tuple[str | None, int]:
    """What the box that starts here holds (None if it never ends), and where it ends."""
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
    """What follows `Answer:`, on the same line or on the next that is not empty."""
    lines = text[-LAST_LINES:].splitlines()
    for at in range(len(lines) - 1, -1, -1):
        rest = _behind_mark(lines[at])
        if rest is not None:
            answer = rest or _next_line(lines, at + 1)
            return True, _OPTION.sub("", _REASON.split(answer, maxsplit=1)[0].strip(), count=1)
    return False, None


def _behind_mark(line: str) -> str | None:
    """The rest of the line behind `Answer:` and its like, None if there is no mark."""
    line = line.replace("*", "")
    ends = [at + len(word) for word in SPOKEN if (at := line.lower().rfind(word)) >= 0]
    rest = line[max(ends) :].strip() if ends else ""
    for mark in SPOKEN_MARKS:
        if rest.startswith(mark) and (mark != "is" or rest[2:3] in ("", " ")):
            return rest[len(mark) :].strip(" :：")
    return None


def _next_line(lines: list[str], start: int) -> str:
    """The first line that is not empty; displayed mathematics up to where it closes."""
    found = [line.strip() for line in lines[start:] if line.strip()][:4]
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if found and found[0].startswith(opening) and closing not in found[0][2:]:
            last = next((at for at, line in enumerate(found) if at and closing in line), 0)
            return " ".join(found[: last + 1])
    return found[0] if found else ""


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
