"""Tokenizers, and what they make of prompts and responses: chat templates, plain text, end tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AddedToken, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from vapo.errors import ConfigError, DataError, ModelError
from vapo.hub import not_cached, unreachable
from vapo.json_text import json_text
from vapo.models.pretrained import explained, load_config, model_folder
from vapo.types import Prompt

_MESSAGE = "The answer is 42"
"""An assistant's message, for finding the token with which the chat template ends a turn."""


def read_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, unchecked; raises ModelError if there is none."""
    with explained(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(model_folder(source), trust_remote_code=trust_remote_code)


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ModelError if it is missing or has no end-of-sequence token."""
    tokenizer = read_tokenizer(source, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {source} has no EOS token to end a response. "
            "Set `eos_token` in its tokenizer_config.json (or special_tokens_map.json)."
        )
    return tokenizer


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    form: Literal["auto", "chat", "plain"] = "auto",
    tools: Sequence[Mapping[str, Any]] = (),
) -> Prompt:
    """The prompt with its token ids. Messages go through the chat template, with the JSON schemas of `tools`, or become
    plain text.

    `auto` uses the template if the tokenizer has one. ConfigError for `chat` without a template, and for messages that
    the template refuses or leaves out. A text that begins with a special token gets no BOS.
    """
    if isinstance(prompt.text, str):
        return replace(prompt, token_ids=_text_ids(tokenizer, prompt.text))
    if form == "plain" or (form == "auto" and tokenizer.chat_template is None):
        return replace(prompt, token_ids=_text_ids(tokenizer, plain_text(prompt.text)))
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"Prompt {prompt.id} is a list of messages, but the tokenizer has no chat template. "
            "Set model.prompt_format=plain, or take a model with a chat template."
        )
    return replace(prompt, token_ids=_templated(tokenizer, prompt, tools))


def with_privileged(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, column: str) -> Prompt:
    """The prompt with the tokens of one of its columns for the critic's eyes: `answer`, or a column of the data.

    Raises DataError for a prompt that lacks it.
    """
    content = prompt.answer if column == "answer" else prompt.columns.get(column)
    if content is None or content == "":
        known = (
            ", ".join(dict.fromkeys([*(["answer"] if prompt.answer is not None else []), *prompt.columns])) or "none"
        )
        raise DataError(
            f"Prompt {prompt.id} has no {column!r}, the column of algorithm.credit.privileged; it has: {known}. "
            "Add the column to the data, or set algorithm.credit.privileged to null."
        )
    text = content if isinstance(content, str) else json_text(content)
    ids = tokenizer(f"\n[Reference: {text}]\n", add_special_tokens=False)["input_ids"]
    return replace(prompt, privileged_ids=tuple(cast(list[int], ids)))


