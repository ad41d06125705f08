"""The last PPOTrainer that TRL had (1.12): seconds of a batch.

Beside policy and critic it runs a reference model and a reward model, which it cannot go without; their forward passes
are part of its time. Its responses all have the full length.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
import trl
import trl.experimental.ppo.ppo_trainer as ppo_trainer
from datasets import Dataset
from protocol import Channel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    channel = Channel()
    job = channel.job
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def network(kind: Any, **options: Any) -> Any:
        return kind.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa", **options)

    samples = len(job["prompts"])
    micro = job["settings"]["micro_batch"] or samples
    clock = {"began": 0.0, "rollout": 0.0}
    plain = ppo_trainer.batch_generation

    def batch_generation(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        out = plain(*arguments, **options)
        clock["rollout"] += time.perf_counter() - began
        return out

    ppo_trainer.batch_generation = batch_generation

    def begin() -> None:
        channel.wait()
        clock.update(began=time.perf_counter(), rollout=0.0)

    def end(*_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - clock["began"]
        parts = {"rollout": clock["rollout"], "score": 0.0, "update": seconds - clock["rollout"]}
        channel.send(seconds=seconds, tokens=sum(job["lengths"]), parts=parts)
        begin()

    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            fp16=False,
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=samples // micro,
            num_mini_batches=1,
            num_ppo_epochs=1,
            local_rollout_forward_batch_size=samples,
            total_episodes=samples * 1000,
            response_length=job["max_tokens"],
            num_sample_generations=0,
            learning_rate=1e-6,
            temperature=1.0,
            disable_tqdm=True,
            gradient_checkpointing=False,
            logging_steps=1,
        )
        data = Dataset.from_list([{"input_ids": ids} for ids in job["prompts"]] * 2)
        trainer = PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=network(AutoModelForCausalLM),
            ref_model=network(AutoModelForCausalLM),
            reward_model=network(AutoModelForSequenceClassification, num_labels=1),
            value_model=network(AutoModelForSequenceClassification, num_labels=1),
            train_dataset=data,
            eval_dataset=data,
        )
        trainer.log = end
        channel.send(name=f"TRL {trl.__version__}, PPO", torch=torch.__version__)
        begin()
        trainer.train()


if __name__ == "__main__":
    main()
