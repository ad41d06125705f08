"""VAPO (arXiv:2504.05118) in one file with vapo.algo, transformers and torch.

A tiny Llama without any training is shown a digit. It must write digits and stop after writing that one: a reward of 1
for a response whose last digit is the prompt's, else 0. Run it (a minute or so on one core):

    python examples/vapo_in_one_file.py
"""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from vapo.algo import (
    clipped_surrogate,
    explained_variance,
    gae,
    length_adaptive_lambda,
    masked,
    positive_weights,
    terminal_rewards,
    token_weights,
    value_loss,
    weighted_sum,
)

DIGITS, STOP, PAD = 8, 8, 9  # the vocabulary: the digits 0 to 7, and two more tokens
PROMPTS, PER_PROMPT, MAX_LENGTH = 8, 16, 16  # group sampling: 16 responses to each of 8 prompts (paper: 512 x 16)
MINIBATCH = 32  # responses of a gradient step: 4 gradient steps a rollout
CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # clip-higher, section 5.1
POSITIVE_LM = 0.1  # μ of eq. 10
ALPHA = 1.0  # of eq. 5; the paper's 0.05 is for responses of thousands of tokens
ACTOR_LR, CRITIC_LR = 1e-3, 2e-3  # for a model of 0.1 million parameters; the paper: 1e-6, 2e-6


def networks(seed):
    """A policy and a critic of its size; the value head starts at 0, so V = 0 before training."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=10, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        pad_token_id=PAD, bos_token_id=None, eos_token_id=STOP, classifier_dropout=0.0,
    )  # fmt: skip
    policy, critic = LlamaForCausalLM(config), LlamaForTokenClassification(config)
    critic.model.load_state_dict(copy.deepcopy(policy.model.state_dict()))
    torch.nn.init.zeros_(critic.score.weight)
    torch.nn.init.zeros_(critic.score.bias)
    return policy, critic


@torch.no_grad()
def rollout(policy):
    """(tokens, mask, right): prompt and response (B, 1 + T), response tokens (B, T), the verifier's verdict (B,)."""
    prompts = torch.randint(DIGITS, (PROMPTS,)).repeat_interleave(PER_PROMPT)
    tokens, cache, done = prompts[:, None], None, torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(MAX_LENGTH):
        out = policy(tokens if cache is None else tokens[:, -1:], past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1]
        logits[:, PAD] = -torch.inf
        token = torch.where(done, PAD, torch.multinomial(logits.softmax(-1), 1)[:, 0])
        tokens, done = torch.cat([tokens, token[:, None]], 1), done | (token == STOP)
    mask = tokens[:, 1:] != PAD
    lengths = mask.sum(-1)
    last = tokens[:, 1:].gather(1, (lengths - 2).clamp(min=0)[:, None])[:, 0]  # the token before the stop
    return tokens, mask, done & (lengths > 1) & (last == prompts)


def logp_of(policy, tokens):
    """(B, T) log π of each response token."""
    logits = policy(tokens).logits[:, :-1].clone()
    logits[..., PAD] = -torch.inf  # the sampler never draws it
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None].clamp(max=STOP))[..., 0]


def values_of(critic, tokens):
    """(B, T) V of the state before each response token: the output at the token to its left."""
    return critic(tokens).logits[:, :-1, 0]


def critic_step(critic, optimizer, tokens, mask, returns):
    """One gradient step on ½(V - return)²."""
    values = masked(values_of(critic, tokens), mask)
    loss = weighted_sum(value_loss(values, masked(returns, mask)), token_weights(mask))
    step(critic, optimizer, loss)


def policy_step(policy, optimizer, tokens, mask, right, old_logp, advantages):
    """One gradient step on eq. 10: the token-level clipped surrogate with clip-higher, plus μ times the LM loss."""
    logp = masked(logp_of(policy, tokens), mask)
    surrogate = clipped_surrogate(logp, old_logp, advantages, low=CLIP_LOW, high=CLIP_HIGH)
    loss = weighted_sum(surrogate, token_weights(mask))  # equal weights for all tokens, eq. 7
    loss = loss + POSITIVE_LM * weighted_sum(-logp, positive_weights(mask, right))  # eq. 9
    step(policy, optimizer, loss)


def step(model, optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main(steps=120, pretraining_steps=10, seed=0):
    """Train, and return the share of right responses in each step."""
    torch.set_num_threads(1)
    policy, critic = networks(seed)
    actor = torch.optim.AdamW(policy.parameters(), lr=ACTOR_LR, weight_decay=0.0)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=CRITIC_LR, weight_decay=0.0)

    # Value pretraining, section 4.1: fit the critic to the outcomes of the fixed initial policy, with λ = 1.
    for _ in range(pretraining_steps):
        tokens, mask, right = rollout(policy)
        returns = masked(right.float()[:, None].expand(mask.shape), mask)
        for rows in torch.randperm(len(tokens)).split(MINIBATCH):
            critic_step(critic, critic_optimizer, tokens[rows], mask[rows], returns[rows])

    accuracy = []
    for number in range(1, steps + 1):
        # 1. Sample groups of responses from the current policy; the verifier judges them.
        tokens, mask, right = rollout(policy)

        # 2. Score every token once, before any update, and compute advantages and returns.
        with torch.no_grad():
            old_logp = masked(logp_of(policy, tokens), mask)
            values = masked(values_of(critic, tokens), mask)
        rewards = terminal_rewards(right.float(), mask)
        lam = length_adaptive_lambda(mask.sum(-1), alpha=ALPHA)  # one λ per response, eq. 5
        advantages = gae(rewards, values, mask, lam=lam)
        returns = gae(rewards, values, mask, lam=1.0) + values  # decoupled GAE: the critic learns the outcome

        # 3. One optimizer step per minibatch, for critic and policy.
        for rows in torch.randperm(len(tokens)).split(MINIBATCH):
            batch = tokens[rows], mask[rows]
            critic_step(critic, critic_optimizer, *batch, returns[rows])
            policy_step(policy, actor, *batch, right[rows], old_logp[rows], advantages[rows])

        accuracy.append(float(right.float().mean()))
        foreseen = explained_variance(values, masked(right.float()[:, None].expand(mask.shape), mask), mask)
        if number % 5 == 0 or number == 1:
            length = float(mask.sum(-1).float().mean())
            print(f"step {number:3}  right {accuracy[-1]:.2f}  tokens {length:4.1f}  critic explains {foreseen:+.2f}")
    return accuracy


if __name__ == "__main__":
    main()