def plain_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as plain text in a form that base models have seen: a problem and its solution."""
    names = {"user": "Problem: ", "assistant": "Solution: "}
    return "\n\n".join([*(names.get(m["role"], "") + m["content"] for m in messages), "Solution:"])


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_ids: Collection[int]) -> str:
    """The text of a response without padding and without the end tokens at its end.

    Keeps other special tokens: verifiers look for `<think>` and `<answer>`, which are special tokens in some models.
    """
    kept = [token for token in token_ids if token != tokenizer.pad_token_id]
    while kept and kept[-1] in stop_ids:
        kept.pop()
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, source: str | Path, config: PreTrainedConfig | None = None
) -> tuple[int, ...]:
    """Every token that ends a response, in ascending order.

    These are the EOS token of the tokenizer; those of generation_config.json, where chat models have their end-of-turn
    token; those of config.json and of its text part, where converted and merged models have it; and the special or
    added token that ends an assistant's turn in the chat template. Ids of ordinary text are left out: configuration
    classes have defaults that may not fit the tokenizer. `config` is the model's, if it is loaded already. Raises
    ModelError for a generation_config.json that cannot be read.
    """
    config = load_config(source) if config is None else config
    generation = _generation_config(source)
    named = [getattr(settings, "eos_token_id", None) for settings in (generation, config, config.get_text_config())]
    ids = {int(i) for eos in named for i in (eos if isinstance(eos, (list, tuple)) else [eos]) if i is not None}
    ids &= {*_added_tokens(tokenizer), *_special_tokens(tokenizer).values()}
    return tuple(sorted({int(cast(int, tokenizer.eos_token_id)), *ids, *_turn_ends(tokenizer)}))


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], what: str, advice: str, **how: Any
) -> str:
    """Messages through the chat template, as text; `how` is for `apply_chat_template`.

    ConfigError with the template's message, `what` it refuses and the `advice` if it raises.
    """
    try:
        return str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **how))
    except Exception as error:  # the template is the model's code and may raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(f"The tokenizer's chat template refuses {what}: {reason}. {advice}") from error


def _templated(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, tools: Sequence[Mapping[str, Any]]
) -> tuple[int, ...]:
    """The token ids of messages through the chat template; ConfigError if it refuses them or leaves one out."""
    messages = [dict(message) for message in prompt.text if not isinstance(message, str)]
    system = any(message.get("role") == "system" for message in messages)
    advice = "Leave out the system message (task.system, or the one in the data), or set" if system else "Set"
    advice += " model.prompt_format=plain."
    told: Any = [dict(tool) for tool in tools] or None
    text = chat_text(tokenizer, messages, f"prompt {prompt.id}", advice, tools=told, add_generation_prompt=True)
    if role := _left_out(text, messages):
        raise ConfigError(
            f"The tokenizer's chat template leaves out the text of a {role} message of prompt {prompt.id}, so the "
            f"model would not read it. {advice}"
        )
    # not the text as tokens: some tokenizers read control tokens only where their template writes them
    ids = tokenizer.apply_chat_template(
        messages, tools=told, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return tuple(cast(list[int], ids))


def _left_out(text: str, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The role of the first system's or user's message that is not in the rendered text. White space may differ."""
    rendered = "".join(text.split())
    for message in messages:
        role, content = message.get("role"), message.get("content")
        read = not isinstance(content, str) or "".join(content.split()) in rendered
        if role in ("system", "user") and not read:
            return str(role)
    return None


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    # a text that begins with a special token went through a template, which has added BOS
    rendered = text.startswith(tuple(_special_tokens(tokenizer)))
    ids = tokenizer(text, add_special_tokens=not rendered)["input_ids"]
    # some tokenizers add EOS to every text; a prompt must not end with it
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return tuple(ids)


def _generation_config(source: str | Path) -> GenerationConfig | None:
    """A model's generation_config.json, None where it has none; ModelError for one that cannot be read, because a
    response would run past the end tokens in it."""
    folder = Path(model_folder(source))
    if folder.is_dir() and not (folder / GENERATION_CONFIG_NAME).exists():
        return None
    try:
        with explained(source, GENERATION_CONFIG_NAME):
            return GenerationConfig.from_pretrained(model_folder(source))
    except ModelError as error:
        if not folder.is_dir() and _is_absent(error.__cause__):
            return None
        raise


def _is_absent(error: BaseException | None) -> bool:
    """Whether the hub has no such file, or the cache in its place where the hub cannot be reached."""
    if not isinstance(error, OSError):
        return False
    alone = error.__cause__ is None and error.__context__ is None  # every other error of the hub's has a cause
    return alone or (not_cached(error) and bool(unreachable()))


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    return getattr(tokenizer, "added_tokens_decoder", {})


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every special token and its id, with or without a role such as BOS or EOS."""
    added = {str(token): i for i, token in _added_tokens(tokenizer).items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _turn_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token of its own, special or only added, that the chat template puts directly after an assistant's message,
    if any."""
    if tokenizer.chat_template is None:
        return set()
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _MESSAGE}]
    after = ""
    for more in ([], turns[:1]):  # some templates end a turn only where another follows
        try:
            text = str(tokenizer.apply_chat_template([*turns, *more], tokenize=False))
        except Exception:  # `render` reports a template that fails
            return set()
        after = after or (text.rpartition(_MESSAGE)[2].lstrip() if _MESSAGE in text else "")
    own = {str(token): i for i, token in _added_tokens(tokenizer).items()} | _special_tokens(tokenizer)
    ends = [token for token in own if token and after.startswith(token) and token != tokenizer.bos_token]
    return {own[max(ends, key=len)]} if ends else set()
