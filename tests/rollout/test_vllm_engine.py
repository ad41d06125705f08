"""The engine on vLLM: its contract, and what happens when its process dies, hangs or keeps the old weights.

It runs against a stand-in for vLLM, and against vLLM itself where VAPO_VLLM_PYTHON names an interpreter that has it
(`./dev vllm`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB, full_logits, make_prompts, teacher_forced, tiny_model

from vapo.errors import ConfigError, DataError, DivergedError, EngineError, ModelError
from vapo.rollout import vllm_worker, weight_exchange
from vapo.rollout.engine_settings import DEFAULT_ENGINE, VllmEngineSettings
from vapo.rollout.vllm_engine import VllmEngine, check_room
from vapo.rollout.vllm_environment import check_environment
from vapo.rollout.weight_exchange import PREFIX, SHARED_MEMORY
from vapo.types import Decoding, Prompt
from vllm_python import REAL, fake_python

PROMPTS = make_prompts([2, 5, 17, 40], per_prompt=2)
SEEDS = list(range(len(PROMPTS)))
QUICK = VllmEngineSettings(slots=5, cache_gb=0.25, start_limit_s=300, answer_limit_s=120)
HEADS = {"head_dim": 32}  # vLLM's attention on CPUs has kernels for 32 and more

real = pytest.mark.skipif(REAL is None, reason="VAPO_VLLM_PYTHON names no interpreter that has vLLM")


def model_of(seed: int = 0, *, tied: bool = True, **changes):
    return tiny_model("llama-mqa", seed, tie_word_embeddings=tied, **HEADS, **changes)


def left_behind() -> set[Path]:
    return set(SHARED_MEMORY.glob(f"{PREFIX}{os.getpid()}-*"))


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=real)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("vllm")
    python = fake_python(folder) if request.param == "fake" else REAL
    made = VllmEngine(replace(QUICK, python=python), model_of(seed=9), log=folder / "vllm.log")
    yield made
    made.close()


@pytest.fixture
def model(engine: VllmEngine):
    made = model_of()
    engine.load_weights(made.state_dict().items(), version=3)
    return made


def gap(model, prompt: Prompt, completion, temperature: float = 1.0) -> float:
    expected = teacher_forced(model, prompt, completion, temperature)
    return (expected - torch.tensor(completion.logprobs)).abs().max().item()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_teacher_forced_pass(engine: VllmEngine, model, temperature: float):
    completions = engine.generate(PROMPTS, Decoding(20, (7,), temperature), SEEDS)
    assert max(gap(model, p, c, temperature) for p, c in zip(PROMPTS, completions, strict=True)) < 1e-4
    assert {c.policy_version for c in completions} == {3}


def test_greedy_takes_the_most_probable_token(engine: VllmEngine, model):
    prompts = PROMPTS[::2]
    for prompt, c in zip(prompts, engine.generate(prompts, Decoding(12, (), 0.0), SEEDS[::2]), strict=True):
        assert list(c.token_ids) == full_logits(model, prompt, c.token_ids).argmax(-1).tolist()
        assert gap(model, prompt, c) < 1e-4


def test_top_p_draws_from_the_nucleus_and_renormalises(engine: VllmEngine, model):
    top_p = 0.8
    for prompt, c in zip(PROMPTS, engine.generate(PROMPTS, Decoding(20, (), 1.0, top_p), SEEDS), strict=True):
        probs = full_logits(model, prompt, c.token_ids).softmax(-1).double()
        for row, token, logprob in zip(probs, c.token_ids, c.logprobs, strict=True):
            assert row[row > row[token]].sum() < top_p + 1e-5
            nucleus = [t for t in range(VOCAB) if row[row > row[t]].sum() < top_p - 1e-9]
            assert logprob == pytest.approx(float(row[token].log() - row[nucleus].sum().log()), abs=1e-4)


def test_samples_follow_the_softmax(engine: VllmEngine):
    flat, prompt, count = model_of(initializer_range=0.15), make_prompts([6])[0], 2000
    engine.load_weights(flat.state_dict().items(), version=4)
    completions = engine.generate([prompt] * count, Decoding(1, ()), range(count))
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCAB).double()
    expected = full_logits(flat, prompt, (0,))[0].softmax(-1).double() * count
    often = expected >= 5
    chi2 = float(((seen - expected)[often] ** 2 / expected[often]).sum())
    degrees = int(often.sum()) - 1
    assert degrees > 15
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5  # four standard deviations of chi-square


def test_a_response_ends_at_one_of_its_stop_tokens_or_at_the_limit(engine: VllmEngine, model):
    stops = (7, 8, 9, 10)
    completions = engine.generate(PROMPTS * 6, Decoding(20, stops), range(6 * len(PROMPTS)))
    for c in completions:
        assert all(token not in stops for token in c.token_ids[:-1])
        assert (c.token_ids[-1] in stops) == (c.finish_reason == "stop")
        assert len(c.token_ids) == len(c.logprobs)
        assert c.finish_reason == "stop" or len(c.token_ids) == 20
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_the_models_own_end_token_is_no_stop_unless_it_is_asked_for(engine: VllmEngine, model):
    completions = engine.generate(PROMPTS * 4, Decoding(60, ()), range(4 * len(PROMPTS)))
    assert {len(c.token_ids) for c in completions} == {60}
    assert any(model.config.eos_token_id in c.token_ids for c in completions)


def test_new_weights_are_sampled_from_and_stamped(engine: VllmEngine, model):
    other, how = model_of(seed=1), Decoding(12, ())
    engine.load_weights(other.state_dict().items(), version=17)
    completions = engine.generate(PROMPTS, how, SEEDS)
    assert {c.policy_version for c in completions} == {engine.version} == {17}
    assert max(gap(other, p, c) for p, c in zip(PROMPTS, completions, strict=True)) < 1e-4
    assert max(gap(model, p, c) for p, c in zip(PROMPTS, completions, strict=True)) > 1


def test_one_name_of_tied_weights_is_enough_and_others_are_refused(engine: VllmEngine, model):
    state = dict(model.state_dict())
    state.pop("lm_head.weight")
    engine.load_weights(state.items(), version=5)
    with pytest.raises(ModelError, match=r"missing, unknown or of the wrong shape: model\.norm\.weight"):
        engine.load_weights([item for item in state.items() if item[0] != "model.norm.weight"], version=6)
    with pytest.raises(ModelError, match="strange"):
        engine.load_weights([*state.items(), ("strange", torch.zeros(1))], version=6)
    assert engine.version == 5
    assert gap(model, PROMPTS[0], engine.generate(PROMPTS[:1], Decoding(5, ()), [0])[0]) < 1e-4


def test_progress_ends_with_everything_done(engine: VllmEngine, model):
    progress = []
    completions = engine.generate(PROMPTS, Decoding(5, ()), SEEDS, lambda done, n: progress.append((done, n)))
    assert progress == sorted(progress)
    assert progress[-1] == (len(PROMPTS), sum(len(c.token_ids) for c in completions))
    assert engine.generate([], Decoding(5, ()), []) == []


def test_invalid_requests_are_refused_before_sampling(engine: VllmEngine):
    how = Decoding(4, ())
    with pytest.raises(DataError, match="no token_ids"):
        engine.generate([Prompt("a", "")], how, [0])
    with pytest.raises(DataError, match="another tokenizer"):
        engine.generate([Prompt("a", "", token_ids=(VOCAB,))], how, [0])
    with pytest.raises(ConfigError, match="256 positions"):
        engine.generate(make_prompts([254]), how, [0])


def test_weights_that_are_not_numbers_are_a_divergence(engine: VllmEngine, model):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    engine.load_weights(model.state_dict().items(), version=8)
    with pytest.raises(DivergedError, match="not numbers"):
        engine.generate(PROMPTS, Decoding(4, ()), SEEDS)


def test_what_is_interrupted_is_dropped_and_the_next_call_starts_anew(engine: VllmEngine, model):
    class StopError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        engine.generate(PROMPTS * 8, Decoding(150, ()), range(8 * len(PROMPTS)), stop)
    assert engine.pid is None
    completion = engine.generate(PROMPTS[:1], Decoding(5, ()), [0])[0]
    assert gap(model, PROMPTS[0], completion) < 1e-4


@pytest.mark.parametrize("python", ["fake", pytest.param("real", marks=real)])
def test_a_killed_process_is_named_and_only_what_was_in_flight_is_drawn_again(tmp_path: Path, python: str):
    alarms: list[str] = []
    settings = replace(QUICK, python=fake_python(tmp_path) if python == "fake" else REAL, slots=2, restarts=1)
    model = model_of(tied=False)
    engine = VllmEngine(settings, model, log=tmp_path / "vllm.log", on_alarm=alarms.append)
    first = engine.pid
    killed: list[int] = []

    def kill_once(done: int, _: int) -> None:
        if done >= 1 and not killed:  # 2 at a time: most are still to come
            killed.append(done)
            os.kill(engine.pid or 0, signal.SIGKILL)

    try:
        completions = engine.generate(PROMPTS, Decoding(150, ()), SEEDS, kill_once)
        assert engine.pid != first
        assert killed
        assert len(alarms) == 1
        left = int(alarms[0].partition("1 of 1 times; ")[2].split()[0])
        assert 0 <= left <= len(PROMPTS) - killed[0]  # what was sent before the kill counts
        assert f"process {first}) failed: was ended by SIGKILL" in alarms[0]
        assert max(gap(model, p, c) for p, c in zip(PROMPTS, completions, strict=True)) < 1e-4
        os.kill(engine.pid or 0, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"started again 1 time \(rollout\.engine\.restarts=1\)"):
            engine.generate(PROMPTS, Decoding(20, (7,)), SEEDS)
    finally:
        engine.close()


def faulty(tmp_path: Path, fault: str, *, once: bool = True, after: int = 0, **changes) -> VllmEngineSettings:
    marker = {"marker": str(tmp_path / "struck")} if once else {}
    python = fake_python(tmp_path, fault=fault, after=after, **marker)
    return replace(QUICK, python=python, **changes)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("die", "was ended by SIGKILL"),
        ("hang", "gave no sign of life for 3 seconds"),
        ("fail", "RuntimeError: an illegal memory access"),
    ],
)
def test_a_fault_in_sampling_costs_a_restart(tmp_path: Path, fault: str, words: str):
    alarms, before = list[str](), left_behind()
    settings = faulty(tmp_path, fault, after=3, answer_limit_s=3.0)
    engine = VllmEngine(settings, model_of(), log=tmp_path / "vllm.log", on_alarm=alarms.append)
    try:
        completions = engine.generate(PROMPTS, Decoding(40, (7, 8, 9, 10)), SEEDS)
    finally:
        engine.close()
    assert len(completions) == len(PROMPTS)
    assert len(alarms) == 1
    assert words in alarms[0]
    left = int(alarms[0].partition("1 of 3 times; ")[2].split()[0])
    assert 1 <= left <= len(PROMPTS) - 3
    assert left_behind() == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("keep the weights", r"log-probabilities of a fixed text are .* nats from the trainer's"),
        ("refuse", r"not supported for now.*rollout\.engine=torch, or generate"),
        ("die at the start", "was ended by SIGKILL"),
    ],
)
def test_what_cannot_start_is_refused_with_its_reason(tmp_path: Path, fault: str, words: str):
    before = left_behind()
    with pytest.raises(ModelError, match=words) as caught:
        VllmEngine(faulty(tmp_path, fault, once=False), model_of(), log=tmp_path / "vllm.log")
    assert str(tmp_path / "vllm.log") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_behind() == before


def test_weights_that_do_not_arrive_later_cost_a_restart(tmp_path: Path):
    marker, alarms = tmp_path / "struck", list[str]()
    marker.touch()  # not at the start
    settings = faulty(tmp_path, "keep the weights")
    engine = VllmEngine(settings, model_of(), log=tmp_path / "vllm.log", on_alarm=alarms.append)
    try:
        marker.unlink()
        other = model_of(seed=1)
        engine.load_weights(other.state_dict().items(), version=1)
        assert "nats from the trainer's in the mean" in alarms[0]
        completion = engine.generate(PROMPTS[:1], Decoding(5, ()), [0])[0]
        assert gap(other, PROMPTS[0], completion) < 1e-4
    finally:
        engine.close()


def test_a_fault_on_the_way_to_sleep_costs_a_restart(tmp_path: Path):
    alarms = list[str]()
    settings = replace(QUICK, python=fake_python(tmp_path))
    engine = VllmEngine(settings, model_of(), log=tmp_path / "vllm.log", on_alarm=alarms.append)
    try:
        engine._sleeps = True  # as on a GPU; the stand-in cannot
        assert len(engine.generate(PROMPTS, Decoding(5, (7,)), SEEDS)) == len(PROMPTS)
        assert "no attribute 'sleep'. It is started again, 1 of 3 times" in alarms[0]
    finally:
        engine.close()


def test_the_weights_that_an_engine_starts_from_are_deleted_before_others_are_written(engine: VllmEngine, model):
    copies = list(engine._exchange.path.glob("*/*.safetensors"))
    assert {file.parent for file in copies} == {engine._exchange.present}


def test_weights_are_deleted_when_nobody_holds_their_lock_whatever_the_process_id(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(weight_exchange, "SHARED_MEMORY", tmp_path)
    alive = weight_exchange.WeightExchange(model_of())
    elsewhere = alive.path.rename(tmp_path / f"{PREFIX}{2**22 + 1}-of-another-container")  # no process has the id
    weight_exchange.WeightExchange(model_of()).remove()
    assert elsewhere.is_dir()
    alive._lock.close()  # its process has ended
    weight_exchange.WeightExchange(model_of()).remove()
    assert not elsewhere.exists()


def test_the_process_and_its_files_end_with_a_trainer_that_is_killed(tmp_path: Path):
    script = (
        "import sys, time; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path\nfrom test_vllm_engine import QUICK, VllmEngine, model_of, replace\n"
        "engine = VllmEngine(replace(QUICK, python=sys.argv[1]), model_of(), log=Path(sys.argv[2]))\n"
        "print(engine.pid, engine._exchange.path, flush=True)\ntime.sleep(600)\n"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, fake_python(tmp_path), tmp_path / "vllm.log", here, here.parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pid, exchange = trainer.stdout.readline().split()
        assert Path(exchange).is_dir()
        trainer.kill()
        trainer.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() or Path(exchange).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_environment_without_vllm_or_with_an_old_one_is_refused(tmp_path: Path):
    assert check_environment(DEFAULT_ENGINE) == []
    for name in ("old", "new", "known"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"vLLM 0\.19\.1 of .* is older than 0\.32"):
        check_environment(VllmEngineSettings(python=fake_python(tmp_path / "old", "0.19.1")))
    assert check_environment(VllmEngineSettings(python=fake_python(tmp_path / "known", "0.33.0"))) == []
    (note,) = check_environment(VllmEngineSettings(python=fake_python(tmp_path / "new", "0.40.0")))
    assert "vLLM 0.40.0 is newer than 0.33" in note
    with pytest.raises(ConfigError, match=r"needs vLLM, and .* has none\. Install it: pip install 'vapo\[vllm\]'"):
        check_environment(VllmEngineSettings())
    with pytest.raises(ConfigError, match="is no program"):
        check_environment(VllmEngineSettings(python=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="no working Python interpreter"):
        check_environment(VllmEngineSettings(python="false"))


def test_a_gpu_without_room_for_both_says_how_much_each_takes():
    check_room(0.4, taken=20 * 10**9, total=80 * 10**9)
    with pytest.raises(ConfigError) as caught:
        check_room(0.4, taken=60 * 10**9, total=80 * 10**9)
    for words in ("of 80.0 GB", "takes 60.0 GB", "vLLM 32.0 GB", "memory_share", "policy_lora", "critic_kind=side"):
        assert words in str(caught.value)


def test_vllm_is_told_over_how_many_gpus_to_split_the_model(tmp_path: Path):
    settings = replace(QUICK, python=fake_python(tmp_path))
    VllmEngine(settings, model_of(), log=tmp_path / "vllm.log", tensor_parallel=2).close()
    assert "GPUs: 2" in (tmp_path / "vllm.log").read_text()


def test_the_worker_needs_nothing_of_this_package():
    script = (
        f"import runpy, sys; runpy.run_path({vllm_worker.__file__!r}); print([m for m in sys.modules if 'vapo' in m])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
