"""What `vapo plan` foresees of memory, against what a step takes: eight settings on one CPU core.

    python benchmarks/plan_memory.py [--only NAME ...]

Writes plan_memory.md and plan_memory.json beside itself, after each setting; --only measures some of them again.
Weights are random, and all responses are cut off at the same length. Each setting runs in a process of its own, which
first trains a tiny model for a step, so that libraries and threads are there. What is measured is the most resident
memory (RSS) of value pretraining and a joint step above that; what is foreseen is the largest phase of the plan.

The plan knows tensors. glibc keeps freed blocks of up to 32 MB for later ones, and tensors of other sizes find no room
in them. So each setting is measured twice: as it is, and with MALLOC_MMAP_THRESHOLD_=65536, which gives every freed
tensor back at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GROUP, PROMPT, RESPONSE = 4, 16, 48
SIZES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 2},
    "3M": {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 6},
    "8M": {"hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 688, "num_attention_heads": 4},
    "20M": {"hidden_size": 384, "num_hidden_layers": 11, "intermediate_size": 1024, "num_attention_heads": 6},
}
SETTINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "full": ("20M", 4096, {}),
    "vocabulary": ("3M", 32768, {}),
    "checkpointing": ("8M", 4096, {"model": {"gradient_checkpointing": True}}),
    "lora": ("8M", 4096, {"model": {"policy_lora": 8, "critic_lora": 8}}),
    "side": ("8M", 4096, {"model": {"critic_kind": "side"}}),
    "grpo": ("8M", 4096, {"algorithm": {"preset": "grpo"}}),
    "micro-batch": ("8M", 4096, {"trainer": {"micro_batch_tokens": 512}}),
    "bfloat16": ("3M", 4096, {"model": {"dtype": "bfloat16"}}),
}
"""Per setting: the model, its vocabulary, and what differs from VAPO with a full critic."""


def settings(folder: str, more: dict[str, Any]) -> dict[str, Any]:
    algorithm = {"preset": "vapo", "alpha": 2.0, **more.get("algorithm", {})}
    if algorithm["preset"] == "grpo":
        algorithm.pop("alpha")
    return {
        "algorithm": algorithm,
        "model": {"policy": folder, **more.get("model", {})},
        "rollout": {"max_response_tokens": RESPONSE, "engine": {"kind": "torch", "slots": 32}},
        "trainer": {
            "steps": 1, "samples_per_step": 32, "group_size": GROUP, "minibatch_size": 16, "actor_lr": 1e-6,
            "critic_lr": 1e-5, "warmup_steps": 0, "pretraining_steps": 1, "pretraining_heldout": 4,
            "pretraining_ready": -1e9, "save_rollouts_every": 0, **more.get("trainer", {}),
        },
        "evaluation": {"every": 0, "prompts": 2, "samples_per_prompt": 1},
        "checkpoint": {"every": 0, "keep": 1},
        "guards": {"watchdog": False},
        "scale": {"threads": 1},
    }  # fmt: skip


def make_model(folder: Path, size: str, vocabulary: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from vapo.models.saving import save_model

    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size], vocab_size=vocabulary, max_position_embeddings=256, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(vocabulary - 2))]
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))  # noqa: S106
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", eos_token="<eos>")  # noqa: S106
    save_model(LlamaForCausalLM(config).eval(), tokenizer, folder)


class Lengths:
    """Right where the response's first word has an even number; a chance of one half, whatever is sampled."""

    name = "lengths"
    max_response_tokens = RESPONSE

    def __init__(self) -> None:
        from vapo.types import Prompt

        text = " ".join(f"w{i}" for i in range(PROMPT - 1))
        self.train = [Prompt(f"train-{i}", f"{text} w{i}", i) for i in range(64)]
        self.heldout = [Prompt(f"heldout-{i}", f"{text} w{i}", i) for i in range(8)]

    def verify(self, prompt: Any, response: str) -> Any:
        from vapo.types import Verdict

        return Verdict("right" if response[1:2] in "02468" else "wrong")


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def measure(name: str) -> dict[str, Any]:
    """In a process of its own: what a setting takes, and what the plan says."""
    from vapo.reports.live import SilentView
    from vapo.session.config import resolve
    from vapo.session.layers import file_layer
    from vapo.session.lifecycle import begin, with_task
    from vapo.session.planning.hardware import Cluster, Device
    from vapo.session.planning.planned import plan_run
    from vapo.session.planning.rank_memory import Phase
    from vapo.trainer.loop import run_loop

    size, vocabulary, more = SETTINGS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # another process makes the models: the memory that it took would lie ready for the run
        calls = [f"make_model(Path({str(folder / b)!r}), {b!r}, {n})" for b, n in ((size, vocabulary), ("tiny", 256))]
        make = "; ".join(["from plan_memory import *", *calls])
        subprocess.run([sys.executable, "-c", make], check=True, cwd=Path(__file__).parent)  # noqa: S603

        def carry_out(base: str) -> None:
            task = Lengths()
            config = with_task(resolve([file_layer("benchmark", settings(str(folder / base), more))]), task)
            run = begin(config, folder / f"run-{base}", SilentView(), task=task)
            run_loop(run)
            run.engine.close()

        carry_out("tiny")
        start = resident("VmRSS")
        carry_out(size)
        taken = resident("VmHWM") - start
        config = resolve([file_layer("benchmark", settings(str(folder / size), more))])
        cluster = Cluster(1, 1, Device("cpu", 64e9, 1e11, 1e10, 1e10))
        plan = plan_run(config, cluster, prompt_tokens=PROMPT, mean_tokens=RESPONSE)
        memory = plan.training
    return {
        "setting": name,
        "parameters": plan.sizes["policy"],
        "vocabulary": vocabulary,
        "foreseen": memory.peak,
        "measured": taken,
        "phase": memory.worst.value,
        "phases": {phase.value: memory.total(phase) for phase in Phase if phase in memory.phases},
        "parts": memory.at_peak(),
    }


