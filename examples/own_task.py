"""Train on a task of your own: four attributes and a verifier.

The policy must go south first, whatever the prompt says. Run: python examples/own_task.py
"""

import vapo
from vapo.bases.shipped import builtin_model
from vapo.types import Prompt, Verdict

WORDS = ["north", "east", "south", "west"]


class SouthFirst:
    name = "south-first"
    max_response_tokens = 8
    train = [Prompt(f"{a}-{b}", f"{a} {b}", answer="south") for a in WORDS for b in WORDS if a != b]
    heldout = [Prompt(f"{a}-{a}", f"{a} {a}", answer="south") for a in WORDS]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        words = response.split()
        if words and words[0] == prompt.answer:
            return Verdict("right")
        return Verdict("wrong", f"expected {prompt.answer!r} first")


if __name__ == "__main__":
    settings = {
        "model": {"policy": str(builtin_model("maze"))},  # any causal language model: a folder or a hub id
        "algorithm": {"alpha": 4.0},  # lambda = 1 - 1/(alpha * length): short responses need a large alpha
        "trainer": {"steps": 20, "pretraining_steps": 2, "actor_lr": 1e-3},
        "evaluation": {"prompts": 4, "samples_per_prompt": 16},
    }
    run = vapo.train(settings, "runs/south-first", task=SouthFirst())
    print(f"Trained policy and report in {run}")
