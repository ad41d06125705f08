"""The interface of the `verifiers` library 0.1 that we use, and an environment; for tests without the package."""

from __future__ import annotations

import copy


class MultiTurnEnv:
    def __init__(self, dataset, rubric, max_turns: int = -1) -> None:
        self.dataset, self.rubric, self.max_turns, self.tool_defs = dataset, rubric, max_turns, None

    def get_dataset(self):
        return self.dataset

    def get_eval_dataset(self):
        return self.dataset

    async def init_state(self, input, client, model, sampling_args=None):
        return {**copy.deepcopy(input), "trajectory": [], "trajectory_id": "t", "final_env_response": None}

    async def setup_state(self, state) -> None: ...

    async def is_completed(self, state) -> bool:
        at_limit = 0 < self.max_turns <= len(state["trajectory"])
        return at_limit or state["final_env_response"] is not None

    async def get_prompt_messages(self, state):
        if not state["trajectory"]:
            return state["prompt"]
        last = state["trajectory"][-1]
        messages = last["prompt"] + last["completion"]
        return messages + await self.env_response(messages, state)

    async def render_completion(self, state) -> None:
        last = state["trajectory"][-1]
        state["completion"] = (last["prompt"] + last["completion"])[len(state["prompt"]) :]

    async def cleanup(self, state) -> None: ...


class Rubric:
    def __init__(self, score) -> None:
        self.score = score

    async def score_rollout(self, state) -> None:
        state["reward"] = self.score(state)


class Higher(MultiTurnEnv):
    """Says higher or lower until the number is named."""

    async def env_response(self, messages, state):
        said, answer = int(messages[-1]["content"]), int(state["answer"])
        if said == answer:
            state["final_env_response"] = [{"role": "user", "content": "yes"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if said < answer else "lower"}]


def load_environment(name: str, numbers: int = 4):
    if name != "higher":
        raise ImportError(f"no environment {name}")
    rows = [{"prompt": [{"role": "user", "content": f"Guess {i}."}], "answer": str(i)} for i in range(numbers)]
    turns = lambda state: 1.0 / len(state["trajectory"]) if state["final_env_response"] else 0.0  # noqa: E731
    return Higher(rows, Rubric(turns), max_turns=3)
