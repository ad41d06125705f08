"""A sequence classifier with one label as a reward function."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from vapo.errors import ModelError
from vapo.models.model_source import check_source
from vapo.models.placing import best_device
from vapo.models.tokens import read_tokenizer


class RewardModel:
    """Calls a reward model on prompt and response: one logit for each text, in the order of the responses.

    `model` is a module that takes `input_ids` and `attention_mask` and returns `logits` (B, 1 or more), of which the
    first column is the reward. Messages go through the tokenizer's chat template.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, batch: int = 8) -> None:
        self.__name__ = name
        self.model, self.batch = model.eval().requires_grad_(False), batch
        self.tokenizer = copy.deepcopy(tokenizer)  # it may be the policy's
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if isinstance(config := getattr(model, "config", None), PreTrainedConfig):
            # by it a classifier finds the last token of each text
            config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

    @classmethod
    def load(cls, source: str) -> RewardModel:
        """A reward model from a folder or the hub, with its tokenizer. Raises ModelError."""
        check_source(source, "reward model")
        tokenizer = read_tokenizer(source)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"Cannot load the reward model {source}: {error}") from error
        return cls(model.to(best_device()), tokenizer, source.rstrip("/").rpartition("/")[2])

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """The reward of each completion."""
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        device = next(self.model.parameters()).device
        rewards: list[float] = []
        for start in range(0, len(texts), self.batch):
            tokens = self.tokenizer(
                texts[start : start + self.batch],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
            rewards += self.model(**inputs).logits[:, 0].float().tolist()
        return rewards

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        return str(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
