"""A side critic: its size, what it reads, what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedModel

import toys
from architectures import ARCHITECTURES, tiny
from vapo.algo.method import BoundedHead, LinearHead
from vapo.errors import ConfigError, ModelError
from vapo.models.backbone import Layout, checkpoint_gradients, decoder_layers, hidden_states, layer_states
from vapo.models.critic_notes import set_policy_sample, value_head
from vapo.models.loading import load_critic, load_side_critic
from vapo.models.lora import add_lora
from vapo.models.master_weights import halve
from vapo.models.networks import Critic, Policy, Sequences, choose_layout
from vapo.models.pretrained import count_parameters
from vapo.models.saving import save_model
from vapo.models.side import EMBEDDINGS, SHARE, SideModel, holds_side_critic, side_config, side_parameters
from vapo.models.weight_sample import weight_sample

LENGTHS = (9, 3, 30, 17)


def rows_of_tokens(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 13, (n,), generator=generator) for n in lengths)


def side_critic(
    policy: PreTrainedModel, layout: Layout = "packed", layers: int = 2, seed: int = 1, attention: bool = True
) -> Critic:
    """A side critic with random weights, its head included."""
    torch.manual_seed(seed)
    model = SideModel(side_config(policy.config, 10**6, layers=layers, attention=attention)).eval()
    torch.nn.init.normal_(value_head(model).weight)
    reader = Policy(policy, layout, side_layers=tuple(model.config.policy_layers or ()))
    return Critic(model, layout, features_of=reader.features)


# --------------------------------------------------------------------------- size


SIZES = [
    LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4),
    LlamaConfig(vocab_size=500, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6),
    LlamaConfig(
        vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32
    ),
    GPT2Config(vocab_size=500, n_embd=128, n_layer=12, n_head=4),
]


@pytest.mark.parametrize("config", SIZES, ids=lambda config: f"{config.model_type}-{config.hidden_size}")
@pytest.mark.parametrize("outputs", [1, 21])
@pytest.mark.parametrize("attention", [False, True])
def test_a_side_critic_has_less_than_2_percent_of_the_policys_parameters_or_the_smallest_width(
    config, outputs: int, attention: bool
):
    policy = count_parameters(config)
    sizes = side_config(config, policy, outputs=outputs, attention=attention)
    with torch.device("meta"):
        count = SideModel(sizes).num_parameters()
    assert count == side_parameters(
        len(sizes.policy_layers or ()), sizes.policy_width, sizes.hidden_size, outputs, attention
    )
    assert sizes.policy_layers is not None
    assert sizes.policy_layers[0] == EMBEDDINGS
    assert sizes.policy_layers[-1] == config.num_hidden_layers - 1
    if policy > 2e6:
        assert 0.001 * policy < count < SHARE * policy
    else:
        assert (sizes.hidden_size, len(sizes.policy_layers)) == (32, 2)


def test_a_larger_share_makes_a_wider_critic():
    policy = count_parameters(SIZES[2])
    widths = [side_config(SIZES[2], policy, share=share).hidden_size for share in (0.001, 0.02, 0.1, 0.5)]
    assert widths == sorted(widths)
    assert widths[0] == 32
    assert len(set(widths)) >= 3


def test_a_large_policy_gets_12_layers_at_width_256_that_end_at_its_last_layer():
    sizes = side_config(SIZES[3], count_parameters(SIZES[3]))
    assert sizes.policy_layers == [EMBEDDINGS, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35]
    assert sizes.hidden_size == 256


def test_more_layers_than_the_policy_has_are_refused():
    with pytest.raises(ConfigError, match=r"model.side_layers=3 exceeds the policy's 2 layers"):
        side_config(SIZES[0], 10**6, layers=3)


# --------------------------------------------------------------------------- the policy's hidden states


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_states_are_those_that_transformers_calls_hidden_states(name: str):
    model = tiny(name)
    layout = choose_layout(model)
    tokens = rows_of_tokens()
    last, states = layer_states(model, tokens, layout, (0, 1))
    assert states is not None
    _, first = layer_states(model, tokens, layout, (-1,))
    assert first is not None
    start = torch.cat([model(input_ids=t[None], output_hidden_states=True).hidden_states[0][0] for t in tokens])
    torch.testing.assert_close(first, start, atol=1e-4, rtol=1e-4)
    assert torch.equal(last, hidden_states(model, tokens, layout))
    width = last.shape[-1]
    alone = torch.cat([model(input_ids=t[None], output_hidden_states=True).hidden_states[1][0] for t in tokens])
    torch.testing.assert_close(states[:, :width], alone, atol=1e-4, rtol=1e-4)
    assert states.shape == (sum(LENGTHS), 2 * width)
    assert not torch.allclose(states[:, width:], alone)


@pytest.mark.parametrize("how", ["adapters", "gradient checkpointing"])
def test_adapters_and_gradient_checkpointing_change_nothing_in_the_states(how: str):
    model = toys.tiny_llama()
    policy = Policy(model, "packed", side_layers=(0, 1))
    sequences = Sequences(rows_of_tokens(), (2, 1, 3, 4))
    before = policy.features(sequences)
    if how == "adapters":
        add_lora(model, 2, None)
    else:
        checkpoint_gradients(model)
    for one, other in zip(before, policy.features(sequences), strict=True):
        torch.testing.assert_close(one, other)


def test_the_score_pass_gives_log_probabilities_and_features_of_one_forward_pass():
    policy = Policy(toys.tiny_llama(), "packed", side_layers=(1,))
    sequences = Sequences(rows_of_tokens(), (2, 1, 3, 4))
    logp, entropy, features = policy.logp_and_features(sequences, 4)
    own = policy.logp(sequences, 4, with_entropy=True)
    assert torch.equal(logp, own[0])
    assert own[1] is not None
    assert torch.equal(entropy, own[1])
    assert torch.equal(features, torch.cat(policy.features(sequences)))


def test_layers_that_cannot_be_found_are_one_clear_line():
    model = toys.tiny_llama()
    model.model.more = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be read.*2 lists of 2 layers.*critic_kind=full"):
        decoder_layers(model)


def test_layers_that_put_out_another_shape_are_one_clear_line():
    model = toys.tiny_llama()
    decoder_layers(model)[1].register_forward_hook(lambda _module, _inputs, output: output.repeat(1, 1, 2))
    model.model.norm.register_forward_pre_hook(lambda _module, inputs: inputs[0][..., :32])
    with pytest.raises(ModelError, match=r"its layer 1 puts out \(1, 5, 64\), not one state.*critic_kind=full"):
        layer_states(model, rows_of_tokens((5,)), "padded", (1,))


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_rows_values_do_not_depend_on_other_rows_or_on_the_layout(layout: Layout):
    policy = toys.tiny_llama()
    tokens, responses = rows_of_tokens(), (6, 2, 25, 10)
    together = side_critic(policy, layout).values(Sequences(tokens, responses), 25)
    for row, (one, response) in enumerate(zip(tokens, responses, strict=True)):
        alone = side_critic(policy, "packed").values(Sequences((one,), (response,)), 25)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    assert together[2].std() > 0.01


def test_values_do_not_see_later_tokens():
    critic = side_critic(toys.tiny_llama())
    (tokens,) = rows_of_tokens((20,))
    changed = tokens.clone()
    changed[12] = 14  # the 8th response token
    one, other = (critic.values(Sequences((t,), (16,)), 16)[0] for t in (tokens, changed))
    torch.testing.assert_close(one[:9], other[:9], atol=1e-6, rtol=1e-6)
    assert (one[9:] - other[9:]).abs().min() > 1e-5


def test_no_gradient_reaches_the_policy():
    policy = toys.tiny_llama()
    critic = side_critic(policy)
    sequences = Sequences(rows_of_tokens(), (6, 2, 25, 10))
    assert all(parameter.requires_grad for parameter in policy.parameters())
    critic.values(sequences, 25).sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in critic.model.parameters())
    # nor where somebody hands in features that have one
    states = layer_states(policy, sequences.tokens, "packed", (EMBEDDINGS, 0, 1))[1]
    assert states is not None
    assert states.requires_grad
    features = states.split([len(t) for t in sequences.tokens])
    critic.values(Sequences(sequences.tokens, sequences.response_lengths, features), 25).sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("attention", [False, True])
def test_the_prompt_is_read_from_its_last_token_on_and_rows_keep_their_own(attention: bool):
    critic = side_critic(toys.tiny_llama(), attention=attention)
    sequences = Sequences(rows_of_tokens((9, 9)), (5, 5))
    features = critic.features_of(sequences)  # type: ignore[misc]
    changed = (features[0].clone(), features[1])
    changed[0][0] += 1.0  # the first of four prompt tokens
    one, other = (critic.model(rows, [4, 4]) for rows in (features, changed))
    same = torch.isclose(one, other, atol=1e-6).all(-1)
    assert not same[3:9].any()
    assert same[9:].all()
    if not attention:
        assert same[1:3].all()  # within the prompt nothing is read ahead, nor back


def test_the_value_learns_an_outcome_that_stands_in_the_text():
    # right if token 7 was written among the first 8 of 16; a policy with random weights, so nothing is learned there
    policy = toys.tiny_llama()
    critic = side_critic(policy, seed=2)
    with torch.no_grad():
        value_head(critic.model).weight.zero_()

    def drawn(seed: int) -> tuple[Sequences, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(2, 13, (64, 18), generator=generator)
        return Sequences(tuple(tokens), (16,) * 64), (tokens[:, 2:10] == 7).any(-1).float()

    optimizer = torch.optim.AdamW(critic.model.parameters(), lr=5e-3)
    for step in range(250):
        sequences, right = drawn(step)
        loss = (critic.values(sequences, 16) - right[:, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sequences, right = drawn(10_000)
    with torch.no_grad():
        values = critic.values(sequences, 16)
    explained = 1 - (values - right[:, None]).square().mean(0) / right.var(unbiased=False)
    assert explained[0] < 0.2  # before the first response token there is nothing to see
    assert explained[9:].min() > 0.7


# --------------------------------------------------------------------------- folders


def test_a_saved_side_critic_loads_bit_for_bit_and_from_its_folder_alone(tmp_path: Path):
    policy = toys.tiny_llama()
    critic = side_critic(policy)
    save_model(critic.model, None, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert holds_side_critic(tmp_path)
    loaded, origin = load_side_critic(tmp_path, policy)
    assert "reads the policy's embeddings and the states after its layers 1, 2" in origin
    tensors = loaded.state_dict()
    assert tensors.keys() == critic.model.state_dict().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in critic.model.state_dict().items())


def test_a_side_critic_of_another_policy_or_with_another_head_is_refused(tmp_path: Path):
    save_model(side_critic(toys.tiny_llama()).model, None, tmp_path)
    with pytest.raises(ModelError, match="Give the policy it was trained beside"):
        load_side_critic(tmp_path, toys.tiny_llama(hidden_size=16))
    with pytest.raises(ModelError, match="Give the policy it was trained beside"):
        load_side_critic(tmp_path, toys.tiny_llama(num_hidden_layers=1))
    with pytest.raises(ModelError, match="has a linear head, and the method reads a bounded head"):
        load_side_critic(tmp_path, toys.tiny_llama(), head=BoundedHead(low=0.0, high=1.0))
    load_side_critic(tmp_path, toys.tiny_llama(), head=LinearHead())


def test_a_side_critic_of_a_run_with_bfloat16_weights_loads_beside_the_base_it_was_trained_beside(tmp_path: Path):
    policy, critic = toys.tiny_llama(), side_critic(toys.tiny_llama()).model
    halved = toys.tiny_llama()
    halve(halved)
    set_policy_sample(critic, weight_sample(halved))
    save_model(critic, None, tmp_path)
    load_side_critic(tmp_path, policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 1.01
    with pytest.raises(ModelError, match="beside a policy with other weights"):
        load_side_critic(tmp_path, policy)


def test_a_full_critic_does_not_load_a_side_critics_folder_nor_the_reverse(tmp_path: Path):
    save_model(side_critic(toys.tiny_llama()).model, None, tmp_path / "side")
    with pytest.raises(ModelError, match=r"holds a side critic.*model.critic_kind=side"):
        load_critic(tmp_path / "side")
    with pytest.raises(ModelError, match="holds no side critic"):
        load_side_critic(toys.toy_base(tmp_path / "base"), toys.tiny_llama())
