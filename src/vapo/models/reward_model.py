"""A sequence classifier with one label as a reward function."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from vapo.models.critic_notes import check_one_label
from vapo.models.loaded import check_complete, own_memory, read_model
from vapo.models.placing import best_device, to_device
from vapo.models.pretrained import explained
from vapo.models.tokens import chat_text, read_tokenizer


class RewardModel:
    """Calls a reward model on prompt and response: one logit for each text, in the order of the responses.

    `model` is a module that takes `input_ids` and `attention_mask` and returns `logits` (B, 1 or more), of which the
    first column is the reward. Messages go through the tokenizer's chat template; ConfigError if it refuses them.
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
    def load(
        cls, source: str, tokenizer: PreTrainedTokenizerBase | None = None, *, trust_remote_code: bool = False
    ) -> RewardModel:
        """A reward model from a folder or the hub, with its tokenizer where none is given. Raises ModelError, also for
        one that lacks tensors: a head of random numbers would give random rewards."""
        with explained(source, "reward model"):
            model, info = read_model(
                AutoModelForSequenceClassification,
                source,
                num_labels=1,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        check_one_label(source, model, info)
        check_complete(model, info, source, "reward model")
        model = to_device(own_memory(model), best_device())
        tokenizer = tokenizer or read_tokenizer(source, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, source.rstrip("/").rpartition("/")[2])

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
        advice = "Give prompts as texts, or a reward model whose template takes these messages."
        return chat_text(self.tokenizer, [*prompt, *completion], f"a conversation for {self.__name__}", advice)
