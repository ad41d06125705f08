"""A small `VAPOTrainer` on objects in memory."""

from __future__ import annotations

from pathlib import Path

import toys
from vapo import VAPOConfig, VAPOTrainer

ROWS = [{"prompt": f"{i} x", "answer": str(i), "note": i} for i in range(10)]


def names_the_digit(completions, answer, **kwargs):
    return [float(a in c.split()) for c, a in zip(completions, answer, strict=True)]


def short(completions, **kwargs):
    return [-len(c.split()) / 8 for c in completions]


def config(folder: Path, **more) -> VAPOConfig:
    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "generation_batch_size": 16, "num_generations": 4, "max_completion_length": 8, "max_steps": 4,
        "learning_rate": 1e-3, "critic_learning_rate": 1e-2, "pretraining_steps": 1, "report_to": "none",
        "save_steps": 2, "logging_steps": 1,
        "settings": {"scale": {"threads": 1}, "evaluation": {"samples_per_prompt": 2},
                     "trainer": {"pretraining_heldout": 8, "pretraining_ready": -10.0}},
    }  # fmt: skip
    return VAPOConfig(**{**given, **more})


def trainer(folder: Path, **more) -> VAPOTrainer:
    given = {
        "model": toys.tiny_llama(), "reward_funcs": [names_the_digit, short], "args": config(folder),
        "train_dataset": ROWS, "processing_class": toys.tokenizer(),
    }  # fmt: skip
    return VAPOTrainer(**{**given, **more})
