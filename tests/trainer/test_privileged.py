"""A critic that reads a column of the data between prompt and response, and a policy that does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from vapo.durability.watch import Watch
from vapo.errors import ConfigError, DataError, ModelError
from vapo.models.critic_notes import PRIVILEGED
from vapo.models.loading import load_critic
from vapo.models.tokens import with_privileged
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer.batch import Batch, concatenate
from vapo.types import Prompt

ANSWER = {"algorithm": {"credit": {"privileged": "answer"}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("privileged")
    run = toys.toy_run(toys.toy_base(folder / "base"), folder / "run", ANSWER)
    runs.finish(run, report=False)
    run.watch = Watch()  # the run's own has ended
    return run


def first_batch(run) -> Batch:
    from vapo.trainer.batch import collate
    from vapo.trainer.pricing import price
    from vapo.trainer.state import State

    episodes = run.source.next(State()).drawn
    return collate(episodes, price(episodes, run.algorithm, max_response_tokens=8))


def test_the_critic_reads_the_column_and_the_policy_does_not(run):
    batch = first_batch(run)
    prompts = {i: run.train_prompts[i] for i in range(8)}
    extra = len(prompts[0].privileged_ids)
    assert extra > 0
    for short, long, length in zip(batch.tokens, batch.critic_tokens, batch.response_lengths.tolist(), strict=True):
        assert len(long) == len(short) + extra
        assert torch.equal(long[len(long) - length :], short[len(short) - length :])
    values = run.critic.score(batch, ("values",), micro_batch_tokens=999)["values"]
    other = tuple(torch.cat([t[:2], (t[2:3] + 1) % 16, t[3:]]) for t in batch.critic_tokens)
    changed = replace(batch, critic_tokens=other)
    assert not torch.equal(run.critic.score(changed, ("values",), micro_batch_tokens=999)["values"], values)
    same = run.policy.score(batch, ("logp",), micro_batch_tokens=999)["logp"]
    assert torch.equal(run.policy.score(changed, ("logp",), micro_batch_tokens=999)["logp"], same)


def test_a_batch_is_cut_joined_and_saved_with_it(run):
    batch = first_batch(run)
    again = Batch.from_tensors(concatenate([batch.select(torch.tensor([1, 0])), batch]).tensors())
    assert torch.equal(again.critic_tokens[0], batch.critic_tokens[1])
    assert len(again.critic_tokens) == len(batch) + 2


def test_the_saved_critic_names_the_column_and_does_not_serve_a_method_without_it(run, tmp_path: Path):
    folder = run.folder.path / "critic"
    assert getattr(load_critic(folder)[0].config, PRIVILEGED) == "answer"
    with pytest.raises(ModelError, match=r"trained with the privileged column 'answer'.*privileged=answer"):
        toys.toy_run(folder.parent / "policy", tmp_path / "other", {"model": {"critic": str(folder)}})


def test_a_run_resumes_with_it(run):
    again = runs.resume(run.folder.path, SilentView(), task=toys.EchoTask())
    assert again.algorithm.credit.privileged == "answer"
    again.folder.close()


def test_a_prompt_without_the_column_is_named_with_what_it_has():
    prompt = Prompt("p-7", "1 x", None, columns={"solution": "x"})
    with pytest.raises(
        DataError, match=r"Prompt p-7 has no 'rubric', the column of .* it has: solution\. Add the column"
    ):
        with_privileged(toys.tokenizer(), prompt, "rubric")


def test_a_side_critic_cannot_read_the_column(run, tmp_path: Path):
    with pytest.raises(ConfigError, match="needs a critic that reads tokens"):
        toys.toy_run(run.folder.path / "policy", tmp_path / "side", ANSWER, {"model": {"critic_kind": "side"}})


def test_a_column_is_listed_once_where_it_stands_in_the_data_and_as_the_answer():
    prompt = Prompt("p-7", "1 x", "42", columns={"answer": "42", "solution": "x"})
    with pytest.raises(DataError, match=r"it has: answer, solution\. Add"):
        with_privileged(toys.tokenizer(), prompt, "rubric")
