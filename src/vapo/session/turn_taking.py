"""How a task's episodes of several turns are played: its environment, its limits, its tokens."""

from __future__ import annotations

from vapo.algo.method import Algorithm
from vapo.errors import ConfigError
from vapo.models.dialogue import Dialogue
from vapo.rollout.turns import TurnRules
from vapo.tasks.full_task import FullTask, part_of


def turn_rules(task: FullTask, dialogue: Dialogue, context: int | None) -> TurnRules:
    """The rules for a task with an environment. ConfigError for limits and turn ends that cannot be."""
    assert task.environment is not None
    if isinstance(task.max_turns, bool) or not isinstance(task.max_turns, int) or task.max_turns < 1:
        raise ConfigError(
            f"max_turns of the task {task.name} must be a whole number from 1 on, got {task.max_turns!r}."
        )
    return TurnRules(
        task.environment,
        dialogue,
        max_turns=task.max_turns,
        turn_end_ids=tuple(_single_token(dialogue, text, task) for text in task.turn_ends),
        context=context,
        workers=part_of(task.environment, "workers", 1),
        max_characters=part_of(task.environment, "max_characters", TurnRules.max_characters),
    )


def refuse_bootstrap(task: FullTask, algorithm: Algorithm) -> None:
    """Raise ConfigError where the critic's value of a response that was cut off would take the place of a score, or be
    read in the environment's text: a critic learns the tokens of the policy only."""
    if algorithm.truncated == "bootstrap" and algorithm.reward.by == "score":
        raise ConfigError(
            "algorithm.truncated=bootstrap puts the critic's value in the place of a failure, and a response that was "
            "cut off may have earned a score (algorithm.reward.by=score), which would be lost. Set algorithm.truncated "
            "to zero, which counts the score."
        )
    if task.environment is not None and algorithm.truncated == "bootstrap":
        raise ConfigError(
            "algorithm.truncated=bootstrap takes the critic's value where an episode was cut off. Those of "
            f"{task.name} have several turns and may be cut off between two of them, where no critic was trained. Set "
            "algorithm.truncated to zero, drop or drop-from-policy."
        )


def who_judges(turns: TurnRules | None) -> str:
    """Who gives verdicts, for the start of a sentence."""
    return "The verifier" if turns is None else "The environment or the verifier"


def _single_token(dialogue: Dialogue, text: str, task: FullTask) -> int:
    """The token that is exactly this text."""
    tokenizer = dialogue.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"turn_ends of the task {task.name} has {text!r}, which is {len(ids)} tokens of this model. A turn ends "
            "with one token: name another text, or leave it out, and let turns end with the stop token."
        )
    return ids[0]
