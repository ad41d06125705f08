"""The matrix rate of this machine: the most that float32 products of 2048 x 2048 reach, in GFLOP/s.

Both of torch's ways are tried: MKL's, which it takes by itself, and oneDNN's, which `medium` precision takes. Without
AMX both are float32.
"""

from __future__ import annotations

import time

import torch
from protocol import Channel

SIZE, REPEATS = 2048, 6


def rate() -> dict[str, float]:
    """GFLOP/s by way."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    found = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - began)
        found[precision] = 2 * SIZE**3 / min(seconds) / 1e9
    return found


def main() -> None:
    channel = Channel()
    torch.set_num_threads(channel.job["threads"])
    channel.send(name="matrix rate", torch=torch.__version__)
    while True:
        channel.wait()
        channel.send(**rate())


if __name__ == "__main__":
    main()
