"""Prompts with their token ids, and the response limit for which the model's context has room beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from vapo.errors import ConfigError, DataError, VapoError, counted
from vapo.tasks.catalog import check_prompt
from vapo.tasks.prompt_reader import MAX_DROPPED
from vapo.types import Prompt, PromptSet

TRIES = 1000
"""Prompts of a lazy set that are tried for one that fits."""
MEASURED = 64
"""Prompts of a lazy set that are measured for a response limit; of a tuple all are."""


def prompt_length(prompt: Prompt) -> int:
    """Tokens before the response, with those that only the critic reads."""
    return len(prompt.token_ids) + len(prompt.privileged_ids)


class RenderedPrompts:
    """A prompt set with token ids, rendered on first use and kept.

    With `max_tokens`, longer prompts are left out. In a tuple of prompts, more than 1 % of them is a ConfigError; where
    prompts are made on access, the next one that fits takes the place of a longer one.
    """

    def __init__(
        self, prompts: PromptSet, render: Callable[[Prompt], Prompt], *, max_tokens: int | None = None, advice: str = ""
    ) -> None:
        self._prompts, self._render = prompts, render
        self._max_tokens: int | None = None
        self._advice = ""
        self._rendered: dict[int, Prompt] = {}
        self.too_long = 0
        if max_tokens is not None:
            self.limit(max_tokens, advice)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int, /) -> Prompt:
        if index not in self._rendered:
            self._rendered[index] = self._first_fitting(index)
        return self._rendered[index]

    def limit(self, max_tokens: int, advice: str) -> None:
        """Leave out prompts of more than `max_tokens`; `advice` ends the error if there are too many of them."""
        rendered = [self[index] for index in range(len(self))] if isinstance(self._prompts, tuple) else None
        self._max_tokens, self._advice = max_tokens, advice
        if rendered is None:
            self._rendered = {index: prompt for index, prompt in self._rendered.items() if self._fits(prompt)}
            return
        kept = [prompt for prompt in rendered if self._fits(prompt)]
        self.too_long = len(rendered) - len(kept)
        if self.too_long > MAX_DROPPED * len(rendered):
            self._refuse(next(prompt for prompt in rendered if not self._fits(prompt)), self.too_long)
        self._prompts, self._rendered = tuple(kept), dict(enumerate(kept))

    def longest(self) -> int:
        """The length of the longest prompt in tokens; of a set that makes prompts on access, of its first ones."""
        return max(prompt_length(self[i]) for i in range(self._measured()))

    def _measured(self) -> int:
        """How many prompts are looked at for their lengths: all of a tuple."""
        return len(self) if isinstance(self._prompts, tuple) else min(len(self), MEASURED)

    def fitting_limit(self, limit: int, context: int) -> int | None:
        """The longest response limit with which 99 % of the prompts fit into the context of so many tokens.

        None if they fit with this `limit` already: 99 % of a tuple, one of a set that makes prompts on access. Below
        1 if the prompts alone fill the context.
        """
        whole = isinstance(self._prompts, tuple)
        lengths = sorted(prompt_length(self[i]) for i in range(self._measured()))
        may_drop = int(MAX_DROPPED * len(lengths))
        longest = lengths[-1 - may_drop]
        if (longest if whole else lengths[0]) + limit <= context:
            return None
        return context - longest

    def _first_fitting(self, index: int) -> Prompt:
        """The prompt of that index or, if it is too long, the next one that fits."""
        tries = min(TRIES, len(self._prompts))
        for step in range(tries):
            prompt = self._at((index + step) % len(self._prompts) if step else index)
            if self._fits(prompt):
                return prompt
        self._refuse(self._at(index), tries)

    def _at(self, index: int) -> Prompt:
        """The rendered prompt of that index; DataError if the task, which may be the user's, has none there."""
        try:
            prompt = self._prompts[index]
        except VapoError:
            raise
        except Exception as error:
            raise DataError(
                f"The task's prompt {index} raised {type(error).__name__}: {error}. Mend the task."
            ) from error
        check_prompt(prompt, f"The task's prompt {index}")
        return self._render(prompt)

    def _fits(self, prompt: Prompt) -> bool:
        return self._max_tokens is None or prompt_length(prompt) <= self._max_tokens

    def _refuse(self, prompt: Prompt, count: int) -> NoReturn:
        among = counted(len(self._prompts), "prompt")
        raise ConfigError(
            f"{count} of {among} {'is' if len(self._prompts) == 1 else 'are'} too long, first {prompt.id} with "
            f"{counted(len(prompt.token_ids), 'token')}: {self._advice}"
        )
