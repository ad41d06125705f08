"""Responses of given lengths in transformers' generate: the stop token where a row is to end, never before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


class ForcedLengths(LogitsProcessor):
    """Row i of a call ends with `stop` after lengths[i] tokens. The counting starts at each call's prompt."""

    def __init__(self, lengths: Sequence[int], stop: int, prompt: int) -> None:
        self._lengths, self._stop, self._prompt = torch.tensor(lengths), stop, prompt
        self._ends = set(lengths)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        number = input_ids.shape[1] - self._prompt + 1
        scores[:, self._stop] = -torch.inf
        if number in self._ends:
            rows = self._lengths == number
            scores[rows] = -torch.inf
            scores[rows, self._stop] = 0.0
        return scores
