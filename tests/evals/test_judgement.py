"""A critic is judged by its values of prefixes: what is drawn, what is read, and what the numbers say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import toys
from vapo.algo import between_share
from vapo.errors import ConfigError
from vapo.evals import continuations
from vapo.evals.continuations import ContinuedPrompt, Prefix, Response, Sampler, continue_prompts, prefix_length
from vapo.evals.judgement import Figure, Finding, conclude, judge, read_answers
from vapo.evals.kept_lines import KeptLines
from vapo.models.loading import load_critic
from vapo.models.networks import Critic, Sequences
from vapo.models.tokens import render
from vapo.rollout.torch_engine import TorchEngine
from vapo.tasks.full_task import FullTask
from vapo.types import Decoding, Prompt, Verdict

HOW = Decoding(max_tokens=8, stop_token_ids=(1,))
FRACTIONS = (0.0, 0.5, 0.9)


class Recording:
    """An engine that keeps what it was asked for, and is interrupted after so many calls."""

    def __init__(self, calls: int = 1000) -> None:
        self.engine, self.left = TorchEngine(toys.tiny_llama(), slots=16), calls
        self.asked: list[tuple[list[Prompt], Decoding, list[int]]] = []

    def generate(self, prompts, how, seeds, on_progress=None):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.asked.append((list(prompts), how, list(seeds)))
        return self.engine.generate(prompts, how, seeds, on_progress)


def sampler(engine: Recording, task: object | None = None) -> Sampler:
    words = toys.tokenizer()
    return Sampler(engine, FullTask.of(task or toys.EchoTask()), HOW, lambda ids: words.decode(list(ids)), 3)  # type: ignore[arg-type]


def heldout(count: int = 8) -> list[Prompt]:
    return [render(toys.tokenizer(), prompt) for prompt in toys.EchoTask().heldout[:count]]


def drawn(engine: Recording, prompts: list[Prompt], kept: KeptLines | None = None) -> list[ContinuedPrompt]:
    return continue_prompts(sampler(engine), prompts, responses=3, fractions=FRACTIONS, continuations=2, kept=kept)


@pytest.mark.parametrize(
    ("length", "fraction", "expected"), [(10, 0.0, 0), (10, 0.3, 3), (10, 0.95, 9), (1, 0.95, 0), (7, 0.5, 3)]
)
def test_a_response_is_cut_behind_a_fraction_of_its_tokens_and_one_is_left(length, fraction, expected):
    assert prefix_length(length, fraction) == expected


def test_prefixes_are_those_of_the_responses_and_equal_ones_are_drawn_once():
    for done in drawn(Recording(), heldout()):
        starts = [done.responses[p.sample].token_ids[: p.length] for p in done.prefixes]
        assert len(set(starts)) == len(starts)
        assert starts[0] == ()
        for response in done.responses:
            for fraction, place in zip(FRACTIONS, response.prefixes, strict=True):
                assert starts[place] == response.token_ids[: prefix_length(len(response.token_ids), fraction)]
        assert all(p.valid == 2 and 0 <= p.right <= 2 for p in done.prefixes)


def test_continuations_have_the_limit_that_is_left_and_seeds_of_their_own():
    engine = Recording()
    drawn(engine, heldout())
    seeds = [seed for _, _, seeds in engine.asked for seed in seeds]
    assert len(set(seeds)) == len(seeds)
    prompt_length = len(heldout(1)[0].token_ids)
    for prompts, how, _ in engine.asked[1:]:
        # LIMIT_STEP 8 of a limit of 8: at most one token apart
        lefts = {HOW.max_tokens - (len(p.token_ids) - prompt_length) for p in prompts}
        assert how.max_tokens == max(lefts)
        assert max(lefts) - min(lefts) <= 1


def test_the_verdict_is_that_of_prefix_and_continuation_together_within_the_limit():
    seen: list[str] = []

    class Listening(toys.EchoTask):
        def verify(self, prompt: Prompt, response: str) -> Verdict:
            seen.append(response)
            return super().verify(prompt, response)

    engine = Recording()
    (done,) = continue_prompts(
        sampler(engine, Listening()), heldout(1), responses=2, fractions=(0.0, 0.9), continuations=3
    )
    words = toys.tokenizer()
    texts = [words.decode([t for t in done.responses[p.sample].token_ids[: p.length] if t != 1]) for p in done.prefixes]
    judged = seen[2:]  # behind the two responses
    for number, (prefix, start) in enumerate(zip(done.prefixes, texts, strict=True)):
        own = judged[3 * number : 3 * number + 3]
        assert all(text.startswith(start) and len(text.split()) <= HOW.max_tokens for text in own)
        right = [Listening().verify(done.prompt, text).right for text in own]
        assert prefix.right == sum(right)


def test_calls_are_grouped_for_speed_only(monkeypatch):
    together = drawn(Recording(), heldout())
    monkeypatch.setattr(continuations, "LIMIT_STEP", 1000)  # each limit in a call of its own
    monkeypatch.setattr(continuations, "BLOCK", 1)
    assert drawn(Recording(), heldout()) == together


def test_a_context_that_is_just_long_enough_is_never_exceeded(monkeypatch):
    monkeypatch.setattr(continuations, "LIMIT_STEP", 1)  # all in one call, unless the context forbids it
    longest = max(len(p.token_ids) for p in heldout()) + HOW.max_tokens
    engine = Recording()
    continue_prompts(
        replace(sampler(engine), context=longest), heldout(), responses=3, fractions=FRACTIONS, continuations=2
    )
    assert all(len(p.token_ids) + how.max_tokens <= longest for prompts, how, _ in engine.asked for p in prompts)


def test_what_was_stopped_goes_on_and_equals_what_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(continuations, "BLOCK", 2 * 3 * 3 * 2)  # two prompts
    whole = drawn(Recording(), heldout())
    about = {"model": "toy"}

    def kept() -> KeptLines:
        return KeptLines(tmp_path / "judged.jsonl", about, entry="continued", what="judgement")

    with pytest.raises(KeyboardInterrupt):
        drawn(Recording(calls=12), heldout(), kept())
    before = len((tmp_path / "judged.jsonl").read_text().splitlines()) - 1
    assert 0 < before < 8
    rest = Recording()
    assert drawn(rest, heldout(), kept()) == whole
    assert {p.id for prompts, _, _ in rest.asked for p in prompts} == {p.id for p in heldout()[before:]}
    untouched = Recording()
    assert drawn(untouched, heldout(), kept()) == whole
    assert not untouched.asked
    with pytest.raises(ConfigError, match=r"another judgement: model was 'toy', is 'other'. Choose another --out"):
        KeptLines(tmp_path / "judged.jsonl", {"model": "other"}, entry="continued", what="judgement")


def test_the_critic_answers_for_the_state_behind_the_prefixs_last_token(tmp_path):
    network, _ = load_critic(toys.toy_base(tmp_path))
    with torch.no_grad():
        network.score.weight.normal_()  # type: ignore[union-attr]
    critic = Critic(network, "padded")
    continued = drawn(Recording(), heldout(3))
    answers = read_answers(critic, continued, tokens_at_once=30)
    for p, done in enumerate(continued):
        for g, response in enumerate(done.responses):
            for f, place in enumerate(response.prefixes):
                prefix = response.token_ids[: done.prefixes[place].length]
                tokens = torch.tensor([*done.prompt.token_ids, *prefix])
                own = critic.final_values(Sequences((tokens,), (max(1, len(prefix)),))).detach()
                assert answers[p, g, f] == pytest.approx(float(own), abs=1e-4)


def made(rng: np.random.Generator, prompts: int, responses: int, k: int) -> tuple[list[ContinuedPrompt], np.ndarray]:
    """A process in the shape of prompts: chances of .2 or .6, moved by .2 up or down in the middle. And its values."""
    found, values = [], np.zeros((prompts, responses, 2))
    for p in range(prompts):
        start = rng.choice([0.2, 0.6])
        half = start + rng.choice([-0.2, 0.2], size=responses)
        prefixes = [Prefix(0, 0, int(rng.binomial(k, start)), k)]
        prefixes += [Prefix(g, 5, int(rng.binomial(k, max(0.0, half[g]))), k) for g in range(responses)]
        told = tuple(Response((2,) * 10, bool(rng.random() < half[g]), False, (0, 1 + g)) for g in range(responses))
        found.append(ContinuedPrompt(Prompt(f"p{p}", "x"), told, tuple(prefixes)))
        values[p, :, 0], values[p, :, 1] = start, half
    return found, values


def test_an_exact_critic_is_at_the_ceiling_of_the_process_and_calibrated():
    continued, values = made(np.random.default_rng(0), prompts=600, responses=4, k=4)
    found = judge(continued, values, fractions=(0, 0.5), continuations=4)
    # Var(R) = .24; Var(V) = .04 at the prompt, .08 in the middle
    tops = [figure.value for figure in found.by_position["ceiling"]]
    assert tops == pytest.approx([0.04 / 0.24, 0.08 / 0.24], abs=0.04)
    assert found.figures["ceiling"].value == pytest.approx(sum(tops) / 2)
    assert found.figures["ceiling"].low < 0.25 < found.figures["ceiling"].high
    explained = [figure.value for figure in found.by_position["explained_variance"]]
    assert explained == pytest.approx(tops, abs=0.02)
    assert found.figures["bias"].value == pytest.approx(0, abs=0.02)
    assert found.figures["rmse"].value < 0.06
    assert found.figures["calibration_error"].value < 0.04
    assert sum(b.states for b in found.bins) == 600 * 4 * 2
    assert found.by_position["within_group_auc"][0].value == 0.5  # all responses to a prompt have one value there
    assert found.by_position["within_group_auc"][1].value > 0.65
    best, own = found.figures["best_variance_ratio"].value, found.figures["variance_ratio"].value
    assert own == pytest.approx(best, abs=0.03)
    assert own < 1
    assert (found.finding, found.has_critic) == (Finding.NEAR, True)


def test_a_constant_critic_explains_nothing_and_a_shifted_one_has_a_bias():
    continued, values = made(np.random.default_rng(1), prompts=200, responses=4, k=4)
    constant = judge(continued, np.full_like(values, 0.4), fractions=(0, 0.5), continuations=4)
    assert constant.figures["explained_variance"].value == pytest.approx(0, abs=1e-12)
    assert constant.finding is Finding.NOTHING
    shifted = judge(continued, values + 0.3, fractions=(0, 0.5), continuations=4)
    assert shifted.figures["bias"].value == pytest.approx(0.3, abs=0.03)
    assert shifted.figures["rmse"].value == pytest.approx(0.3, abs=0.05)
    assert shifted.finding is Finding.NEAR  # a constant offset changes no variance


def test_a_residual_critic_is_judged_with_the_mean_of_the_other_responses():
    continued, _ = made(np.random.default_rng(2), prompts=40, responses=4, k=4)
    answers = np.random.default_rng(3).normal(size=(40, 4, 2))
    right = np.array([[r.right for r in c.responses] for c in continued], dtype=float)
    others = (right.sum(1, keepdims=True) - right) / 3
    residual = judge(continued, answers, fractions=(0, 0.5), continuations=4, residual=True)
    whole = judge(continued, answers + others[..., None], fractions=(0, 0.5), continuations=4)
    for name in ("explained_variance", "bias", "rmse", "spearman", "variance_ratio"):
        assert residual.figures[name] == whole.figures[name], name
    # ranking within a group is by the critic's own answer: the mean of the others is lower for a right response
    assert residual.figures["within_group_auc"].value != whole.figures["within_group_auc"].value
    nothing = judge(continued, np.zeros_like(answers), fractions=(0, 0.5), continuations=4, residual=True)
    assert nothing.figures["variance_ratio"].value == pytest.approx(1)


def test_values_are_in_the_methods_units_of_reward():
    continued, values = made(np.random.default_rng(4), prompts=50, responses=4, k=4)
    plain = judge(continued, values, fractions=(0, 0.5), continuations=4)
    doubled = judge(continued, 2 * values - 1, fractions=(0, 0.5), continuations=4, reward_wrong=-1.0)
    for name, factor in {"bias": 2, "rmse": 2, "ceiling": 1, "explained_variance": 1, "variance_ratio": 1}.items():
        assert doubled.figures[name].value == pytest.approx(factor * plain.figures[name].value), name


def test_without_a_critic_there_is_the_ceiling_and_the_share_between_prompts():
    continued, _ = made(np.random.default_rng(5), prompts=300, responses=4, k=4)
    found = judge(continued, None, fractions=(0, 0.5), continuations=4)
    assert set(found.figures) == {"ceiling", "between_share", "group_explained_variance", "best_variance_ratio"}
    right = torch.tensor([float(r.right or 0) for c in continued for r in c.responses])
    own = float(between_share(right, torch.arange(300).repeat_interleave(4)))
    assert found.figures["between_share"].value == pytest.approx(own)
    assert found.finding is Finding.WORTH_IT


def test_a_response_without_valid_others_is_compared_with_nothing():
    continued, _ = made(np.random.default_rng(8), prompts=30, responses=4, k=4)
    alone = [replace(c, responses=(c.responses[0], *(replace(r, right=None) for r in c.responses[1:])))
             for c in continued[:5]]  # fmt: skip
    some = judge([*alone, *continued[5:]], None, fractions=(0, 0.5), continuations=4)
    none = judge(continued[5:], None, fractions=(0, 0.5), continuations=4)
    of_group = "group_explained_variance"
    # the variance of R counts them, that of R - b does not
    ratio = (1 - some.figures[of_group].value) / (1 - none.figures[of_group].value)
    assert ratio == pytest.approx(1, abs=0.1)


def test_an_exact_critic_leaves_what_is_called_the_least_also_where_length_tells_the_outcome():
    # a response goes on with chance 1/2 after each token and is right from two tokens on: its middle tells its length
    rng, continued, values = np.random.default_rng(9), [], np.ones((400, 4, 2))
    for p in range(400):
        lengths = rng.geometric(0.5, size=4)
        values[p, :, 0] = 0.5
        values[p, lengths == 1, 1] = 0.5  # cut at the prompt: half of what follows has two tokens
        prefixes = [Prefix(0, 0, int(rng.binomial(64, 0.5)), 64), Prefix(0, 1, 64, 64)]
        told = tuple(Response((2,) * int(n), bool(n > 1), False, (0, int(n > 1))) for n in lengths)
        continued.append(ContinuedPrompt(Prompt(f"p{p}", "x"), told, tuple(prefixes)))
    found = judge(continued, values, fractions=(0, 0.5), continuations=64)
    for best, own in zip(found.by_position["best_variance_ratio"], found.by_position["variance_ratio"], strict=True):
        assert best.value == pytest.approx(own.value, abs=0.03)


def test_invalid_verdicts_are_left_out_and_counted():
    continued, values = made(np.random.default_rng(6), prompts=30, responses=4, k=4)
    first = continued[0]
    responses = (replace(first.responses[0], right=None), *first.responses[1:])
    prefixes = (replace(first.prefixes[0], right=1, valid=1), *first.prefixes[1:])  # one continuation: no value
    found = judge([replace(first, responses=responses, prefixes=prefixes), *continued[1:]], values,
                  fractions=(0, 0.5), continuations=4)  # fmt: skip
    assert found.invalid_ratio == pytest.approx((1 + 3) / (30 * 4 + 30 * 5 * 4))
    assert sum(b.states for b in found.bins) == 30 * 4 * 2 - 4
    assert np.isfinite([figure.value for figure in found.figures.values()]).all()


def figures(ceiling: float, explained: float | None = None, *, prompt: float = 0.1, wide: float = 0.1, ratio=0.9):
    told = {"ceiling": Figure(ceiling, ceiling - wide / 2, ceiling + wide / 2)}
    if explained is not None:
        told |= {"explained_variance": Figure(explained, 0, 1), "variance_ratio": Figure(ratio, 0, 2)}
    return told, prompt


@pytest.mark.parametrize(
    ("numbers", "finding", "words"),
    [
        (figures(float("nan")), Finding.ALL_EQUAL, "All outcomes are equal"),
        (figures(0.5, wide=0.6), Finding.UNSURE, "from 20 % to 80 %. Raise --prompts"),
        (figures(0.5, wide=float("nan")), Finding.UNSURE, "with no 95 % interval"),
        (figures(0.05, 0.02), Finding.LOW, "no critic could explain more than 5.0 %"),
        (figures(0.12), Finding.DIFFICULTY, "a critic adds little"),
        (
            figures(0.5),
            Finding.WORTH_IT,
            "could explain 50 % of the outcomes' variance; the prompt alone explains 10 %.",
        ),
        (figures(0.5, prompt=float("nan")), Finding.WORTH_IT, "could explain 50 % of the outcomes' variance."),
        (figures(0.5, -0.2), Finding.NOTHING, "explains -20 %"),
        (figures(0.5, 0.2), Finding.BELOW, "explains 20 % of the outcomes' variance, where 50 %"),
        (figures(0.5, 0.3), Finding.PART, "a part of the ceiling"),
        (figures(0.5, 0.45), Finding.NEAR, "near the ceiling"),
        (figures(0.5, 0.2, ratio=1.7), Finding.BELOW, "vary 1.70 times as much as with the group's mean"),
    ],
)
def test_numbers_decide_the_conclusion(numbers, finding, words):
    kind, sentence = conclude(*numbers)
    assert kind is finding
    assert words in sentence
    assert "\n" not in sentence


def test_a_residual_critic_is_not_sent_back_to_the_mean_that_it_contains():
    told, prompt = figures(0.5, 0.2, ratio=1.7)
    assert "baseline=group" in conclude(told, prompt)[1]
    sentence = conclude(told, prompt, residual=True)[1]
    assert "1.70 times" in sentence
    assert "baseline=group" not in sentence
