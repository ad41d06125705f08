"""Peak memory of 16,384 tokens under a vocabulary of 150,000, forward and backward, above what was there before.

First the log-probabilities alone, from hidden states; then the whole network forward and backward, in passes of as many
tokens as the trainer takes on a CPU. Gradients count. The peak is the kernel's own (VmHWM), reset before each one.
Every round is a process of its own, because how the heap fragments differs from process to process.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from protocol import Channel
from transformers import AutoModelForCausalLM

from vapo.models.logprobs import token_logps
from vapo.models.networks import Policy, Sequences, choose_layout, logits_head, output_embeddings
from vapo.trainer.local_network import CPU_TOKENS

ROWS, TOKENS = 32, 512
MOST_GB = 8
"""What a measurement may take; one that needs more is stopped before it takes the whole machine."""


def resident(field: str) -> float:
    """VmRSS, VmHWM or VmSize of this process, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def peak_above(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of the work, and GB at its peak above those before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (int(1e9 * (resident("VmSize") + MOST_GB)), resource.RLIM_INFINITY))
    try:
        work()
        figures = {"seconds": time.perf_counter() - began}
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        figures = {f"stopped: needs more than {MOST_GB} GB": 1.0}
    return {"peak GB": resident("VmHWM") - before, **figures}


def main() -> None:
    channel = Channel()
    torch.set_num_threads(channel.job["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(channel.job["model"], dtype=torch.float32)
    policy = Policy(model, choose_layout(model))
    vocabulary, width = model.config.vocab_size, model.config.hidden_size
    hidden = torch.randn(ROWS * TOKENS, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (ROWS * TOKENS,))
    rows = tuple(torch.randint(0, vocabulary, (TOKENS,)) for _ in range(ROWS))

    def head() -> None:
        parameters = list(output_embeddings(model).parameters())
        logp, _ = token_logps(hidden, targets, logits_head(model), parameters, vocab_size=vocabulary, with_entropy=True)
        logp.mean().backward()

    def network() -> None:
        count = CPU_TOKENS // TOKENS
        for part in (rows[i : i + count] for i in range(0, ROWS, count)):
            logp, _ = policy.logp(Sequences(part, (TOKENS - 1,) * count), TOKENS - 1, with_entropy=True)
            logp.mean().backward()

    channel.send(name="memory", torch=torch.__version__)
    while True:
        channel.wait()
        found = {}
        for name, work in (("log-probabilities from hidden states", head), ("whole network", network)):
            found[name] = peak_above(work)
            model.zero_grad(set_to_none=True)
            hidden.grad = None
        found["whole network"]["weights GB"] = model.num_parameters() * 4 / 1e9
        found["whole network"]["one copy of all logits GB"] = ROWS * TOKENS * vocabulary * 4 / 1e9
        channel.send(parts=found)


if __name__ == "__main__":
    main()
