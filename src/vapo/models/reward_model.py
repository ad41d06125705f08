"""A sequence classifier with one label as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from vapo.errors import ModelError
from vapo.models.critic_notes import PRIVILEGED, check_one_label, is_saved_critic, saved_head, value_at
from vapo.models.loaded import check_complete, own_memory, read_model
from vapo.models.loading import load_critic
from vapo.models.networks import Critic, Sequences
from vapo.models.placing import best_device, to_device
from vapo.models.pretrained import explained, load_config
from vapo.models.tokens import chat_text, read_tokenizer


class RewardModel:
    """Calls a reward model on prompt and response: one logit for each text, in the order of the responses.

    `model` is a module that takes `input_ids` and `attention_mask` and returns `logits` (B, 1 or more), of which the
    first column is the reward. Messages go through the tokenizer's chat template; ConfigError if it refuses them.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, batch: int = 8) -> None:
        self.__name__ = name
        self.model, self.batch, self.tokenizer = model.eval().requires_grad_(False), batch, tokenizer
        pad = tokenizer.pad_token_id
        if isinstance(config := getattr(model, "config", None), PreTrainedConfig):
            text = config.get_text_config()
            own = getattr(text, "pad_token_id", None)
            if pad is None and own != tokenizer.eos_token_id:
                pad = own
            text.pad_token_id = pad  # by it a classifier finds the last token of each text
            if pad is None:
                self.batch = 1  # padded with the end token, texts that end with it would be read one token early
        self._pad = cast(int, (tokenizer.eos_token_id or 0) if pad is None else pad)

    @classmethod
    def load(
        cls, source: str, tokenizer: PreTrainedTokenizerBase | None = None, *, trust_remote_code: bool = False
    ) -> RewardModel:
        """A reward model from a folder or the hub, with its tokenizer where none is given; also a critic that was
        trained as one, `trainer.pretraining_at: end`. Raises ModelError, also for one that lacks tensors: a head of
        random numbers would give random rewards."""
        if is_saved_critic(load_config(source, trust_remote_code=trust_remote_code)):
            model = LastValue(_critic_at_end(source, trust_remote_code)).to(best_device())
        else:
            model = to_device(own_memory(_classifier(source, trust_remote_code)), best_device())
        tokenizer = tokenizer or read_tokenizer(source, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, source.rstrip("/").rpartition("/")[2])

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """The reward of each completion."""
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        device = next(self.model.parameters()).device
        rewards: list[float] = []
        for start in range(0, len(texts), self.batch):
            rows = self.tokenizer(texts[start : start + self.batch], add_special_tokens=False)["input_ids"]
            tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
            inputs = {
                "input_ids": pad_sequence(tokens, batch_first=True, padding_value=self._pad),
                "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
            }
            logits = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
            rewards += logits[:, 0].float().tolist()
        return rewards

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        advice = "Give prompts as texts, or a reward model whose template takes these messages."
        return chat_text(self.tokenizer, [*prompt, *completion], f"a conversation for {self.__name__}", advice)


class LastValue(torch.nn.Module):
    """A critic called like a sequence classifier: its logits (B, 1) are the values after the last tokens."""

    def __init__(self, critic: PreTrainedModel) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """The values, as `logits`."""
        tokens = tuple(row[mask.bool()] for row, mask in zip(input_ids, attention_mask, strict=True))
        critic = Critic(self.critic, "padded", head=saved_head(self.critic.config))
        values = critic.final_values(Sequences(tokens, (0,) * len(tokens)))
        return SequenceClassifierOutput(logits=cast(torch.FloatTensor, values[:, None]))


def _classifier(source: str, trust_remote_code: bool) -> PreTrainedModel:
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
    return model


def _critic_at_end(source: str, trust_remote_code: bool) -> PreTrainedModel:
    """A saved critic; ModelError unless it was trained on states after the last token."""
    model, _ = load_critic(source, trust_remote_code=trust_remote_code)
    if column := getattr(model.config, PRIVILEGED, None):
        raise ModelError(
            f"{source} holds a critic that also reads the column {column!r}, which a reward model is not given. Train "
            "one with algorithm.credit.privileged=null."
        )
    if value_at(model) != "end":
        raise ModelError(
            f"{source} holds a critic of unfinished responses. Give a reward model: a sequence classifier with one "
            "label, or a critic that was trained with trainer.pretraining_at=end."
        )
    return model
