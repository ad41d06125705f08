"""The rows of the metrics table under the heading 'What was sampled'."""

from __future__ import annotations

from vapo.metrics.metric import BOTH, SHARE, SHOW_THE_FORM, Metric

SAMPLED_ROWS = (
    Metric(
        "reward", "mean outcome: the verdict's reward plus length shaping", "", "rises",
        "flat: check whether any answer is right (`accuracy`)", title="Reward", short="reward", phases=BOTH,
    ),
    Metric(
        "reward_std", "its standard deviation over the step's responses", "reward", "well above 0",
        "0: all rewards are equal; use easier or harder prompts", phases=BOTH,
    ),
    Metric(
        "accuracy", "share of valid verdicts that are right, training prompts", SHARE, "rises",
        "compare with held-out `avg` in `evaluations.jsonl`", title="Accuracy", short="accuracy", phases=BOTH,
    ),
    Metric(
        "completions/mean_length", "mean length of the responses, stop token included", "tokens", "changes slowly",
        "falls at once while accuracy falls: the critic misjudges early tokens (VC-PPO §2); pretrain it",
        title="Response length", short="length", phases=BOTH,
    ),
    Metric("completions/min_length", "length of the shortest response", "tokens", phases=BOTH),
    Metric("completions/max_length", "length of the longest response", "tokens", phases=BOTH),
    Metric("completions/mean_length_right", "mean length of the right responses", "tokens", phases=BOTH),
    Metric(
        "completions/clipped_ratio", "share cut off at the length limit (the sampler's own flag)", SHARE, "below 0.1",
        "the verifier judges responses without their ends: raise `rollout.max_response_tokens`, take a preset that "
        "punishes length (dapo), or set `algorithm.truncated=drop-from-policy`",
        title="Cut off at the limit", short="cut off", phases=BOTH,
    ),
    Metric(
        "turns/mean", "mean number of the policy's turns in an episode", "turns",
        phases=BOTH, where="tasks with an environment",
    ),
    Metric(
        "turns/environment_ratio", "share of the tokens after the prompts that the environment wrote: they are not "
        "learned from, and count towards the length limit", SHARE, "", "lower `task.environment_characters`",
        phases=BOTH, where="tasks with an environment",
    ),
    Metric("verdict/judged", "responses with a valid verdict, right or wrong", "responses", phases=BOTH),
    Metric(
        "verdict/reason/wrong_answer", "share of them with a wrong answer. With "
        "`accuracy` and the next three it adds up to 1", SHARE, "falls", phases=BOTH,
    ),
    Metric(
        "verdict/reason/no_answer", "share of them without a marked answer", SHARE, "falls",
        SHOW_THE_FORM, phases=BOTH,
    ),
    Metric(
        "verdict/reason/unreadable", "share of them with an answer that could not be read", SHARE, "falls",
        SHOW_THE_FORM, phases=BOTH,
    ),
    Metric(
        "verdict/reason/unspecified", "share of them that are wrong without a reason given", SHARE, "",
        "check in the rollouts whether the verifier accepts any answer", phases=BOTH,
    ),
    Metric(
        "verdict/reason/cut_off", "share of them that are wrong and were cut off at the length limit, regardless of "
        "other reasons", SHARE, "below 0.1", "raise `rollout.max_response_tokens`", phases=BOTH,
    ),
    Metric(
        "verdict/invalid_ratio", "share of responses the verifier could not judge, or whose environment failed",
        SHARE, "0",
        "read `reason` in the rollouts; above `trainer.max_invalid_ratio` the run stops (code 4)", phases=BOTH,
    ),
    Metric(
        "rewards/*/mean", "mean of one of several reward functions, before its weight", "reward", "rises",
        phases=BOTH, where="`VAPOTrainer` with reward functions, and verifiers that give `Verdict.parts`",
    ),
    Metric(
        "rewards/*/std", "its standard deviation over the responses", "reward", "above 0",
        "a function that gives everything the same teaches nothing: leave it out",
        phases=BOTH, where="`VAPOTrainer` with reward functions, and verifiers that give `Verdict.parts`",
    ),
    Metric(
        "sampling/kept_ratio", "share of the drawn responses that dynamic sampling kept; 1 where it is off", SHARE,
        "above 0.3", "use easier or harder prompts, or raise `algorithm.sampling.refill_rounds`",
    ),
    Metric(
        "groups/mixed_ratio", "share of prompts with both right and wrong responses", SHARE, "above 0.3",
        "group methods learn from mixed groups only: use dynamic sampling or other prompts",
        title="Groups with right and wrong", phases=BOTH,
    ),
    Metric(
        "num_samples", "responses sampled for training so far, value pretraining and dropped groups included; the "
        "x axis for comparing methods by cost", "responses", short="samples", phases=BOTH,
    ),
    Metric(
        "groups/alone_ratio", "share of the learned responses without another learned response to their prompt: the "
        "mean of the step takes the place of the group's", SHARE, "0",
        "the verifier could not judge the others, or they were cut off: see `verdict/invalid_ratio`",
        where="methods with several responses to a prompt",
    ),
    Metric(
        "policy/learned_ratio", "share of the learned responses that the policy learns from, too: those that were not "
        "cut off", SHARE, "above 0.5",
        "the policy learns from few responses: raise `rollout.max_response_tokens`, or set `algorithm.truncated=zero`",
        where="`algorithm.truncated: drop-from-policy`",
    ),
    Metric(
        "outcomes/between_share", "share of the outcomes' variance that lies between prompts: what a baseline explains "
        "that knows the prompt only. Noise alone gives about 1 / group size", SHARE, "",
        "", title="Variance between prompts", where="methods with several responses to a prompt",
    ),
    Metric(
        "rollout/staleness", "updates between the weights that sampled the responses and the policy that learns from "
        "them (`trainer.max_staleness`)", "steps", short="staleness",
    ),
    Metric("num_tokens", "their tokens", "tokens", short="tokens", phases=BOTH),
)  # fmt: skip
