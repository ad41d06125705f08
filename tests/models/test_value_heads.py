"""Critics with other heads: saved and loaded with their values, opened by plain transformers, started at a value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification

import architectures
import toys
from vapo.algo.head_ranges import with_range
from vapo.algo.heads import head_values
from vapo.algo.method import BoundedHead, HistogramHead, LinearHead, SigmoidHead
from vapo.errors import ConfigError, ModelError
from vapo.models.critic import freeze
from vapo.models.critic_notes import saved_head, set_residual, value_head
from vapo.models.loading import load_critic, load_policy
from vapo.models.networks import Critic, Sequences
from vapo.models.saving import save_model

HEADS = [LinearHead(), BoundedHead(), SigmoidHead(), HistogramHead(bins=11)]
SEQUENCES = Sequences((torch.arange(2, 14), torch.tensor([7, 8, 9, 15])), (6, 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def critic_of(source: Path, head) -> Critic:
    model, _ = load_critic(source, head=head)
    return Critic(model, head=head)


def documented(critic, outputs: torch.Tensor) -> torch.Tensor:
    """The values that the code in docs/tasks.md makes of the outputs."""
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    code = page[page.index('head = getattr(critic.config, "vapo_value_head"') :]
    names = {"critic": critic, "outputs": outputs, "torch": torch}
    exec(code[: code.index("```")], names)
    return names["values"]


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_a_saved_critic_has_the_same_values(base: Path, tmp_path: Path, head):
    head = with_range(head, -1.0, 1.0)
    critic = critic_of(base, head)
    torch.nn.init.normal_(value_head(critic.model).weight)
    before = critic.values(SEQUENCES, 6)
    save_model(critic.model, toys.tokenizer(), tmp_path / "critic")
    again, origin = load_critic(tmp_path / "critic")
    assert origin.startswith("saved critic")
    assert torch.equal(Critic(again, head=saved_head(again.config)).values(SEQUENCES, 6), before)
    assert before.std() > 0.01

    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()
    outputs = plain(input_ids=SEQUENCES.tokens[1][None]).logits[0]
    values = head_values(saved_head(plain.config), outputs)  # of the state after each token
    torch.testing.assert_close(values, documented(plain, outputs))
    torch.testing.assert_close(values[1:3], before[1, :2])


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_a_new_head_starts_at_the_value_and_a_trained_one_stays(base: Path, head):
    critic = critic_of(base, with_range(head, 0.0, 1.0))
    assert critic.start_at(0.3)
    torch.testing.assert_close(critic.values(SEQUENCES, 6)[1, :2], torch.full((2,), 0.3), atol=1e-5, rtol=0)
    torch.nn.init.normal_(value_head(critic.model).weight)
    before = critic.values(SEQUENCES, 6)
    assert not critic.start_at(0.9)
    assert torch.equal(critic.values(SEQUENCES, 6), before)


def test_another_head_than_the_saved_one_is_refused_with_the_setting(base: Path, tmp_path: Path):
    saved = with_range(BoundedHead(), 0.0, 1.0)
    save_model(critic_of(base, saved).model, None, tmp_path / "critic")
    with pytest.raises(ModelError, match=r"has a bounded head \(low 0, high 1\).*credit.head=\{low: 0.0, high: 1.0"):
        load_critic(tmp_path / "critic", head=LinearHead())
    with pytest.raises(ModelError, match=r"reads a bounded head \(low -1, high 1\)"):
        load_critic(tmp_path / "critic", head=with_range(BoundedHead(), -1.0, 1.0))


def test_an_architecture_whose_classifier_has_no_bias_gets_a_head_with_one(tmp_path: Path):
    save_model(architectures.tiny("gemma3"), None, tmp_path / "base")
    head = LinearHead(start="mean")
    critic = critic_of(tmp_path / "base", head)
    assert critic.start_at(0.4)
    values = critic.values(SEQUENCES, 6)
    save_model(critic.model, None, tmp_path / "critic")
    again, _ = load_critic(tmp_path / "critic", head=head)
    assert torch.equal(Critic(again).values(SEQUENCES, 6), values)


def test_the_critics_head_is_never_the_policys(base: Path):
    policy = load_policy(base)
    critic, origin = load_critic(base)
    assert "value head set to 0" in origin
    assert value_head(critic).weight.shape[0] == 1
    assert not value_head(critic).weight.any()
    assert policy.get_output_embeddings().weight.any()


def test_frozen_parameters_are_those_that_match_and_never_the_head(base: Path):
    critic, _ = load_critic(base)
    freeze(critic, ["*self_attn*"])
    trained = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert trained
    assert not any("self_attn" in name for name in trained)
    assert all(p.requires_grad for name, p in critic.named_parameters() if name.startswith("score."))
    with pytest.raises(ConfigError, match=r"frozen=\['model.\*'\] freezes all of the critic but its head"):
        freeze(critic, ["model.*"])
    with pytest.raises(ConfigError, match=r"no parameter of the critic matches 'atn'. Its names are like"):
        freeze(critic, ["atn"])


def test_a_residual_critic_does_not_serve_a_method_that_wants_whole_outcomes(base: Path, tmp_path: Path):
    critic, _ = load_critic(base)
    set_residual(critic, True, "base")  # a new head may learn either
    torch.nn.init.normal_(value_head(critic).weight)
    save_model(critic, None, tmp_path / "critic")
    again, _ = load_critic(tmp_path / "critic")
    set_residual(again, True, "folder")
    with pytest.raises(ModelError, match=r"folder has learned what the mean of the group leaves.*baseline=group"):
        set_residual(again, False, "folder")
