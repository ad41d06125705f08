"""Checks and measurements on a GPU, in a few minutes: python benchmarks/gpu.py OUT.json [--seconds 300]

Nothing is downloaded: models are built from configurations. Checked: the maze learns and a stopped run resumes to the
same weights; scores on the GPU agree with the CPU's; sampler and trainer agree. Measured: tokens per second of rollouts
and updates, and peak memory, for models of 0.5B and 1.5B parameters with a vocabulary of 151,936.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vapo.models import flash
from vapo.models.networks import Policy, Sequences, choose_layout
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Completion, Decoding, Prompt

SIZES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "tie_word_embeddings": True},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "tie_word_embeddings": True},
}  # fmt: skip
"""Qwen2.5's shapes."""
PROMPT, RESPONSE, SAMPLES = 64, 256, 96
SLOTS = (64, 256)
"""Sequences that are sampled at a time; as many responses are timed."""
IN_ONE_PASS = {"0.5B": 48, "1.5B": 16}
"""Sequences of a forward-backward pass in bfloat16, as many as fit on 80 GB: 15,360 tokens is near the default of
trainer.micro_batch_tokens. In float32 half as many."""


def vapo(*arguments: str) -> str:
    """Run the command line and return its output."""
    done = subprocess.run([sys.executable, "-m", "vapo", *arguments], capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"vapo {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def maze(work: Path) -> dict[str, Any]:
    """Run ten steps, and four resumed to ten. Returns accuracy before and after, and whether the weights are equal."""
    small = [
        word
        for setting in ("trainer.pretraining_steps=2", "evaluation.prompts=64", "checkpoint.every=1")
        for word in ("--set", setting)
    ]
    began = time.perf_counter()
    vapo("train", "maze", *small, "--steps", "10", "--run-dir", str(work / "whole"))
    seconds = time.perf_counter() - began
    vapo("train", "maze", *small, "--steps", "4", "--run-dir", str(work / "cut"))
    vapo("resume", str(work / "cut"), "--set", "trainer.steps=10")
    digests = [
        hashlib.sha256((work / run / network / "model.safetensors").read_bytes()).hexdigest()
        for network in ("policy", "critic")
        for run in ("whole", "cut")
    ]
    scores = [json.loads(line) for line in (work / "whole" / "evaluations.jsonl").open()]
    last = [json.loads(line) for line in (work / "whole" / "metrics.jsonl").open()][-1]
    return {
        "seconds of ten steps": seconds,
        "avg before and after": [scores[0]["avg"], scores[-1]["avg"]],
        "resumed policy and critic are the same": [digests[0] == digests[1], digests[2] == digests[3]],
        "largest gap of sampler and trainer, nats": last["sampler/logp_gap_max"],
    }


def peak_gb() -> float:
    """Peak memory allocated since the last call, in GB."""
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def some_prompts(count: int) -> list[Prompt]:
    """Prompts of random tokens, each eight times."""
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(str(i), "", token_ids=tuple(torch.randint(1000, 100_000, (PROMPT,), generator=generator).tolist()))
        for i in range(count // 8)
        for _ in range(8)
    ]


def rollout(sampler: Qwen2ForCausalLM, slots: int, *, graphs: bool) -> tuple[float, list[Completion], str]:
    """Response tokens per second of a whole rollout, the responses, and why CUDA graphs were given up, if they were.

    With graphs, the rollout that records them comes before and is not timed.
    """
    engine = TorchEngine(sampler, slots=slots, graphs=graphs)
    prompts, how = some_prompts(slots), Decoding(RESPONSE, ())
    engine.generate(prompts, how if graphs else Decoding(8, ()), list(range(slots)))
    torch.cuda.synchronize()
    began = time.perf_counter()
    completions = engine.generate(prompts, how, list(range(slots)))
    seconds = time.perf_counter() - began
    engine.close()
    return slots * RESPONSE / seconds, completions, engine.graphs_fault


def same_tokens(some: list[Completion], others: list[Completion]) -> float:
    """The share of the responses that are the same token by token."""
    return sum(a.token_ids == b.token_ids for a, b in zip(some, others, strict=True)) / len(some)


@contextmanager
def without_flash() -> Iterator[None]:
    """Within: packed attention is one SDPA call per sequence."""
    takes, flash.takes = flash.takes, lambda *_: False
    try:
        yield
    finally:
        flash.takes = takes


def model_figures(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Rollout, score and update of one model: tokens per second, peak memory, and the sampler's gap to the trainer."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=151_936, max_position_embeddings=4096, **SIZES[name])
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config).to(torch.float32)
    sampler = Qwen2ForCausalLM(config).to("cuda", dtype).requires_grad_(False)
    sampler.load_state_dict(model.state_dict())
    peak_gb()
    plain_speed, plain, _ = rollout(sampler, SLOTS[0], graphs=False)
    figures: dict[str, Any] = {"parameters": model.num_parameters()}
    for slots in SLOTS:
        speed, completions, fault = rollout(sampler, slots, graphs=True)
        figures[f"rollout tokens/s, {slots} at a time"] = speed
        if slots == SLOTS[0]:
            figures["rollout tokens/s without CUDA graphs"] = plain_speed
            figures["share of the responses that are the same with and without"] = same_tokens(completions, plain)
            figures["why no graphs"] = fault
        figures[f"rollout peak GB, {slots} at a time"] = peak_gb()
    prompts, completions = some_prompts(SLOTS[1])[:SAMPLES], completions[:SAMPLES]
    autocast = dtype == torch.bfloat16
    policy = Policy(model, choose_layout(model), 1.0, autocast)
    rows = [
        torch.tensor(prompt.token_ids + completion.token_ids, device="cuda")
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    size = IN_ONE_PASS[name] if autocast else IN_ONE_PASS[name] // 2
    sequences = [Sequences(tuple(rows[i : i + size]), (RESPONSE,) * size) for i in range(0, SAMPLES, size)]
    with torch.no_grad():
        policy.logp(sequences[0], RESPONSE, with_entropy=True)
        torch.cuda.synchronize()
        began = time.perf_counter()
        scored = [policy.logp(part, RESPONSE, with_entropy=True)[0] for part in sequences]
        torch.cuda.synchronize()
        figures["score tokens/s"] = SAMPLES * (PROMPT + RESPONSE) / (time.perf_counter() - began)
        if autocast:
            with without_flash():
                loop = policy.logp(sequences[0], RESPONSE)[0]
            figures["flash and one call per sequence, largest difference in nats"] = float(
                (loop - scored[0]).abs().max()
            )
    sampled = torch.tensor([completion.logprobs for completion in completions])
    figures["largest gap of sampler and trainer, nats"] = float((torch.cat(scored).cpu() - sampled).abs().max())
    figures["score peak GB"] = peak_gb()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    seconds = math.inf
    for _ in range(3):  # the first chooses kernels
        torch.cuda.synchronize()
        began = time.perf_counter()
        for part in sequences:
            policy.logp(part, RESPONSE)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - began)
    tokens = SAMPLES * (PROMPT + RESPONSE)
    figures["update tokens/s"] = tokens / seconds
    figures["update TFLOP/s (6 x parameters x tokens)"] = 6 * model.num_parameters() * tokens / seconds / 1e12
    figures["update peak GB"] = peak_gb()
    return figures


def agrees_with_cpu() -> float:
    """The largest difference of log-probabilities on GPU and CPU, float32, for a small model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=1000, num_key_value_heads=2, **sizes))
    rows = tuple(torch.randint(0, 1000, (n,)) for n in (40, 17, 90))
    found = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        on = Sequences(tuple(row.to(device) for row in rows), (20, 9, 70))
        with torch.no_grad():
            found.append(Policy(model, choose_layout(model)).logp(on, 70)[0].cpu())
    return float((found[0] - found[1]).abs().max())


def main() -> None:
    """Write the measurements that fit into the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="begin nothing new after so many seconds")
    arguments = parser.parse_args()
    began = time.perf_counter()
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "flash attention over packed sequences": flash.available(),
        "float32 log-probabilities, GPU and CPU, largest difference": agrees_with_cpu(),
    }
    jobs: list[tuple[str, Any]] = [
        *((f"{name} {kind}", lambda n=name, d=dtype: model_figures(n, d))
          for kind, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)) for name in SIZES),
        ("maze", lambda: maze(Path(tempfile.mkdtemp()))),
    ]  # fmt: skip
    for name, job in jobs:
        if time.perf_counter() - began > arguments.seconds:
            results[name] = "not begun: no time"
            continue
        try:
            results[name] = job()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        torch.cuda.empty_cache()
        print(name, json.dumps(results[name]), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
