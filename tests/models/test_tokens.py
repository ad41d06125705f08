"""What ends a response, what a verifier is given of it, and how a prompt becomes tokens."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

import toys
from vapo.bases.base_model import make_tokenizer
from vapo.errors import ConfigError, ModelError
from vapo.models import loading
from vapo.models.saving import save_model
from vapo.models.tokens import load_tokenizer, render, response_text, stop_token_ids
from vapo.types import Prompt

SPECIAL = ["<pad>", "<eos>", "<bos>", "<turn>", "</turn>", "<answer>", "</answer>"]
TEXT = {word: 7 + i for i, word in enumerate([*"0123456789", "?", "x", "\u0120", "y"])}
TURN = "<turn>{{ m.content }}</turn>\n"
CHAT = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<turn>{% endif %}"
HELLO = ({"role": "user", "content": "3 x"},)


def tokenizer(chat: str | None = None, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Bytes as tokens; `<pad>`, `<eos>`, `<bos>`, turns and answers are special, 7 and more are text."""
    words = Tokenizer(models.BPE({**{s: i for i, s in enumerate(SPECIAL)}, **TEXT}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    if bos:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    made.chat_template = chat
    return made


# --------------------------------------------------------------------------- what ends a response


def folder(path: Path, config: dict, generation: dict | None = None, chat: str | None = None) -> Path:
    """A model folder whose two files name these end tokens."""
    save_model(toys.tiny_llama(vocab_size=32), tokenizer(chat), path)
    told = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**told, **config}))
    (path / "generation_config.json").unlink()
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def stops(path: Path) -> tuple[int, ...]:
    return stop_token_ids(load_tokenizer(path), path)


@pytest.mark.parametrize(("named", "expected"), [(4, (1, 4)), ([1, 4], (1, 4)), ([4, 6], (1, 4, 6)), (None, (1,))])
def test_an_end_token_from_config_json_ends_a_response(tmp_path, named, expected):
    assert stops(folder(tmp_path / "m", {"eos_token_id": named})) == expected


def test_end_tokens_come_from_both_configurations_and_the_tokenizer(tmp_path):
    assert stops(folder(tmp_path / "m", {"eos_token_id": 4}, {"eos_token_id": [6]})) == (1, 4, 6)


def test_end_tokens_come_from_the_text_part_of_a_composite_model(tmp_path):
    words = tokenizer()
    words.save_pretrained(tmp_path)
    text = {"model_type": "gemma3_text", "eos_token_id": [1, 4]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "eos_token_id": 1, "text_config": text}))
    assert stops(tmp_path) == (1, 4)


@pytest.mark.parametrize("text", ['{"eos_token_id": [1,', "[]"])
def test_a_damaged_generation_config_is_an_error_and_loses_no_end_token(tmp_path, text):
    path = folder(tmp_path / "m", {"eos_token_id": 1})
    (path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"Cannot load the generation_config\.json from"):
        stops(path)


@pytest.mark.parametrize(
    ("why", "error", "absent"),
    [
        ("", None, True),  # the hub says that there is none
        ("", LocalEntryNotFoundError("cut off"), False),
        ("no network", LocalEntryNotFoundError("not cached"), True),
        ("", ValueError("no JSON"), False),
    ],
)
def test_a_generation_config_that_the_hub_does_not_give_is_absent_or_an_error(monkeypatch, why, error, absent):
    def read(_):
        raise OSError("no file") from error

    monkeypatch.setattr("vapo.hub.unreachable", lambda: why)
    monkeypatch.setattr("vapo.models.tokens.unreachable", lambda: why)
    monkeypatch.setattr("vapo.models.tokens.GenerationConfig.from_pretrained", read)
    config = toys.tiny_llama(vocab_size=32).config
    with nullcontext() if absent else pytest.raises(ModelError, match="no file"):
        assert stop_token_ids(tokenizer(), "someone/model", config) == (1,)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.json", {"num_hidden_layers": "1"}, "field 'num_hidden_layers': TypeError: .* expected int, got str"),
        ("tokenizer_config.json", None, "Cannot load the tokenizer from"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, name, change, reason):
    path = folder(tmp_path / "m", {"eos_token_id": 1})
    told = [] if change is None else {**json.loads((path / name).read_text()), **change}
    (path / name).write_text(json.dumps(told))
    with pytest.raises(ModelError, match=reason):
        stops(path)


