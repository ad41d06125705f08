"""transformers: seconds of a rollout by `generate` (what TRL calls) and by continuous batching."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from forced import ForcedLengths
from protocol import Channel
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList


def by_generate(model: Any, job: dict[str, Any], lengths: list[int] | None, limit: int) -> int:
    """Sample all rows in one call; the number of tokens up to each row's end."""
    longest = max(map(len, job["prompts"]))
    pad, (stop, *_) = job["pad"], job["stop"]
    rows = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in job["prompts"]])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in job["prompts"]])
    force = [ForcedLengths(lengths, stop, longest)] if lengths else []
    out = model.generate(
        rows,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=limit,
        eos_token_id=job["stop"],
        pad_token_id=pad,
        cache_implementation=job["settings"]["cache"],
        logits_processor=LogitsProcessorList(force),
    )
    ended = torch.isin(out[:, longest:], torch.tensor(job["stop"]))
    before = (ended.cumsum(1) - ended.long()) == 0  # the tokens up to the first stop token, which counts
    return int(before.sum())


def by_continuous_batching(model: Any, job: dict[str, Any], lengths: list[int] | None, limit: int) -> int:
    """Sample all rows with a limit for each; the number of tokens."""
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=limit,
        eos_token_id=-1 if lengths else job["stop"][0],
        pad_token_id=job["pad"],
    )
    batching = transformers.ContinuousBatchingConfig(
        num_blocks=job["settings"]["blocks"],
        page_size=job["settings"]["page_size"],
        max_batch_tokens=job["settings"]["max_batch_tokens"],
        return_logprobs=True,
    )
    tokens = 0
    with model.continuous_batching_context_manager(config, continuous_batching_config=batching, timeout=5) as manager:
        for i, ids in enumerate(job["prompts"]):
            manager.add_request(ids, max_new_tokens=lengths[i] if lengths else limit)
        left = len(job["prompts"])
        while left:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise SystemExit("continuous batching ended early")
                continue
            if result.error:
                raise SystemExit(f"continuous batching: {result.error}")
            if result.is_finished():
                tokens += len(result.generated_tokens)
                left -= 1
    return tokens


def main() -> None:
    channel = Channel()
    job = channel.job
    torch.set_num_threads(job["threads"])
    continuous = job["how"] == "continuous"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()  # the file's own may have penalties
    run = by_continuous_batching if continuous else by_generate
    channel.send(
        name=f"transformers {transformers.__version__}, {'continuous batching' if continuous else 'generate'}",
        torch=torch.__version__,
    )
    while True:
        command = channel.wait()
        lengths, limit = channel.lengths(command), channel.limit(command)
        began = time.perf_counter()
        with torch.no_grad():
            tokens = run(model, job, lengths, limit)
        channel.send(seconds=time.perf_counter() - began, tokens=tokens)


if __name__ == "__main__":
    main()
