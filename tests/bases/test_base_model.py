"""Base models: the tokenizer, the making, and the ones that ship."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from vapo.bases.base_figures import measure_base, sample_responses
from vapo.bases.base_model import BaseRecipe, base_recipe, make_base, make_tokenizer, new_model
from vapo.bases.base_traces import EOS, IGNORED, trace_batches, trace_tokens
from vapo.bases.shipped import ASSETS, builtin_model
from vapo.errors import ConfigError, ModelError
from vapo.tasks import BUILTIN, make_task
from vapo.tasks.words import COLOURS, VOCABULARY

FAMILIES = list(BUILTIN)
TINY = BaseRecipe(
    hidden_size=16, layers=1, intermediate_size=16, steps=4, batch_tokens=256, measured_prompts=4, measured_samples=2
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def shipped(request):
    folder = builtin_model(request.param)
    return make_task(request.param), folder, AutoTokenizer.from_pretrained(folder)


def test_the_tokenizer_encodes_every_word_of_the_vocabulary():
    tokenizer = make_tokenizer(VOCABULARY)
    assert len(tokenizer) == len(VOCABULARY) + 3 <= 256
    ids = tokenizer.encode(" ".join(VOCABULARY))
    assert ids == list(range(3, len(tokenizer)))
    assert tokenizer.encode("north blah") == [tokenizer.get_vocab()["north"], tokenizer.unk_token_id]


def test_a_vocabulary_with_repeated_words_or_spaces_raises():
    for words in (("a", "a"), ("a b",), ("",), ("<eos>",)):
        with pytest.raises(ConfigError, match="vocabulary"):
            make_tokenizer(words)


def test_encode_and_decode_are_inverse_on_every_prompt_and_response(shipped):
    task, _, tokenizer = shipped
    turns = task.example()[1].splitlines()
    texts = [prompt.text for prompt in [*task.train, *task.heldout]] + turns
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
    with_end = [[*tokenizer.encode(turn), tokenizer.eos_token_id] for turn in turns]
    response = "\n".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in with_end)
    assert task.verify(task.example()[0], response).right


def test_a_shipped_model_loads_as_a_llama_with_a_matching_config(shipped):
    task, folder, tokenizer = shipped
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    assert model.config.vocab_size == len(tokenizer) == len(task.vocabulary) + 3
    assert model.config.num_key_value_heads == 1
    assert model.config.tie_word_embeddings
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.bos_token_id is None
    assert tokenizer.eos_token == EOS
    longest = max(len(prompt.text.split()) for prompt in [*task.train, *task.heldout])
    assert model.config.max_position_embeddings >= longest + task.max_response_tokens


def test_the_provenance_of_a_shipped_model_matches_its_files(shipped):
    task, folder, _ = shipped
    provenance = json.loads((folder / "provenance.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert provenance["task"] == task.name
    assert provenance["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert provenance["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    # A base model made for other maps, numbers or rules would not know this task's.
    assert provenance["task_options"] == make_task(task.name).options.__dict__
    assert 0.03 < provenance["measured"]["success"] < 0.2


def test_a_shipped_model_has_about_the_success_rate_of_its_provenance(shipped):
    task, folder, tokenizer = shipped
    told = json.loads((folder / "provenance.json").read_text())["measured"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    figures = measure_base(model, tokenizer, task, task.heldout[:100], 1, seed=7)
    assert abs(figures["success"] - told["success"]) < 0.12
    assert abs(figures["mean_length"] / told["mean_length"] - 1) < 0.35


def test_the_shipped_files_are_small(shipped):
    _, folder, _ = shipped
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4_000_000


def test_a_task_without_a_shipped_model_raises_an_error_with_the_fix():
    for name in ("nonesuch", "../maze", "", "."):
        with pytest.raises(ModelError, match=r"there is one for: chain, codebreaker, maze, walk\. Set model\.policy"):
            builtin_model(name)


def test_a_shipped_model_raises_for_other_task_options():
    assert builtin_model("maze", make_task("maze").options) == builtin_model("maze")
    with pytest.raises(ModelError, match=r"other task options: maps=4 \(the model has \d\), side=9 \(.* \d\)\."):
        builtin_model("maze", make_task("maze", side=9, maps=4).options)


def test_make_base_writes_a_loadable_folder_with_its_provenance(tmp_path, capfd):
    seen: list[tuple[str, int, int]] = []
    made = make_base(
        make_task("maze"),
        0,
        tmp_path / "new" / "base",
        on_progress=lambda phase, done, total, figures: seen.append((phase, done, total)),
        recipe=TINY,
    )
    assert capfd.readouterr().err == ""  # no bar of transformers
    folder = tmp_path / "new" / "base"
    assert json.loads((folder / "provenance.json").read_text()) == made
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 16
    assert len(AutoTokenizer.from_pretrained(folder)) == len(VOCABULARY) + 3
    assert [path.name for path in folder.parent.iterdir()] == ["base"]
    assert made["device"] == "cpu"
    assert ("train", 4, 4) in seen
    assert seen[-1][0] == "measure"
    assert seen[-1][1] == seen[-1][2]


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(device: str, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=device):
        make_base(make_task("maze"), 0, tmp_path / "base", recipe=TINY, device=device)
    assert not list(tmp_path.iterdir())


def test_equal_seeds_give_equal_weights_and_different_seeds_different_ones(tmp_path):
    task = make_task("chain")
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        torch.rand(number)  # the global generator must not matter
        made = make_base(task, seed, tmp_path / str(number), threads=1, recipe=TINY)
        digests.append((made["weights_sha256"], str(made["measured"])))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_a_trace_of_several_turns_holds_the_answers_and_they_are_no_targets():
    task = make_task("codebreaker")
    tokenizer = make_tokenizer(task.vocabulary)
    prompt = task.train[0]
    colours = prompt.answer["code"]
    first = "red red red red"
    row = trace_tokens(task, tokenizer, prompt, f"{first}\n{colours}")
    reply = task.environment(prompt, 0).step(first).text
    expected = f"{prompt.text} {first} {EOS} {reply} {colours} {EOS}"
    assert row.tokens == tokenizer.encode(expected)
    written = tokenizer.decode([token for token, own in zip(row.tokens, row.written, strict=True) if own])
    assert written == f"{first} {EOS} {colours} {EOS}"
    inputs, targets = next(trace_batches(task, tokenizer, 512, seed=0))
    assert inputs.shape == targets.shape
    learned = set(tokenizer.decode(targets[targets != IGNORED]).split())
    assert learned == {EOS, *(word for word in task.vocabulary if word in COLOURS[:6])}


def test_training_lowers_the_loss(tmp_path):
    losses: list[float] = []
    make_base(
        make_task("chain"),
        0,
        tmp_path / "base",
        on_progress=lambda phase, done, total, figures: losses.extend(figures.values()),
        recipe=BaseRecipe(
            hidden_size=32, layers=1, intermediate_size=32, steps=60, batch_tokens=256, measured_prompts=2
        ),
    )
    assert losses[-1] < losses[0] - 0.5


def test_a_recipe_is_the_tasks_with_some_values_replaced():
    assert base_recipe(make_task("maze"), {}) == BaseRecipe()
    assert base_recipe(make_task("maze"), {"peak_lr": "1e-3"}) == BaseRecipe(peak_lr=1e-3)  # as YAML reads it
    assert base_recipe(make_task("maze"), {"hidden_size": 160}).peak_lr == pytest.approx(1.2e-3)  # wider: lower
    assert base_recipe(make_task("maze"), {"hidden_size": 160, "peak_lr": 2e-3}).peak_lr == 2e-3
    game = make_task("codebreaker")
    assert base_recipe(game, {"hidden_size": 160, "layers": 4}) == BaseRecipe(
        hidden_size=160, layers=4, steps=game.base_steps, peak_lr=BaseRecipe.peak_lr * 64 / 160
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"__class__": 3}, "__class__ is no part of a base's recipe"),
        ({"width": 3}, "width is no part of a base's recipe. There are: hidden_size, layers"),
        ({"steps": 0}, "takes a whole number from 1 for steps, got 0"),
        ({"steps": 1.5}, "takes a whole number from 1 for steps, got 1.5"),
        ({"layers": True}, "takes a whole number from 1 for layers, got True"),
        ({"peak_lr": "high"}, "takes a number from 0 for peak_lr, got 'high'"),
        ({"peak_lr": float("nan")}, "takes a number from 0 for peak_lr, got nan"),
        ({"warmup": 1}, "takes a share of the steps below 1 for warmup, got 1"),
        ({"hidden_size": 66}, "hidden_size=66 cannot be shared by heads=2"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(values, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        base_recipe(make_task("maze"), values)


@pytest.mark.parametrize("place", [".", "link", "dangling"])
def test_a_base_is_written_into_the_working_folder_and_through_a_link(place: str, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    if place == ".":
        monkeypatch.chdir(tmp_path / "empty")
    else:
        monkeypatch.chdir(tmp_path)
    made = make_base(make_task("maze"), 0, place, recipe=TINY)
    assert json.loads(Path(place, "provenance.json").read_text()) == made  # a shell there sees it
    folder = tmp_path / ("made" if place == "dangling" else "empty")
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 16
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_make_base_raises_if_the_folder_is_not_empty(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is not an empty folder"):
            make_base(make_task("maze"), 0, place, recipe=TINY)
    assert (tmp_path / "file").read_text() == "x"


def test_sampled_responses_end_at_the_stop_token_or_the_limit_for_any_batch_size():
    task = make_task("chain")
    tokenizer = make_tokenizer(task.vocabulary)
    model = new_model(tokenizer, TINY, 0).eval()
    prompts = [task.heldout[i] for i in range(12)]
    for rows in (1, 5, 100):
        responses = sample_responses(model, tokenizer, prompts, 9, seed=0, rows=rows)
        assert len(responses) == len(prompts)
        for tokens, stopped in responses:
            assert 1 <= len(tokens) <= 9
            assert stopped == (tokens[-1] == tokenizer.eos_token_id)
            assert tokenizer.eos_token_id not in tokens[:-1]