def test_ids_of_ordinary_text_in_a_configuration_are_not_end_tokens(tmp_path):
    # configurations have defaults: Llama's end token is number 2, which other vocabularies use for a letter
    assert stops(folder(tmp_path / "m", {"eos_token_id": 7}, {"eos_token_id": [8, 31]})) == (1,)


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (CHAT, (1, 4)),
        (CHAT.replace("</turn>\n", " <eos>"), (1,)),  # nothing but the EOS
        (CHAT.replace("</turn>\n", "y"), (1,)),  # ordinary text
        (CHAT.replace("</turn>\n", "<bos>"), (1,)),  # begins what comes next
        (CHAT.replace("</turn>\n", "</turn><eos>\n"), (1, 4)),
        # between turns only
        (CHAT.replace("</turn>\n", "{% if not loop.last %}</turn>\n{% endif %}"), (1, 4)),
        # no end, but the header of the turn that follows
        ("{% for m in messages %}{{ '<turn>' if m.role == 'user' }}{{ m.content }}{% endfor %}", (1, 3)),
        (CHAT.replace("{{ m.content }}</turn>", "{% generation %}{{ m.content }}</turn>{% endgeneration %}"), (1, 4)),
        ("{{ raise_exception('no') }}", (1,)),
        (None, (1,)),
    ],
)
def test_the_token_that_ends_an_assistants_turn_in_the_chat_template_ends_a_response(tmp_path, chat, expected):
    assert stops(folder(tmp_path / "m", {"eos_token_id": 1}, chat=chat)) == expected


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_that_ends_a_turn_ends_a_response_though_it_is_not_special(tmp_path, special):
    path = folder(tmp_path / "m", {"eos_token_id": 1}, chat=CHAT.replace("</turn>", "<end_of_turn>"))
    words = load_tokenizer(path)
    words.add_tokens([AddedToken("<end_of_turn>", special=special)])
    assert stop_token_ids(words, path) == (1, words.convert_tokens_to_ids("<end_of_turn>"))


def test_the_default_one_of_several_chat_templates_ends_a_turn(tmp_path):
    path = folder(tmp_path / "m", {"eos_token_id": 1})
    words = load_tokenizer(path)
    words.chat_template = {"default": CHAT, "tool_use": CHAT.replace("</turn>", "</answer>")}
    assert stop_token_ids(words, path) == (1, 4)


def test_a_saved_policy_keeps_the_end_tokens_of_its_base_model(tmp_path):
    from vapo.models.loading import load_policy

    source = folder(tmp_path / "m", {"eos_token_id": [1, 6, 8]})
    save_model(load_policy(source), load_tokenizer(source), tmp_path / "saved")
    assert stops(tmp_path / "saved") == stops(source) == (1, 6)


# --------------------------------------------------------------------------- what a verifier is given


def test_special_tokens_in_a_response_reach_the_verifier():
    words = tokenizer()
    ids = words("<answer>7</answer>", add_special_tokens=False)["input_ids"]
    assert response_text(words, [*ids, 4, 1], (1, 4)) == "<answer>7</answer>"
    assert response_text(words, [*ids, 0, 0], (1,)) == "<answer>7</answer>"
    assert response_text(words, [*ids, 4], (1,)) == "<answer>7</answer></turn>"  # it ends nothing here
    assert response_text(words, [1], (1,)) == response_text(words, [], (1,)) == ""


