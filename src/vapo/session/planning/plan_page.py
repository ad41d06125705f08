"""docs/plan.md: how to read a plan, and the plan of each recipe for a cluster. Print it: `python -m` this module."""

from __future__ import annotations

from vapo.reports.formatting import duration, short_count
from vapo.session.config import resolve
from vapo.session.layers import read_yaml, recipe_layer, recipes
from vapo.session.planning.hardware import DEVICES, NETWORK, read_cluster
from vapo.session.planning.phase_times import Shares
from vapo.session.planning.plan_words import advice_words, gb, head_words, memory_rows, time_rows, verdict_words
from vapo.session.planning.planned import MEAN_SHARE, PROMPT, RunPlan, plan_run
from vapo.session.planning.rank_memory import CONTEXT, FRAGMENTS, GATHERED

DEVICE = "H100"
"""The GPUs that the page plans for; how many, a recipe says."""


def planned_recipes() -> dict[str, RunPlan]:
    """The plan of every recipe whose model does not ship, on as many GPUs as it asks for."""
    plans = {}
    for name in recipes():
        config = resolve([recipe_layer(name)])
        scale = config.sections.scale
        if config.sections.model.policy != "builtin":
            cluster = read_cluster(f"{scale.nodes}x{scale.gpus_per_node}x{DEVICE}")
            plans[name] = plan_run(config, cluster, offline=True)
    return plans


def page() -> str:
    """The whole page."""
    plans = planned_recipes()
    ordered = sorted(plans, key=lambda name: (name.split("-", 1)[1], "recipe" in read_yaml(recipes()[name]), name))
    return "\n".join([_introduction(), _overview({name: plans[name] for name in ordered}), *(
        _section(name, plans[name]) for name in ordered
    )])  # fmt: skip


def _introduction() -> str:
    shares = Shares()
    devices = [
        ["device", "memory, GB", "bfloat16, TFLOP/s", "bandwidth, TB/s", "link, GB/s"],
        *(
            [
                d.name,
                f"{d.memory / 1e9:.0f}",
                f"{d.rate / 1e12:.0f}",
                f"{d.bandwidth / 1e12:.2f}",
                f"{d.link / 1e9:.0f}",
            ]
            for d in DEVICES.values()
        ),
    ]
    return f"""# What a run needs: `vapo plan` and `vapo check`

Printed by `python -m vapo.session.planning.plan_page`; the plans below are what the commands beside them print.
**None of these recipes was run here**: the sizes follow from the models, the times from data sheets and two
stated shares.

```sh
vapo plan vapo-qwen2.5-32b --cluster 16x8xH100     # memory by part, time by phase, and what would make it fit
vapo plan my.yaml --cluster 8xL40S --mfu .3 --json
vapo check my.yaml                                 # everything that can be wrong before it costs anything
```

## How to read a plan

A plan reads the model's configuration and no weights. Each column is a phase of a step; the largest column must
be within what a device has.

- **weights, gradients, optimizer**: float32 masters, float32 gradients while a network is updated, and AdamW's
  two float32 moments: 16 bytes for each trained parameter, 18 with `model.dtype=bfloat16-weights`, over all
  training ranks (FSDP2). Adapters train few parameters; with adapters on both networks the base is counted once.
  The critic is updated before the policy, so their gradients are never there together.
- **activations, logits**: the passes themselves run on tensors without storage, and the most bytes alive at
  once are counted. So they are those of the code: packing, gradient checkpointing, adapters, the output layer
  in chunks, the side critic, and products in bfloat16 where `model.dtype` says so. A micro-batch is taken at
  full length.
- **gathered layers**: a rank holds {GATHERED} float32 layers whole, beside embeddings and output layer, and
  their gradient until it is dealt out.
- **KV cache, sampler weights**: of the torch engine, `rollout.engine.slots` sequences of full length, and a
  copy of the policy. vLLM takes `rollout.engine.memory_share` of each GPU, and gives it back while the trainer
  learns (`sleep`).
- **there are**: of a GPU {100 * FRAGMENTS:.0f} % are left to fragments and {CONTEXT / 1e9:g} GB to CUDA and
  NCCL; assumptions, both. On a CPU a third is left to freed blocks that glibc keeps for later
  ([measured](../benchmarks/plan_memory.md)); `MALLOC_MMAP_THRESHOLD_=65536` in the environment returns them.
- **host memory**: rows of the step; for a side critic also the hidden states that are kept from scoring to the
  update, and for the replays of value pretraining: each up to a quarter of the machine's memory.

Times: scoring and updates take the model's operations over {100 * shares.mfu:.0f} % of the data sheet's rate
(`--mfu`), or what it takes to fetch the layers if that is longer. Sampling takes the larger of computing and of
reading weights and cache at {100 * shares.bandwidth:.0f} % of the bandwidth (`--bandwidth`), with every slot in
use: the wait for the longest response is not in it. Responses have {MEAN_SHARE:g} of the limit on average
unless `--mean-tokens` says otherwise; prompts {PROMPT:,} tokens, where the data are not read. What verifiers,
checkpoints and evaluations take is left out. Between machines each GPU has {NETWORK / 1e9:.0f} GB/s.

{_table(devices)}

The prediction of memory is measured on a CPU: [benchmarks/plan_memory.md](../benchmarks/plan_memory.md).

## What `vapo check` looks at

Settings and their notes; versions, vLLM, Ray, peft; the model's configuration; memory, time and disk by the
plan; where Ray runs the run: places for ranks and engines, and, unless `--offline`, that the machines answer
with the same software; data, a rendered prompt, unknown tokens, training prompts that are held out; the
verifier on gold answers, which must be right, and on garbage, which must be wrong; learning rates and λ for
this size; and two real steps on few responses in a temporary folder, with a save and a resume between them,
where this machine can take them. Each finding has its fix. Exit code 2 if one is an error.

## The recipes

Models: [Qwen2.5](https://huggingface.co/Qwen/Qwen2.5-7B) 7B and 32B base as in the paper's line of work, and
Qwen3.5-9B-Base of EasyPPO's table C.1, whose layers are three gated delta rules to one attention (sampled with
vLLM; trained padded). Their shapes ship in `vapo/recipes/models`, for machines without a network. A twin has
the same model, data, batch and length with another method.
"""


def _overview(plans: dict[str, RunPlan]) -> str:
    rows = [["recipe", "method", "on", "tokens a step", "most memory, GB of a GPU", "a step", "all steps, days"]]
    for name, plan in plans.items():
        sampled = plan.config.algorithm.sampling.samples * plan.lengths.mean
        days = plan.step_seconds * plan.config.sections.trainer.steps / 86400
        rows.append(
            [f"`{name}`", plan.config.label, plan.cluster.name, short_count(sampled), gb(plan.training.peak),
             duration(plan.step_seconds), f"{days:.1f}"]
        )  # fmt: skip
    return _table(rows) + "\n\nWithout value pretraining, and without DAPO's further rounds.\n"


def _section(name: str, plan: RunPlan) -> str:
    about = recipes()[name].read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    lines = [f"### {name}", "", about, "", f"`vapo plan {name} --cluster {plan.cluster.name} --offline`", ""]
    lines += [f"{line}  " for line in head_words(plan)]
    lines += ["", _table(memory_rows(plan.training)), ""]
    if plan.sampling is not None:
        lines += [_table(memory_rows(plan.sampling)), ""]
    lines += [_table(time_rows(plan)), "", verdict_words(plan), *advice_words(plan), ""]
    return "\n".join(lines)


def _table(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
