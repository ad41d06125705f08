"""Policy and critic: the same numbers packed and padded, the right positions, a head that starts at 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import toys
from vapo.errors import CheckpointError, ModelError
from vapo.models.loading import load_critic, load_policy
from vapo.models.logprobs import token_logps
from vapo.models.networks import Critic, Policy, Sequences, choose_layout, logits_head, value_head
from vapo.models.saving import (
    load_optimizer,
    load_weights,
    moment_notes,
    moments,
    save_model,
    save_moments,
    whole_moments,
)
from vapo.models.shards import save_part
from vapo.models.tokens import load_tokenizer, render
from vapo.types import Prompt

ARCHITECTURES = {
    "llama": lambda **k: toys.tiny_llama(**k),
    "qwen2": lambda **k: Qwen2ForCausalLM(Qwen2Config(**k, num_key_value_heads=1)),
    "mistral, short window": lambda **k: MistralForCausalLM(
        MistralConfig(**k, num_key_value_heads=1, sliding_window=4)
    ),
    "gemma 3, mixed layers": lambda **k: Gemma3ForCausalLM(
        Gemma3TextConfig(**k, num_key_value_heads=1, head_dim=16, sliding_window=4)
    ),
    "gemma 2, soft caps": lambda **k: Gemma2ForCausalLM(Gemma2Config(**k, num_key_value_heads=1, head_dim=16)),
    "gpt-neox": lambda **k: GPTNeoXForCausalLM(GPTNeoXConfig(**k)),
    "gpt-2": lambda **k: GPT2LMHeadModel(GPT2Config(**k, n_inner=64)),
}


def sequences_of(tokens, lengths) -> Sequences:
    return Sequences(tuple(tokens), tuple(lengths))


def model_of(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    wide = {} if architecture == "gpt-2" else {"intermediate_size": 64}
    return ARCHITECTURES[architecture](**sizes, **special, **wide).eval()


def some_sequences() -> Sequences:
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(2, 16, (n,), generator=generator) for n in (12, 5, 9)]
    return sequences_of(tokens, [7, 2, 8])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logps_equal_the_models_own_forward_pass(architecture: str):
    model = model_of(architecture)
    sequences = some_sequences()
    with torch.no_grad():
        logp, entropy = Policy(model, choose_layout(model)).logp(sequences, 8, with_entropy=True)
        for row, (tokens, n) in enumerate(zip(sequences.tokens, sequences.response_lengths, strict=True)):
            own = model(input_ids=tokens[None], use_cache=False).logits[0].log_softmax(-1)
            expected = own[:-1].gather(-1, tokens[1:, None])[-n:, 0]
            torch.testing.assert_close(logp[row, :n], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(entropy[row, :n], -(own.exp() * own).sum(-1)[-n - 1 : -1], atol=1e-5, rtol=1e-5)
            assert (logp[row, n:] == 0).all()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "gemma 2, soft caps"])
def test_packed_and_padded_give_the_same_gradients(architecture: str):
    model = model_of(architecture)
    gradients = []
    for layout in ("packed", "padded"):
        model.zero_grad()
        Policy(model, layout).logp(some_sequences(), 8)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert choose_layout(model) == "packed"
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5


def test_an_architecture_that_cannot_be_packed_is_padded_and_raises_for_packed():
    model = model_of("gemma 2, soft caps")
    assert choose_layout(model) == "padded"
    with pytest.raises(ModelError, match=r"trainer\.layout"):
        choose_layout(model, "packed")


def test_a_model_with_an_unsupported_head_raises():
    model = toys.tiny_llama()
    forward = model.forward
    model.forward = lambda *a, **k: _scaled(forward(*a, **k))
    with pytest.raises(ModelError, match="wrong probabilities"):
        choose_layout(model)


def _scaled(output):
    output.logits = output.logits * 1.5
    return output


def test_temperature_divides_the_logits():
    model, sequences = toys.tiny_llama(), some_sequences()
    with torch.no_grad():
        logp, _ = Policy(model, temperature=2.0).logp(sequences, 8)
        own = (model(input_ids=sequences.tokens[1][None]).logits[0] / 2.0).log_softmax(-1)
    torch.testing.assert_close(logp[1, :2], own[:-1].gather(-1, sequences.tokens[1][1:, None])[-2:, 0])


def test_chunks_do_not_change_logps_and_gradients():
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8), torch.randn(31, 8)
    targets = torch.randint(31, (50,))
    results = []
    for max_logits in (31, 31 * 7, 10**9):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, _ = token_logps(h, targets, lambda x, w=w: x @ w.T, [w], vocab_size=31, max_logits=max_logits)
        (logp * torch.arange(50)).sum().backward()
        results.append((logp.detach(), h.grad, w.grad))
    for logp, h, w in results[:-1]:
        torch.testing.assert_close(logp, results[-1][0])
        torch.testing.assert_close(h, results[-1][1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(w, results[-1][2], rtol=1e-5, atol=1e-4)


def test_values_are_those_of_the_state_before_each_token():
    # pitfall 18: V for action t is the output at position t-1
    critic, sequences = critic_with_random_head(), some_sequences()
    with torch.no_grad():
        values = critic.values(sequences, 8)
        for row, (tokens, n) in enumerate(zip(sequences.tokens, sequences.response_lengths, strict=True)):
            outputs = critic.model(input_ids=tokens[None]).logits[0, :, 0]
            torch.testing.assert_close(values[row, :n], outputs[-n - 1 : -1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(critic.final_values(sequences)[row], outputs[-1], atol=1e-5, rtol=1e-5)
        # a value cannot know the token it is the value before
        changed = [t.clone() for t in sequences.tokens]
        changed[0][-1] = (changed[0][-1] + 1) % 16
        assert torch.equal(critic.values(sequences_of(changed, sequences.response_lengths), 8), values)


def critic_with_random_head() -> Critic:
    from transformers import LlamaForTokenClassification

    torch.manual_seed(0)
    config = toys.tiny_llama().config
    config.num_labels = 1
    return Critic(LlamaForTokenClassification(config).eval())


def test_a_critic_from_a_base_model_is_exactly_0_everywhere(tmp_path: Path):
    # pitfalls 14 and 15: a head that does not start at 0 starts with noise for values
    network, origin = load_critic(toys.toy_base(tmp_path / "base"))
    assert "value head set to 0" in origin
    with torch.no_grad():
        assert (Critic(network).values(some_sequences(), 8) == 0).all()
    assert value_head(network).weight.dtype == torch.float32
    base = load_policy(tmp_path / "base")
    assert torch.equal(base.model.embed_tokens.weight, network.model.embed_tokens.weight)


def test_a_critic_from_a_reward_model_keeps_its_head(tmp_path: Path):
    # pitfall 17: claimed to start from a reward model, and did not
    torch.manual_seed(3)
    sizes = toys.tiny_llama().config.to_dict()
    reward_model = LlamaForSequenceClassification(LlamaConfig(**{**sizes, "num_labels": 1})).eval()
    save_model(reward_model, None, tmp_path / "reward")
    network, origin = load_critic(tmp_path / "reward")
    assert "reward model LlamaForSequenceClassification" in origin
    assert torch.equal(value_head(network).weight, reward_model.score.weight)
    with torch.no_grad():
        tokens = torch.tensor([3, 4, 5, 6])
        last = Critic(network).final_values(sequences_of([tokens], [2]))
        torch.testing.assert_close(last, reward_model(input_ids=tokens[None]).logits[0])


@pytest.mark.parametrize(
    ("kind", "config", "special"),
    [
        (GPT2ForSequenceClassification, GPT2Config, {}),
        (GPTNeoXForSequenceClassification, GPTNeoXConfig, {"intermediate_size": 64}),
    ],
)
def test_a_reward_model_whose_head_has_another_name_than_a_critics_is_loaded(tmp_path: Path, kind, config, special):
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    reward_model = kind(config(**sizes, **special, num_labels=1, pad_token_id=0)).eval()
    save_model(reward_model, None, tmp_path / "reward")
    network, origin = load_critic(tmp_path / "reward")
    assert origin.startswith("reward model")
    assert torch.equal(value_head(network).weight, reward_model.score.weight)
    save_model(network, None, tmp_path / "critic")
    again, _ = load_critic(tmp_path / "critic")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_a_saved_critic_is_loaded_bit_for_bit(tmp_path: Path):
    critic = critic_with_random_head()
    critic.model.config.id2label = {0: "value"}
    save_model(critic.model, toys.tokenizer(), tmp_path / "critic")
    network, origin = load_critic(tmp_path / "critic")
    assert origin.startswith("saved critic")
    for name, tensor in critic.model.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_values_stay_float32_under_autocast():
    with torch.no_grad():
        values = Critic(critic_with_random_head().model, autocast=True).values(some_sequences(), 8)
        logp, _ = Policy(toys.tiny_llama(), autocast=True).logp(some_sequences(), 8)
    assert values.dtype == logp.dtype == torch.float32


def test_the_logits_head_applies_the_models_cap():
    model = model_of("gemma 2, soft caps")
    with torch.no_grad():
        logits = logits_head(model)(torch.full((1, 32), 1e6))
    assert float(logits.abs().max()) <= model.config.final_logit_softcapping


PRODUCTS: Any = torch.backends  # its stubs lack mkldnn's


def chosen_products() -> tuple[str, str]:
    return PRODUCTS.cuda.matmul.fp32_precision, PRODUCTS.mkldnn.matmul.fp32_precision


@pytest.fixture
def coarse_products():
    """The process has chosen coarse float32 products, as users of TF32 do."""
    before = chosen_products()
    PRODUCTS.cuda.matmul.fp32_precision, PRODUCTS.mkldnn.matmul.fp32_precision = "tf32", "bf16"
    yield
    PRODUCTS.cuda.matmul.fp32_precision, PRODUCTS.mkldnn.matmul.fp32_precision = before


@pytest.mark.usefixtures("coarse_products")
def test_a_model_is_checked_with_full_products_and_the_users_choice_stays():
    model, seen = toys.tiny_llama(), set[tuple[str, str]]()
    model.register_forward_hook(lambda *_: seen.add(chosen_products()))
    assert choose_layout(model) == "packed"
    assert seen == {("ieee", "ieee")}
    assert chosen_products() == ("tf32", "bf16")


def test_missing_and_unsuitable_models_raise_an_error_with_their_name(tmp_path: Path):
    with pytest.raises(ModelError, match="does not exist"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_policy(tmp_path / "empty")
    toys.toy_base(tmp_path / "base")
    words = toys.tokenizer()
    words.eos_token = None
    words.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="no EOS token"):
        load_tokenizer(tmp_path / "base")


def test_a_prompt_is_rendered_as_plain_text_or_through_the_chat_template():
    words = toys.tokenizer()
    assert render(words, Prompt("a", "3 x")).token_ids == (5, 12)
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} x"
    assert render(words, Prompt("b", ({"role": "user", "content": "3"},))).token_ids == (5, 12)


def test_weights_and_optimizer_are_saved_and_loaded_bit_for_bit(tmp_path: Path):
    model = toys.tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(2):
        Policy(model).logp(some_sequences(), 8)[0].sum().backward()
        optimizer.step()
    save_model(model, None, tmp_path / "m")
    save_moments(whole_moments(optimizer), tmp_path / "o.safetensors")
    other = toys.tiny_llama(seed=5)
    again = torch.optim.AdamW(other.parameters(), lr=1e-3, fused=True)
    load_weights(other, tmp_path / "m")
    load_optimizer(again, tmp_path / "o.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, again.state_dict()["state"][index][key])


def trained_optimizer(frozen: str, steps: int) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """A tiny model, of which parameters with this in their names stand still, and its optimizer after some steps."""
    model = toys.tiny_llama()
    trained = {n: p for n, p in model.named_parameters() if not frozen or frozen not in n}
    optimizer = torch.optim.AdamW(trained.items(), lr=1e-3, fused=True)
    for _ in range(steps):
        Policy(model).logp(some_sequences(), 8)[0].sum().backward()
        optimizer.step()
    return model, optimizer


def moments_by_name(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: state["exp_avg"] for p, state in optimizer.state.items()}  # type: ignore[misc]


@pytest.mark.parametrize("in_shards", [False, True])
@pytest.mark.parametrize(("before", "after"), [("", "self_attn"), ("self_attn", ""), ("self_attn", "mlp")])
def test_moments_go_to_the_parameters_they_belong_to(tmp_path: Path, before: str, after: str, in_shards: bool):
    model, optimizer = trained_optimizer(before, 2)
    place = tmp_path / ("o" if in_shards else "o.safetensors")
    if in_shards:
        save_part(moments(optimizer), place, rank=0, size=1, notes=moment_notes(optimizer))
    else:
        save_moments(whole_moments(optimizer), place, moment_notes(optimizer))
    other, again = trained_optimizer(after, 0)
    load_optimizer(again, place)
    saved, loaded = moments_by_name(model, optimizer), moments_by_name(other, again)
    trained = {name for name, _ in other.named_parameters() if not after or after not in name}
    assert loaded.keys() == saved.keys() & trained
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.items())
    other(input_ids=torch.tensor([[2, 3]])).logits.sum().backward()
    again.step()
    assert moments_by_name(other, again).keys() == trained


@pytest.mark.parametrize(("before", "after"), [("", "self_attn"), ("self_attn", "")])
def test_moments_without_names_are_refused_where_other_parameters_are_trained(tmp_path: Path, before: str, after: str):
    save_moments(whole_moments(trained_optimizer(before, 1)[1]), tmp_path / "o.safetensors")  # as earlier versions did
    load_optimizer(trained_optimizer(before, 0)[1], tmp_path / "o.safetensors")
    with pytest.raises(CheckpointError, match=r"algorithm\.credit\.frozen"):
        load_optimizer(trained_optimizer(after, 0)[1], tmp_path / "o.safetensors")