def pieces() -> PreTrainedTokenizerFast:
    """As sentencepiece writes: a space is a part of the word behind it, and the first one goes."""
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((w, -1.0) for w in ("\u2581a", "\u2581", "b", "c", "."))]
    words = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT writes: pieces are glued, and the space before a full stop is cleaned up."""
    vocabulary = ["[PAD]", "[SEP]", "a", "b", "##b", ".", "don", "'", "t"]
    words = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[PAD]"))
    words.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", eos_token="[SEP]", clean_up_tokenization_spaces=True
    )


KINDS = {
    "bytes": (tokenizer(), 7, 20),
    "pieces": (pieces(), 2, 6),
    "word pieces": (word_pieces(), 2, 8),
    "words": (make_tokenizer(["go", "north", "done"]), 3, 5),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_response_without_special_tokens_decodes_to_its_text(kind, data):
    words, low, high = KINDS[kind]
    ids = data.draw(st.lists(st.integers(low, high), max_size=8))
    before = words.decode([*ids, words.eos_token_id], skip_special_tokens=True)
    assert response_text(words, [*ids, words.eos_token_id], (words.eos_token_id,)) == before
    assert response_text(words, ids, (words.eos_token_id,)) == before


# --------------------------------------------------------------------------- how a prompt becomes tokens


def test_the_loader_has_all_that_is_read_from_a_models_folder():
    assert loading.load_tokenizer is load_tokenizer
    assert loading.render is render
    assert loading.stop_token_ids is stop_token_ids


def test_a_templated_text_gets_no_second_bos():
    words = tokenizer("{{ bos_token }}" + CHAT, bos=True)
    through = render(words, Prompt("p", HELLO)).token_ids
    text = words.apply_chat_template(list(HELLO), tokenize=False, add_generation_prompt=True)
    assert render(words, Prompt("p", text)).token_ids == through
    assert through[:2] == (2, 3)
    assert render(words, Prompt("p", text.removeprefix("<bos>"))).token_ids == through[1:]
    assert render(words, Prompt("p", "3 x")).token_ids[:2] == (2, TEXT["3"])  # a plain text still gets its own


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ missing.x }}", "'missing' is undefined"),
        ("{% for %}", "Expected"),
        ("{{ messages[7]['content'] + 1 }}", "list object has no element 7"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_chat_template_that_raises_gives_an_error_with_its_message_and_the_setting(template, words, role):
    prompt = Prompt("math/17", ({"role": role, "content": "3"}, {"role": "user", "content": "3"}))
    with pytest.raises(ConfigError) as told:
        render(tokenizer(template), prompt)
    message = str(told.value)
    assert "refuses prompt math/17" in message
    assert words in message
    assert "\n" not in message
    assert "model.prompt_format=plain" in message
    assert ("task.system" in message) == (role == "system")


USERS_ONLY = "{% for m in messages if m.role == 'user' %}<turn>{{ m.content | trim }}</turn>{% endfor %}<turn>"
PARTS = "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "role", "advice"),
    [
        (USERS_ONLY, "system", "Leave out the system message"),  # never reads the role
        (PARTS, "user", "Set model.prompt_format=plain"),  # wants a list of parts, and a text has none
    ],
)
def test_a_chat_template_that_leaves_out_a_message_in_silence_is_refused(template, role, advice):
    messages = [{"role": "user", "content": " 3 x\n"}]
    if role == "system":
        assert render(tokenizer(template), Prompt("p", tuple(messages))).token_ids
        messages = [{"role": "system", "content": "x y"}, *messages]
    with pytest.raises(ConfigError, match=f"leaves out the text of a {role} message of prompt p") as told:
        render(tokenizer(template), Prompt("p", tuple(messages)))
    assert advice in str(told.value)


def test_earlier_thoughts_of_an_assistant_may_be_left_out():
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}<turn>"
    talk = ({"role": "assistant", "content": "x</think>y"}, {"role": "user", "content": "3"})
    assert render(tokenizer(template), Prompt("p", talk)).token_ids
