"""A stand-in for the part of vLLM that the worker uses: a Llama in numpy, with the faults that FAKE_VLLM asks for.

FAKE_VLLM is JSON: `fault` names one, `after` counts the samples that are finished before it, and `marker` is a file
that is made when it strikes: with one, it strikes once. It loads in a moment, as torch would not.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import load_file

from vllm.sampling_params import SamplingParams as SamplingParams

PLAN = json.loads(os.environ.get("FAKE_VLLM", "{}"))


def strikes(fault: str, finished: int = 0) -> bool:
    marker = PLAN.get("marker")
    if PLAN.get("fault") != fault or finished < PLAN.get("after", 0) or (marker and Path(marker).exists()):
        return False
    if marker:
        Path(marker).touch()
    return True


class LLM:
    def __init__(self, model: str, **options):
        print("a library that prints to stdout")
        print("GPUs:", options.get("tensor_parallel_size", 1))
        assert options["skip_tokenizer_init"]
        assert options["logprobs_mode"] == "processed_logprobs"
        assert options["generation_config"] == "vllm"
        if strikes("refuse"):
            raise ValueError("Model architectures ['Strange'] are not supported for now.")
        if strikes("die at the start"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.model = Llama(model)
        self.llm_engine = Engine(self, options["max_num_seqs"])

    def collective_rpc(self, name, kwargs):
        assert name == "reload_weights"
        if not strikes("keep the weights"):
            self.model = Llama(kwargs["weights_path"])

    def reset_prefix_cache(self):
        return True


class Engine:
    def __init__(self, llm: LLM, slots: int):
        self._llm, self._running, self._finished = llm, [], 0
        self._slots = slots

    def add_request(self, name, prompt, params):
        tokens, random = list(prompt["prompt_token_ids"]), np.random.default_rng(params.seed)
        self._running.append(
            SimpleNamespace(name=name, prompt=tokens, drawn=[], logprobs=[], how=params, random=random)
        )

    def has_unfinished_requests(self):
        return bool(self._running)

    def step(self):
        for fault, act in (("die", lambda: os.kill(os.getpid(), signal.SIGKILL)), ("hang", lambda: time.sleep(600))):
            if strikes(fault, self._finished):
                act()
        if strikes("fail", self._finished):
            raise RuntimeError("an illegal memory access was encountered")
        done = []
        for request in self._running[: self._slots]:
            logits, how = self._llm.model(request.prompt + request.drawn), request.how
            token, logprob = draw(logits[-1], how, request.random)
            request.drawn.append(token)
            request.logprobs.append({token: SimpleNamespace(logprob=logprob)})
            stopped = token in (how.stop_token_ids or ())
            if stopped or len(request.drawn) >= how.max_tokens:
                self._running.remove(request)
                self._finished += how.prompt_logprobs is None
                done.append(output_of(request, log_softmax(logits), "stop" if stopped else "length"))
        return done


def draw(logits, how, random):
    if how.temperature == 0:
        token = int(logits.argmax())
        return token, float(log_softmax(logits)[token])
    logp = log_softmax(logits / how.temperature)
    order = np.argsort(-logp)
    kept = order[np.cumsum(np.exp(logp[order])) - np.exp(logp[order]) < how.top_p]
    logp = logp - np.log(np.exp(logp[kept]).sum())
    chances = np.exp(logp[kept]).astype(np.float64)
    token = int(random.choice(kept, p=chances / chances.sum())) if np.isfinite(chances).all() else 0
    return token, float(logp[token])


def output_of(request, logp, reason):
    rows = None
    if request.how.prompt_logprobs is not None:
        pairs = enumerate(request.prompt[1:])
        rows = [None, *({t: SimpleNamespace(logprob=float(logp[i, t]))} for i, t in pairs)]
    drawn = SimpleNamespace(token_ids=request.drawn, logprobs=request.logprobs, finish_reason=reason)
    return SimpleNamespace(request_id=request.name, finished=True, outputs=[drawn], prompt_logprobs=rows)


class Llama:
    def __init__(self, folder: str):
        self._config = json.loads((Path(folder) / "config.json").read_text())
        self._weights = load_file(Path(folder) / "model.safetensors")

    def __call__(self, tokens):
        config, w = self._config, self._weights
        x = w["model.embed_tokens.weight"][tokens]
        head, heads = config["head_dim"], config["num_attention_heads"]
        length, kv_heads = len(tokens), config["num_key_value_heads"]
        angles = np.arange(length)[:, None] / config["rope_parameters"]["rope_theta"] ** (np.arange(0, head, 2) / head)
        turn = (np.tile(np.cos(angles), 2), np.tile(np.sin(angles), 2))
        hidden = np.triu(np.full((length, length), -np.inf), 1)
        for i in range(config["num_hidden_layers"]):
            layer = {name: w[f"model.layers.{i}.{name}.weight"] for name in NAMES}
            y = self._norm(x, layer["input_layernorm"])
            q, k, v = (
                (y @ layer[f"self_attn.{n}_proj"].T).reshape(length, -1, head).swapaxes(0, 1) for n in ("q", "k", "v")
            )
            k, v = (np.repeat(part, heads // kv_heads, 0) for part in (rotated(k, turn), v))
            scores = rotated(q, turn) @ k.swapaxes(1, 2) / head**0.5 + hidden
            y = (np.exp(log_softmax(scores)) @ v).swapaxes(0, 1).reshape(length, -1)
            x = x + y @ layer["self_attn.o_proj"].T
            y = self._norm(x, layer["post_attention_layernorm"])
            gate = y @ layer["mlp.gate_proj"].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["mlp.up_proj"].T)) @ layer["mlp.down_proj"].T
        return self._norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T

    def _norm(self, x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self._config["rms_norm_eps"]) * weight


NAMES = (
    "input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
)  # fmt: skip


def rotated(x, turn):
    low, high = np.split(x, 2, -1)
    return x * turn[0] + np.concatenate([-high, low], -1) * turn[1]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
