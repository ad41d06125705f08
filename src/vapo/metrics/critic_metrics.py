"""The rows of the metrics table under the heading 'Critic'."""

from __future__ import annotations

from vapo.metrics.metric import BOTH, CRITIC, GROUPED_CRITIC, RESIDUAL, SHARE, Metric

RAISE_LAMBDA = (
    "where λ is by share, raise `algorithm.k`; where it is length-adaptive, raise `algorithm.alpha` (the paper's 0.05 "
    "is for thousands of tokens; 1.5 lets the share k = 0.51 of the outcome reach the first token at every length)"
)
CRITIC_ROWS = (
    Metric(
        "value/loss", "½(V - target)², mean over the step's gradient steps", "", "falls, then flat",
        title="Value loss", short="value loss", phases=BOTH, where=CRITIC,
    ),
    Metric(
        "value/explained_variance", "1 - Var(R - V)/Var(R)", "", "above 0, rising",
        "below 0 a constant predicts outcomes better, so advantages are noise: pretrain longer "
        "(`trainer.pretraining_steps`) or lower `trainer.critic_lr`",
        title="Explained variance", short="explained var", where=CRITIC,
    ),
    Metric(
        "value/residual_explained_variance", "explained variance of what the mean outcome of the group's other "
        "responses leaves, by the critic alone", "", "above 0, rising",
        "below 0 the critic adds noise to the group's mean: lower `trainer.critic_lr`",
        title="Explained variance beyond the group", where=RESIDUAL,
    ),
    Metric("value/mean", "mean V", "reward", where=CRITIC),
    Metric(
        "value/std", "standard deviation of the critic's answers over the tokens", "reward",
        "above `guards.value_std_below`",
        "the critic says the same of every token: raise `trainer.critic_lr`, pretrain it, or see in "
        "`value/head_step` whether its head learns", where=CRITIC,
    ),
    Metric(
        "value/head_step", "how far a gradient step moved the weights of the value head (norm), mean over the step's "
        "gradient steps", "", "above 0",
        "the head gets no gradient while the rest of the critic does: start the critic from a base model, or look at "
        "how its head is loaded", phases=BOTH, where=CRITIC,
    ),
    Metric(
        "value/within_group_auc", "how often the critic's mean answer ranks a right response above a wrong one to the "
        "same prompt", "", "above 0.5, rising", "near 0.5 the critic adds nothing to the group's mean",
        title="AUC within groups", where=GROUPED_CRITIC,
    ),
    Metric(
        "advantages/variance_ratio", "Var(R - V) / Var(R - b), b the mean outcome of the group's other responses: the "
        "variance of the advantages with the critic against with the group alone", "",
        "below 1; above `guards.variance_ratio_above` an alarm",
        "the critic makes advantages noisier than the group's mean would: set `algorithm.credit.baseline: group`, so "
        "that it learns what the mean leaves, or pretrain it longer", title="Advantage variance with the critic",
        where=GROUPED_CRITIC,
    ),
    Metric(
        "credit/critic_share", "the critic's share of the baseline: ρ of a fitted one, 0 or 1 of a gated one", SHARE,
        "above 0", "at 0 the critic costs time and adds nothing: pretrain it, or take a method without one",
        where="`algorithm.credit.baseline: fitted` or `gated`",
    ),
    Metric(
        "value/bias", "mean V - R; a constant offset is invisible to explained variance", "reward", "near 0",
        where=CRITIC,
    ),
    Metric(
        "value/explained_variance_by_position/*", "explained variance by tenths of the response", "",
        "rises with position", "low at the end: the critic cannot read the outcome from the text", where=CRITIC,
    ),
    Metric(
        "value/bias_by_position/*", "mean V - R by tenths of the response", "reward", "near 0",
        "negative early: bias of a reward model, which value pretraining removes",
        title="Value bias by position in the response", where=CRITIC,
    ),
    Metric(
        "grad_norm/critic", "gradient norm before clipping, mean over the step's gradient steps", "", "steady",
        "a spike comes from one bad batch or from too high a learning rate: lower `trainer.critic_lr`",
        phases=BOTH, where=CRITIC,
    ),
    Metric("lr/critic", "the critic's learning rate in this step", phases=BOTH, where=CRITIC),
    Metric(
        "skipped/critic", "gradient steps thrown away because loss or gradient was not finite", "gradient steps", "0",
        "three steps in a row stop the run (code 3)", where=CRITIC,
    ),
    Metric(
        "gae/lambda_mean", "mean λ of the policy's advantages over the step's responses", "", "above 0.95",
        RAISE_LAMBDA,
        title="Effective λ", where=CRITIC,
    ),
    Metric(
        "gae/lambda_median", "its median", "", "above 0.95",
        RAISE_LAMBDA, where=CRITIC,
    ),
    Metric("gae/lambda_min", "its minimum", where=CRITIC),
    Metric("advantages/mean", "mean advantage of the tokens learned from; every method writes it"),
    Metric("advantages/std", "their standard deviation"),
)  # fmt: skip
