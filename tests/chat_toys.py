"""A tiny policy with a chat template that knows tools, whose words are few: one of them is a whole call of a tool."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CALL = '<tool_call>{"name":"add","arguments":{"amount":1}}</tool_call>'
HANG = '<tool_call>{"name":"wait","arguments":{"seconds":60}}</tool_call>'
WORDS = ["<pad>", "<eos>", "<unk>", "user", "assistant", "tool", "system", *"012345", CALL, HANG, "ready"]
TEMPLATE = (
    "{% if tools %}system {{ tools | tojson }}<eos>{% endif %}"
    "{% for m in messages %}{{ m.role }} {{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def chat_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.chat_template = template
    return made
