"""TRL's GRPOTrainer on the maze, run by benchmarks/time_to_accuracy.py in TRL's environment: JSON line per rollout."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vapo.tasks import make_task


class Stop(TrainerCallback):
    """Ends training once the rewards of `last` rollouts average `wanted`, or after so many seconds."""

    def __init__(self, wanted: float, last: int, seconds: float) -> None:
        self.wanted, self.last, self.seconds = wanted, last, seconds
        self.rewards: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def note(self, rewards: list[float]) -> None:
        self.rewards.append(sum(rewards) / len(rewards))
        point = {"seconds": time.perf_counter() - self.began, "reward": self.rewards[-1], "responses": len(rewards)}
        print(json.dumps(point), flush=True)

    def on_step_end(self, _arguments: Any, _state: Any, control: Any, **__: Any) -> None:
        recent = self.rewards[-self.last :]
        reached = len(recent) == self.last and sum(recent) / self.last >= self.wanted
        control.should_training_stop |= reached or time.perf_counter() - self.began > self.seconds


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    task = make_task("maze")
    prompts = {task.train[i].text: task.train[i] for i in range(len(task.train))}
    stop = Stop(job["wanted"], job["last"], job["seconds"])

    def right(prompts_: list[str], completions: list[str], **_: Any) -> list[float]:
        rewards = [float(task.verify(prompts[p], c).right) for p, c in zip(prompts_, completions, strict=True)]
        stop.note(rewards)
        return rewards

    right.__name__ = "right"
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=job["minibatch"],
            gradient_accumulation_steps=1,
            steps_per_generation=job["samples"] // job["minibatch"],
            num_generations=job["group"],
            max_completion_length=task.max_response_tokens,
            max_steps=job["rollouts"] * job["samples"] // job["minibatch"],
            learning_rate=job["lr"],
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=job["warmup"] * job["samples"] // job["minibatch"],
            max_grad_norm=1.0,
            weight_decay=job["weight_decay"],
            beta=0.0,
            epsilon=0.2,
            loss_type="grpo",
            temperature=1.0,
            top_k=0,
            seed=job["seed"],
            logging_steps=1000,
            gradient_checkpointing=False,
            disable_tqdm=True,
            log_level="error",
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda prompts, completions, **rest: right(prompts, completions, **rest),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]),
            processing_class=tokenizer,
            callbacks=[stop],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
