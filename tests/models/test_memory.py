"""A large vocabulary must not cost (tokens x vocabulary) memory, forward or backward."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from vapo.models.logprobs import token_logps
torch.set_num_threads(1)
tokens, vocabulary, width = 4096, 150_000, 16
hidden = torch.randn(tokens, width, requires_grad=True)
weight = (0.02 * torch.randn(vocabulary, width)).requires_grad_()
targets = torch.randint(vocabulary, (tokens,))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
token_logps(hidden[:8], targets[:8], lambda h: h @ weight.T, [weight], vocab_size=vocabulary)[0].sum().backward()
before = peak()
logp, entropy = token_logps(hidden, targets, lambda h: h @ weight.T, [weight], vocab_size=vocabulary, with_entropy=True)
logp.sum().backward()
print(peak() - before)
"""


@pytest.mark.slow
def test_logps_of_4096_tokens_and_150k_words_use_a_fraction_of_the_memory_of_the_logits():
    # the whole logits would be 4096 * 150,000 * 4 bytes = 2,344 MiB, and as much again for their gradient; seen
    # here: 119 MiB. Large blocks go back to the system when freed, so that the peak is what is alive, not what
    # the allocator hoards.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 2344 / 10
