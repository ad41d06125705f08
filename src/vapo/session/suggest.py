"""What a mistyped or foreign name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS = {
    # TRL
    "learning_rate": "trainer.actor_lr",
    "num_generations": "trainer.group_size",
    "max_completion_length": "rollout.max_response_tokens",
    "max_steps": "trainer.steps",
    "beta": "algorithm.kl.coef",
    "epsilon": "algorithm.clip.low",
    "epsilon_high": "algorithm.clip.high",
    "delta": "algorithm.clip.c",
    "num_iterations": "algorithm.optimization.epochs",
    "per_device_train_batch_size": "trainer.minibatch_size",
    "generation_batch_size": "trainer.samples_per_step",
    "reward_funcs": "task.verifier",
    "dataset_name": "task.data",
    "model_name_or_path": "model.policy",
    "reward_model_path": "model.critic",
    "value_learning_rate": "trainer.critic_lr",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "evaluation.every",
    "mask_truncated_completions": "algorithm.truncated",
    "scale_rewards": "algorithm.credit.std",
    "loss_type": "algorithm.reduction",
    # verl and others
    "lr": "trainer.actor_lr",
    "n": "trainer.group_size",
    "train_batch_size": "trainer.samples_per_step",
    "ppo_mini_batch_size": "trainer.minibatch_size",
    "ppo_max_token_len_per_gpu": "trainer.micro_batch_tokens",
    "ppo_epochs": "algorithm.optimization.epochs",
    "clip_ratio": "algorithm.clip.low",
    "clip_ratio_low": "algorithm.clip.low",
    "clip_ratio_high": "algorithm.clip.high",
    "clip_ratio_c": "algorithm.clip.c",
    "cliprange": "algorithm.clip.low",
    "cliprange_value": "algorithm.credit.value_clip",
    "kl_coef": "algorithm.kl.coef",
    "kl_loss_coef": "algorithm.kl.coef",
    "critic_warmup": "trainer.pretraining_steps",
    "lam": "algorithm.credit.policy_lambda",
    "lambda": "algorithm.credit.policy_lambda",
    "loss_agg_mode": "algorithm.reduction",
    "max_response_length": "rollout.max_response_tokens",
    "max_tokens": "rollout.max_response_tokens",
    "max_new_tokens": "rollout.max_response_tokens",
    "total_training_steps": "trainer.steps",
    "total_epochs": "trainer.steps",
    "adv_estimator": "algorithm.preset",
    "test_freq": "evaluation.every",
    "save_freq": "checkpoint.every",
    "model_path": "model.policy",
    "output_dir": "--run-dir (an option of the command, not a setting)",
    "default_local_dir": "--run-dir (an option of the command, not a setting)",
    # OpenRLHF
    "critic_pretrain": "model.critic",
    "prompt_data": "task.data",
    "input_template": "task.template",
    "rollout_batch_size": "trainer.samples_per_step",
    "n_samples_per_prompt": "trainer.group_size",
    "train_max_tokens_per_gpu": "trainer.micro_batch_tokens",
    "generate_max_len": "rollout.max_response_tokens",
    "max_epochs": "algorithm.optimization.epochs",
    "actor_learning_rate": "trainer.actor_lr",
    "critic_learning_rate": "trainer.critic_lr",
    "advantage_estimator": "algorithm.preset",
    "lambd": "algorithm.credit.policy_lambda",
    "eps_clip": "algorithm.clip.low",
    "dual_clip": "algorithm.clip.c",
    "value_clip": "algorithm.credit.value_clip",
    "init_kl_coef": "algorithm.kl.coef",
    "freezing_actor_steps": "trainer.pretraining_steps",
    "lora_rank": "model.policy_lora",
    "max_ckpt_num": "checkpoint.keep",
}
"""What other trainers call a setting of ours, by the last part of its name."""


def suggestion(name: str, known: Iterable[object]) -> str:
    """`; did you mean 'x'?` for the nearest of the known names, or a full stop."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."
