"""Out of memory: do the same work again in smaller pieces."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from vapo.errors import VapoError
from vapo.trainer.batch import Batch
from vapo.trainer.run import Run

T = TypeVar("T")
ALL = sys.maxsize


def within_memory(run: Run, what: str, work: Callable[..., T], batch: Batch) -> T:
    """The result of `work(batch, micro_batch_tokens=...)`, called again with half the budget while memory runs out.

    Losses are normalised over the whole step, so the result is the same. `work` must be safe to call again after a
    failure. The budget that was enough becomes part of the state: other budgets round differently.
    """
    budgets = run.state.micro_batch_tokens
    sizes = [len(tokens) for tokens in batch.tokens]
    shortest = max(2, min(sizes, default=2))
    failed_whole = failed_alone = False  # the same pieces get a second try, in the memory that is free then
    while True:
        tokens = min(budgets.get(what, ALL), run.settings.micro_batch_tokens)
        run.watch.beat(what)
        try:
            return work(batch, micro_batch_tokens=tokens)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            # the traceback holds the tensors of the failed try
            reason = str(error).split("\n")[0]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if tokens < shortest:  # each response was alone, and halving changes nothing
            if failed_alone:
                raise VapoError(
                    f"Out of memory in {what} with a single response at a time ({reason}). Lower "
                    "rollout.max_response_tokens, set model.gradient_checkpointing=true, or train adapters."
                )
            failed_alone = True
            continue
        fewer = tokens // 2
        while failed_whole and fewer >= sum(sizes) > 0:  # all of them together, as before
            fewer //= 2
        failed_whole = tokens >= sum(sizes)
        budgets[what] = fewer
        run.alarm(
            f"Out of memory in {what} with {tokens} tokens at once; the same again with {fewer}. The result is "
            f"the same, only slower. To start like this: trainer.micro_batch_tokens={fewer}."
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
