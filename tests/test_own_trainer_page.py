"""The code of docs/own_trainer.md runs, and does what the page says; verl's and TRL's where they are installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from vapo.algo import clipped_surrogate, positive_weights, token_weights, weighted_sum

PAGE = Path(__file__).parents[1] / "docs" / "own_trainer.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def names_of(start: str) -> dict[str, Any]:
    """What the block with this function or class defines."""
    (code,) = [block for block in BLOCKS if start in block]
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_page_has_these_blocks():
    assert len(BLOCKS) == 5


def test_the_gradient_of_micro_batches_is_that_of_the_whole():
    torch.manual_seed(0)
    logp = torch.randn(4, 6, requires_grad=True)
    old, advantages = torch.randn(4, 6), torch.randn(4, 6)
    mask = torch.arange(6) < torch.tensor([[2], [6], [1], [4]])
    correct = torch.tensor([True, False, False, True])
    surrogate = clipped_surrogate(logp, old, advantages, low=0.2, high=0.28)
    loss = weighted_sum(surrogate, token_weights(mask))
    loss = loss + 0.1 * weighted_sum(-logp, positive_weights(mask, correct))
    (whole,) = torch.autograd.grad(loss, logp)
    cuts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    step_loss = names_of("def step_loss")["step_loss"]
    parts = [(logp[cut], old[cut], advantages[cut], mask[cut]) for cut in cuts]
    assert step_loss(parts, [correct[cut] for cut in cuts]) == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(logp.grad, whole)


def test_the_critic_learns_the_outcome_and_the_policy_gets_another_lambda():
    credit = names_of("def credit")["credit"]
    mask = torch.arange(40) < torch.tensor([[40], [3]])
    values = torch.full((2, 40), 0.5)
    advantages, returns = credit(torch.tensor([1.0, 0.0]), values, mask)
    assert returns[mask].tolist() == pytest.approx([1.0] * 40 + [0.0] * 3)
    # lambda is 1 - 1/(.05 x 40) = .5 for 40 tokens and 0 for 3; only the last TD error is not 0
    assert advantages[0, -1].item() == pytest.approx(0.5)
    assert advantages[0, -2].item() == pytest.approx(0.25)
    assert advantages[1, :3].tolist() == pytest.approx([0.0, 0.0, -0.5])


@pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")
def test_the_function_for_verl_is_verls_own_at_lambda_one():
    import verl.trainer.ppo.core_algos as core_algos

    own = core_algos.compute_gae_advantage_return
    try:
        ours = names_of("def vapo_gae")["vapo_gae"]
        assert core_algos.compute_gae_advantage_return is ours
        torch.manual_seed(0)
        mask = (torch.arange(9) < torch.tensor([[4], [9]])).long()
        rewards, values = torch.zeros(2, 9), torch.randn(2, 9)
        rewards[0, 3] = rewards[1, 8] = 1.0
        _, returns = ours(rewards, values, mask, 1.0, 0.95)
        _, theirs = own(rewards, values, mask, 1.0, 1.0)
        torch.testing.assert_close(returns * mask, theirs * mask)
        loss = names_of("def vapo_policy_loss")
        value, figures = loss["vapo_policy_loss"](torch.zeros(2, 9), torch.zeros(2, 9), values, mask)
        assert (float(value), figures) == (pytest.approx(float(-values[mask.bool()].mean())), {})
        assert core_algos.get_policy_loss_fn("vapo") is loss["vapo_policy_loss"]
    finally:
        core_algos.compute_gae_advantage_return = own


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.filterwarnings("default")
def test_the_trainer_for_trl_does_the_step_of_loss_type_dapo(tmp_path: Path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    import toys

    def reward(completions, **kwargs):
        return [float(len(set(c.split()))) for c in completions]

    def trained(trainer, **loss) -> dict[str, torch.Tensor]:
        args = GRPOConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            num_generations=4, max_completion_length=6, learning_rate=1e-2, lr_scheduler_type="constant",
            report_to="none", use_cpu=True, bf16=False, epsilon=0.2, epsilon_high=0.28, save_strategy="no", **loss,
        )  # fmt: skip
        rows = Dataset.from_list([{"prompt": f"{i} x"} for i in range(8)])
        made = trainer(toys.tiny_llama(), reward, args=args, train_dataset=rows, processing_class=toys.tokenizer())
        made.train()
        return dict(made.model.state_dict())

    theirs = trained(GRPOTrainer, loss_type="dapo")
    ours = trained(names_of("class ClipHigherTrainer")["ClipHigherTrainer"])
    before = toys.tiny_llama().state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in theirs.items())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)
