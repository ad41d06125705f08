"""What an environment says, as tokens: after a chat's turn through the template, elsewhere as it is."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import toys
from chat_toys import chat_tokenizer
from vapo.errors import ConfigError
from vapo.models.dialogue import Dialogue
from vapo.models.tokens import render
from vapo.types import Prompt, Reply

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
# ChatML as Qwen models have it: tools in the system message, their results in a user's, thoughts of a last turn shown
CHATML = """
{%- if tools %}<|im_start|>system{{ "\\n" }}Tools:{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- set before, after = loop.previtem or {}, loop.nextitem or {} %}
{%- if m.role == "tool" %}
{%- if before.role != "tool" %}<|im_start|>user{% endif %}
{{- "\\n<tool_response>\\n" + m.content + "\\n</tool_response>" }}
{%- if after.role != "tool" %}{{ "<|im_end|>\\n" }}{% endif %}
{%- else %}{{ "<|im_start|>" + m.role + "\\n" }}
{%- if m.role == "assistant" and loop.last %}{{ "<think>\\n\\n</think>\\n\\n" }}{% endif %}
{{- m.content + "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
CHAT = Prompt("p", ({"role": "user", "content": "Hi."},))


def byte_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=SPECIAL[0])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    tokenizer.chat_template = template
    return tokenizer


def stops(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(["<|end|>", "<|im_end|>"]))


def test_a_reply_in_a_chat_is_a_users_message_and_the_next_header():
    words = byte_tokenizer()
    end = stops(words)[1]
    ids = Dialogue(words, stops(words)).reply(CHAT, Reply("Wrong."), end)
    assert words.decode(ids) == "\n<|im_start|>user\nWrong.<|im_end|>\n<|im_start|>assistant\n"
    # a turn that ended with a text of the task has no stop token yet
    (other,) = words("?")["input_ids"]
    assert Dialogue(words, stops(words)).reply(CHAT, Reply("Wrong."), other) == (end, *ids)


def test_an_end_token_behind_a_space_of_the_template_is_not_repeated():
    template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' <|im_end|>' }}{% endfor %}"
    words = byte_tokenizer(template + "{{ 'assistant' if add_generation_prompt }}")
    end = stops(words)[1]
    (other,) = words("?")["input_ids"]
    dialogue = Dialogue(words, stops(words))
    assert words.decode(dialogue.reply(CHAT, Reply("Wrong."), end)) == "user Wrong. <|im_end|>assistant"
    assert words.decode(dialogue.reply(CHAT, Reply("Wrong."), other)) == " <|im_end|>user Wrong. <|im_end|>assistant"


def test_results_of_tools_are_rendered_together_though_the_template_shows_earlier_turns_otherwise():
    words = byte_tokenizer()
    results = tuple({"role": "tool", "name": "f", "content": text} for text in ("4", "The policy wrote this."))
    ids = Dialogue(words, stops(words), tools=[{"type": "function"}]).reply(
        CHAT, Reply("both", messages=results), stops(words)[1]
    )
    assert words.decode(ids) == (
        "\n<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<tool_response>\nThe policy wrote this.\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_conversation_of_tokens_is_the_one_that_the_template_writes():
    # prompt, turn with its stop token, reply: token by token what rendering the whole conversation gives
    words = byte_tokenizer(CHATML.replace(r"<think>\n\n</think>\n\n", ""))
    dialogue = Dialogue(words, stops(words))
    prompt = render(words, CHAT)
    turn = words("Four.<|im_end|>")["input_ids"]
    whole = [*CHAT.text, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "No."}]
    expected = words.apply_chat_template(whole, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert [*prompt.token_ids, *turn, *dialogue.reply(prompt, Reply("No."), turn[-1])] == expected


def test_an_opening_ends_the_last_message_of_a_chat_and_follows_a_text():
    words = byte_tokenizer()
    opened, ids = Dialogue(words, stops(words)).opening(render(words, CHAT), " Ready?")
    assert ids == ()
    assert words.decode(opened.token_ids) == "<|im_start|>user\nHi. Ready?<|im_end|>\n<|im_start|>assistant\n"
    assert opened.id == CHAT.id
    plain = render(words, Prompt("p", "Hi."))
    assert Dialogue(words, stops(words)).opening(plain, " Ready?") == (plain, tuple(words(" Ready?")["input_ids"]))


def test_plain_prompts_are_followed_by_the_text_as_it_is():
    words = toys.tokenizer()
    for form, prompt in (("auto", Prompt("p", "3 x")), ("plain", CHAT)):
        assert Dialogue(words, (1,), form).reply(prompt, Reply("4 x"), 1) == tuple(words("4 x")["input_ids"])


@pytest.mark.parametrize(
    ("template", "tools", "message"),
    [
        (None, True, "the prompts are not rendered by one"),
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", True, "leaves out a message"),
        ("{% for m in messages %}{% if loop.index > 2 %}{{ raise_exception('two only') }}{% endif %}{{ m.content }}"
         "{% endfor %}", False, "two only"),
        ("{{ messages[-1].content }}", False, "leaves out earlier turns"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_answer_is_refused_by_name(template: str | None, tools: bool, message: str):
    dialogue = Dialogue(chat_tokenizer(template), (1,), tools=[{"type": "function"}] if tools else ())
    with pytest.raises(ConfigError) as raised:
        dialogue.check(CHAT)
    assert message in str(raised.value)


def test_plain_prompts_without_tools_need_no_template():
    Dialogue(chat_tokenizer(None), (1,)).check(CHAT)
    Dialogue(chat_tokenizer(), (1,)).check(Prompt("p", "3 x"))
