"""Our torch engine: seconds of a rollout."""

from __future__ import annotations

import time

import torch
from forced_uniforms import force_lengths
from protocol import Channel
from transformers import AutoModelForCausalLM

import vapo
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding, Prompt


def main() -> None:
    channel = Channel()
    job = channel.job
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).requires_grad_(False)
    engine = TorchEngine(model, slots=job["settings"]["slots"])
    prompts = [Prompt(str(i), "", token_ids=tuple(ids)) for i, ids in enumerate(job["prompts"])]
    channel.send(name=f"vapo {vapo.__version__}, torch engine", torch=torch.__version__)
    serial = 0
    while True:
        command = channel.wait()
        seeds = [serial + i for i in range(len(prompts))]
        serial += len(prompts)
        if lengths := channel.lengths(command):
            force_lengths(dict(zip(seeds, lengths, strict=True)))
        how = Decoding(channel.limit(command), tuple(job["stop"]))
        began = time.perf_counter()
        completions = engine.generate(prompts, how, seeds)
        seconds = time.perf_counter() - began
        channel.send(seconds=seconds, tokens=sum(len(c.token_ids) for c in completions))


if __name__ == "__main__":
    main()
