"""What an environment says, as tokens that follow those of the policy's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from vapo.errors import ConfigError
from vapo.models.tokens import chat_text, render
from vapo.types import Prompt, Reply

_WRITTEN = "The policy wrote this."
_PROBE = "The result is 42."
UNTOLD_TOOLS = (
    "the tokenizer's chat template has no place for tools, so the model is not told of them; describe them in a system "
    "message, or take a model whose template shows tools"
)
"""A note for where `Dialogue.tells_tools` is false."""


@dataclass(frozen=True)
class Dialogue:
    """Tokens of replies, for prompts that were rendered in this `form` with these `tools`.

    Where the chat template has rendered the prompt, a reply becomes a user's message, or those messages that it brings,
    and the header of the assistant's next turn. Elsewhere its text follows as it is. Only the new text is tokenised:
    the tokens of earlier turns stay what they were.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    form: Literal["auto", "chat", "plain"] = "auto"
    tools: Sequence[Mapping[str, Any]] = ()

    def is_chat(self, prompt: Prompt) -> bool:
        """Whether the chat template renders the prompt."""
        return not isinstance(prompt.text, str) and self.form != "plain" and self.tokenizer.chat_template is not None

    def opening(self, prompt: Prompt, text: str) -> tuple[Prompt, tuple[int, ...]]:
        """The prompt, and the tokens after it, with the text that an environment begins with.

        In a chat the text ends the last message of the prompt, as in TRL; the prompt is then rendered again.
        """
        if not text:
            return prompt, ()
        if not self.is_chat(prompt):
            return prompt, self._ids(text)
        messages = [dict(message) for message in prompt.text if not isinstance(message, str)]
        messages[-1]["content"] += text
        opened = replace(prompt, text=tuple(messages))
        return render(self.tokenizer, opened, self.form, self.tools), ()

    def reply(self, prompt: Prompt, reply: Reply, last: int) -> tuple[int, ...]:
        """The tokens that follow the policy's turn, whose last token is `last`.

        In a chat the end of the turn is among them, unless a stop token is there already.
        """
        if not self.is_chat(prompt):
            return self._ids(reply.text)
        messages = reply.messages or ({"role": "user", "content": reply.text},)
        return self._ids(self._after_turn(messages, stopped=last in self.stop_token_ids))

    def check(self, prompt: Prompt) -> None:
        """Raise ConfigError if the chat template cannot render the replies of this prompt's episodes."""
        if self.tools and not self.is_chat(prompt):
            raise ConfigError(
                "Tools are told to the model by its chat template, and the prompts are not rendered by one: give "
                "messages for prompts, take a model with a chat template, and leave model.prompt_format=auto."
            )
        if self.is_chat(prompt):
            role = "tool" if self.tools else "user"
            message = {"role": role, "content": _PROBE, **({"name": "probe"} if self.tools else {})}
            if _PROBE not in self._after_turn((message,), stopped=True):
                raise ConfigError(
                    f"The tokenizer's chat template leaves out a message of the role {role!r} after an assistant's, so "
                    "an environment cannot answer. Take a model whose template has that role."
                )

    def tells_tools(self, prompt: Prompt) -> bool:
        """Whether the rendered prompt changes with the tools, so that the model hears of them; true without any."""
        if not self.tools:
            return True
        with_tools, without = (render(self.tokenizer, prompt, self.form, tools) for tools in (self.tools, ()))
        return with_tools.token_ids != without.token_ids

    def _after_turn(self, messages: Sequence[Mapping[str, Any]], *, stopped: bool) -> str:
        """What the template writes between an assistant's turn, `stopped` by a stop token or not, and its next one.

        It is read off a short conversation, behind a text that stands for the policy's turn: a template may show an
        earlier turn otherwise than a last one, and the policy's own tokens stay in any case.
        """
        conversation = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": _WRITTEN}]
        whole = chat_text(
            self.tokenizer,
            [*conversation, *messages],
            f"a message of the role {messages[0].get('role')!r} after an assistant's",
            "Take a model whose template has that role.",
            add_generation_prompt=True,
        )
        _, found, after = whole.partition(_WRITTEN)
        if not found:
            raise ConfigError("The tokenizer's chat template leaves out earlier turns. Take another model.")
        end = after.lstrip()  # some templates put a space before the end token
        for token in self.stop_token_ids if stopped else ():  # the policy has written it
            stop = str(self.tokenizer.convert_ids_to_tokens(token))
            if end.startswith(stop):
                return end[len(stop) :]
        return after

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"]))