def page(found: list[dict[str, Any]], machine: str) -> str:
    lines = [
        "# What `vapo plan` foresees of memory, against what was measured",
        "",
        f"Written by `python benchmarks/plan_memory.py` on {machine}.",
        "MB above a process that has trained a tiny model: the largest phase that the plan foresees, and the",
        "most resident memory of value pretraining and of a joint step. *Returned*: freed tensors go back to the",
        "system at once (MALLOC_MMAP_THRESHOLD_=65536). *As it is*: glibc keeps freed blocks of up to 32 MB.",
        "",
        "| setting | parameters | vocabulary | largest phase | foreseen | returned | ratio | as it is | ratio |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        foreseen, returned, plain = (row[name] / 1e6 for name in ("foreseen", "returned", "as_it_is"))
        lines.append(
            f"| {row['setting']} | {row['parameters'] / 1e6:.1f}M | {row['vocabulary']:,} | {row['phase']} | "
            f"{foreseen:.0f} | {returned:.0f} | {foreseen / returned:.2f} | {plain:.0f} | {foreseen / plain:.2f} |"
        )
    within = {
        name: sum(abs(row["foreseen"] / row[name] - 1) <= 0.15 for row in found) for name in ("returned", "as_it_is")
    }
    count = f"of {len(found)}"
    lines += ["", f"Within 15 %: {within['returned']} {count} where freed tensors are returned, "]
    lines[-1] += f"{within['as_it_is']} {count} as it is."
    lines += [
        "",
        "The plan does not see what kernels take inside. In bfloat16 a sixth is missing in the table. The same setting",
        "took 253 MB (returned; ratio 0.99) on a processor with AVX2 only, for which oneDNN has no bfloat16 kernels,",
        "and torch uses its own. So the plan's tensors are right, and what is missing is most likely what oneDNN's",
        "kernels pack and keep.",
        "What glibc keeps depends on the order of sizes, so the plan leaves a third of a CPU's memory to it.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--one", choices=list(SETTINGS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one)))
        return
    path = Path(__file__).with_suffix(".json")
    kept = json.loads(path.read_text())["settings"] if path.exists() else []
    rows: dict[str, dict[str, Any]] = {row["setting"]: row for row in kept}
    for name in chosen.only:
        row: dict[str, Any] = {}
        for how, more in (("returned", {"MALLOC_MMAP_THRESHOLD_": "65536"}), ("as_it_is", {})):
            command, here = [sys.executable, __file__, "--one", name], {**os.environ, **more}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=here)  # noqa: S603
            row |= json.loads(done.stdout.splitlines()[-1])
            row[how] = row.pop("measured")
        rows[name] = row
        print(f"{name}: {' '.join(f'{key} {row[key] / 1e6:.0f} MB' for key in ('foreseen', 'returned', 'as_it_is'))}")
        write(path, [rows[setting] for setting in SETTINGS if setting in rows])


def write(path: Path, found: list[dict[str, Any]]) -> None:
    """Both files, with what has been measured so far."""
    from vapo.session.environment import environment

    here = environment()
    machine = f"{here['processor']}, torch {here['packages']['torch']}, one thread, {platform.system()}"
    path.write_text(json.dumps({"machine": machine, "settings": found}, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(found, machine))


if __name__ == "__main__":
    main()
