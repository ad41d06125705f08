"""TRL's GRPOTrainer: seconds of a training step."""

from __future__ import annotations

import tempfile
import time
import zlib
from typing import Any

import torch
import trl
from datasets import Dataset
from forced import ForcedLengths
from protocol import Channel
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def coin(completions: list[str], **_: Any) -> list[float]:
    return [float(zlib.crc32(text.encode()) % 2) for text in completions]


class Rounds(TrainerCallback):
    """One training step per command."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.lengths: list[int] = []
        self.generating = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.lengths = self._channel.lengths(self._channel.wait()) or []
        self.generating = 0.0
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - self._began
        parts = {"rollout": self.generating, "score": 0.0, "update": seconds - self.generating}
        self._channel.send(seconds=seconds, tokens=sum(self.lengths), parts=parts)


def main() -> None:
    channel = Channel()
    job = channel.job
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    samples, micro = len(job["prompts"]), job["settings"]["micro_batch"] or len(job["prompts"])
    rounds, plain = Rounds(channel), model.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        prompt = options["input_ids"].shape[1]
        force = LogitsProcessorList([ForcedLengths(rounds.lengths, job["stop"][0], prompt)])
        began = time.perf_counter()
        out = plain(*arguments, **options, logits_processor=force)
        rounds.generating += time.perf_counter() - began
        ends = (out[:, prompt:] == job["stop"][0]).int().argmax(1) + 1
        if ends.tolist() != rounds.lengths:
            raise SystemExit("TRL's rows are not as long as was asked for")
        return out

    model.generate = generate
    distinct = list(dict.fromkeys(job["texts"]))
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            fp16=False,
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=samples // micro,
            num_generations=job["group"],
            max_completion_length=job["max_tokens"],
            max_steps=1_000_000,
            learning_rate=1e-6,
            beta=0.0,
            temperature=1.0,
            logging_steps=1,
            gradient_checkpointing=False,
            disable_tqdm=True,
            dataloader_num_workers=0,
            log_level="error",
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=coin,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": text} for text in distinct]),
            processing_class=tokenizer,
            callbacks=[rounds],
        )
        trainer.remove_callback(PrinterCallback)
        channel.send(name=f"TRL {trl.__version__}, GRPO", torch=torch.__version__)
        trainer.train()


if __name__ == "__main__":
    main()
