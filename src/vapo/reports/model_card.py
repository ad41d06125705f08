"""The README.md of a trained policy or critic: what it is, how it was made, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vapo.models.critic import opens_with_transformers
from vapo.models.pretrained import load_config
from vapo.models.side import is_side_critic
from vapo.reports.formatting import percent
from vapo.reports.runfiles import read_jsonl
from vapo.trainer.run import Run

_VALUES = """It gives the value of a text that is being written: the outcome that it
expects after each token, in units of reward."""
_HEADS = "What it read in training, and heads other than the linear one: `vapo_*` in config.json."
_CODE = {
    "policy": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

policy = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```""",
    "critic": f"""{_VALUES}

```python
from transformers import AutoModelForTokenClassification, AutoTokenizer

critic = AutoModelForTokenClassification.from_pretrained("{{folder}}")
tokenizer = AutoTokenizer.from_pretrained("{{folder}}")
text = tokenizer(prompt + response, return_tensors="pt")
values = critic(**text).logits[0, :, 0]  # one per token; the last one is the value of the whole text
```

{_HEADS}""",
    "backbone": f"""{_VALUES}

```python
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer  # there is no token classifier for this architecture

backbone = AutoModel.from_pretrained("{{folder}}")
head = load_file("{{folder}}/model.safetensors")
tokenizer = AutoTokenizer.from_pretrained("{{folder}}")
text = tokenizer(prompt + response, return_tensors="pt")
states = backbone(**text).last_hidden_state[0]
values = states @ head["score.weight"][0] + head.get("score.bias", 0)  # one per token
```

{_HEADS}""",
    "side": """It reads the hidden states of the policy beside it, and opens with vapo only.""",
}


def model_card(run: Run, network: str, saved: Path) -> str:
    """The card of a run's `policy` or `critic`, which is `saved` in a folder, in Markdown with the hub's header."""
    folder, optimization = run.folder.path, run.algorithm.optimization
    base = str(run.config["model"]["policy"])
    code = network
    if network == "critic":
        own = load_config(saved, trust_remote_code=bool(run.config["model"].get("trust_remote_code")))
        code = "side" if is_side_critic(own) else network if opens_with_transformers(own) else "backbone"
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["vapo", "reinforcement-learning"]}
    header["pipeline_tag"] = "text-generation" if network == "policy" else "token-classification"
    if base == "builtin":
        start = "the base model shipped for the task"
    elif Path(base).exists():
        start = f"the model in a folder called {Path(base).name}"
    else:
        header["base_model"] = start = base
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {network.capitalize()} of {folder.resolve().name}",
        f"Trained by reinforcement learning on the task `{run.task.name}` with vapo, from {start}.",
        _CODE[code].format(folder=f"{folder.name}/{network}"),
        "## How",
        _table(
            {
                "method": run.config["algorithm"]["preset"],
                "steps": run.state.step,
                "responses per step": run.algorithm.sampling.samples,
                "learning rate": optimization.actor_lr if network == "policy" else optimization.critic_lr,
                "seed": run.seed,
                **_scores(folder),
            }
        ),
        "The whole method is in the run's method.yaml, the settings in config.yaml.",
        "VAPO: arXiv 2504.05118.",
    ]
    return "\n\n".join([lines[0] + "\n" + lines[1] + "\n" + lines[2], *lines[3:]]) + "\n"


def _scores(run: Path) -> dict[str, str]:
    """Held-out accuracy before and after training, by its label."""
    found = read_jsonl(run / "evaluations.jsonl")
    return {f"avg@{line['k']} {line['label']} training": percent(line["avg"]) for line in found if "avg" in line}


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
