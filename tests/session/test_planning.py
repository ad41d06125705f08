"""What a plan says: parts by hand, passes as the code takes them, clusters, times, advice, and the shipped recipes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.qwen3_5 import Qwen3_5TextConfig

import toys
from vapo import cli
from vapo.errors import ConfigError, ModelError
from vapo.models.backbone import checkpoint_gradients, decoder_layers
from vapo.models.networks import Policy, Sequences
from vapo.models.pretrained import count_parameters
from vapo.session.config import Config, resolve
from vapo.session.layers import recipe_layer, recipes, set_layer
from vapo.session.planning import planned, traced
from vapo.session.planning.advice import Change, cheapest
from vapo.session.planning.hardware import DEVICES, Cluster, Device, device_of, read_cluster
from vapo.session.planning.live_bytes import LiveBytes, without_storage
from vapo.session.planning.phase_times import Shares
from vapo.session.planning.plan_page import page
from vapo.session.planning.planned import RunPlan, plan_run
from vapo.session.planning.published import model_config, published
from vapo.session.planning.rank_memory import Phase
from vapo.session.planning.traced import Form, Rows, Tracer, period
from vapo.session.planning.workload import cache_numbers_of, dealt

GPU = Device("toy GPU", memory=2e9, rate=1e12, bandwidth=1e9, link=1e8)
PARAMETERS = 19104  # 16 x 32 embeddings, a norm of 32, 2 layers of 4 x 32 x 32 less 2 x 32 x 16, 3 x 32 x 64 and 2 x 32
CONFIG = toys.tiny_llama().config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def of(base: Path, *assignments: str, preset: str = "vapo") -> Config:
    """The toy's configuration, with 8 response tokens."""
    layers = ["rollout.max_response_tokens=8", *assignments]
    return changed_layers(toys.toy_config(base, preset=preset), layers)


def changed_layers(config: Config, assignments: list[str]) -> Config:
    from vapo.session.layers import file_layer

    return resolve([file_layer("toy", config.as_dict()), *map(set_layer, assignments)])


def plan(base: Path, *assignments: str, cluster: Cluster | None = None, preset: str = "vapo", **how: Any) -> RunPlan:
    return plan_run(of(base, *assignments, preset=preset), cluster or Cluster(1, 1, GPU), prompt_tokens=4, **how)


def parts(found: RunPlan, phase: Phase) -> dict[str, float]:
    return {name: by[phase] for name, by in found.training.parts.items() if phase in by}


# --------------------------------------------------------------------------- counting


def test_live_bytes_by_hand():
    with without_storage() as mode, LiveBytes() as live, mode:
        one = torch.empty(1000)
        two = one * 2
        assert (live.now, live.peak) == (8000, 8000)
        view = two[10:]  # no new storage
        del one
        assert (live.now, live.peak) == (4000, 8000)
        wide = two.double()
        assert (live.now, live.peak) == (12000, 12000)
        del two, view, wide
        assert live.now == 0


def test_a_trained_parameter_takes_16_bytes_over_all_ranks(base: Path):
    for nodes, ranks in ((1, 1), (1, 4)):
        found = parts(plan(base, cluster=Cluster(nodes, ranks, GPU)), Phase.POLICY)
        three = sum(found[f"policy {name}"] for name in ("weights", "optimizer", "gradients"))
        assert three == 16 * PARAMETERS / ranks
        critic = parts(plan(base, cluster=Cluster(nodes, ranks, GPU)), Phase.CRITIC)
        # the critic has no table of outputs (the policy's is tied), and a head of 32 weights and a bias
        assert (
            sum(critic[f"critic {n}"] for n in ("weights", "optimizer", "gradients")) == 16 * (PARAMETERS + 33) / ranks
        )


def test_weights_in_bfloat16_take_18_bytes_trained_and_2_fixed(base: Path):
    half = "model.dtype=bfloat16-weights"
    found = plan(base, half, "algorithm.kl.coef=0.1")
    policy, critic = parts(found, Phase.POLICY), parts(found, Phase.CRITIC)
    assert policy["policy weights"] == 6 * PARAMETERS
    assert policy["policy optimizer"] + policy["policy gradients"] == 12 * PARAMETERS
    assert policy["reference weights"] == 2 * PARAMETERS
    assert critic["critic weights"] == 6 * PARAMETERS + 4 * 33  # the head stays float32
    # the copies are in the checkpoints, of which 101 are counted
    masters = 2 * PARAMETERS
    assert plan(base, half).disk - plan(base).disk == 101 * 4 * masters


def test_gradients_are_there_while_their_network_learns(base: Path):
    found = plan(base)
    assert "policy gradients" not in parts(found, Phase.CRITIC)
    assert "critic gradients" not in parts(found, Phase.POLICY)
    assert not any("gradients" in name for name in parts(found, Phase.ROLLOUT))


def test_networks_that_take_turns_are_there_one_at_a_time(base: Path):
    found = plan(base, "scale.offload=true", "algorithm.kl.coef=0.1")
    held = {phase: sorted({n.split()[0] for n in parts(found, phase) if n.endswith(("weights", "optimizer"))})
            for phase in (Phase.ROLLOUT, Phase.SCORE, Phase.CRITIC, Phase.POLICY)}  # fmt: skip
    assert held == {
        Phase.ROLLOUT: ["sampler"],
        Phase.SCORE: ["policy", "sampler"],
        Phase.CRITIC: ["critic", "sampler"],
        Phase.POLICY: ["policy", "sampler"],
    }
    # weights and moments of both, and the reference's weights
    assert found.training.host["networks that wait"] == 12 * (2 * PARAMETERS + 33) + 4 * PARAMETERS
    whole = plan(base, "algorithm.kl.coef=0.1")
    assert found.training.peak < whole.training.peak
    side = parts(plan(base, "scale.offload=true", "model.critic_kind=side"), Phase.CRITIC)
    assert "policy weights" in side


def test_adapters_and_references_by_hand(base: Path):
    found = plan(base, "model.policy_lora=2", "model.critic_lora=2", "algorithm.kl.coef=0.1")
    # rank 2 on q, k, v, o, gate, up, down: 2 x (64 + 48 + 48 + 64 + 96 + 96 + 96) = 1024 a layer
    learned = parts(found, Phase.POLICY)
    assert learned["policy optimizer"] == 8 * 2048
    assert learned["policy weights"] == 4 * (PARAMETERS + 2048)
    # one base for both: the critic has its adapters and its head for itself
    assert learned["critic weights"] == 4 * (2048 + 33)
    assert learned["reference weights"] == 4 * (PARAMETERS + 2048)


def test_the_torch_engine_by_hand(base: Path):
    found = parts(plan(base, "rollout.engine.slots=20"), Phase.ROLLOUT)
    # 20 slots: 32 rows and a spare one; 12 tokens: 32 columns; 2 layers x 1 key head x 16 numbers x (keys, values)
    assert found["KV cache"] == 33 * 32 * 64 * 4
    assert found["sampler weights"] == 4 * PARAMETERS
    half = parts(plan(base, "rollout.engine.slots=20", "model.dtype=bfloat16"), Phase.ROLLOUT)
    assert half["KV cache"] == 33 * 32 * 64 * 2
    stays = parts(plan(base, "rollout.engine.slots=20"), Phase.POLICY)
    assert stays["KV cache"] == found["KV cache"]


def test_vllm_takes_its_share_and_gives_it_back_while_the_trainer_learns(base: Path):
    found = plan(base, "rollout.engine={kind: vllm, memory_share: 0.1}")
    assert parts(found, Phase.ROLLOUT)["vLLM (weights, KV cache)"] == pytest.approx(0.1 * GPU.memory)
    assert "vLLM (weights, KV cache)" not in parts(found, Phase.POLICY)
    stays = plan(base, "rollout.engine={kind: vllm, memory_share: 0.1, sleep: false}")
    assert "vLLM (weights, KV cache)" in parts(stays, Phase.POLICY)


def test_layers_without_attention_have_no_cache():
    hybrid = Qwen3_5TextConfig(num_hidden_layers=8, num_key_value_heads=4, head_dim=256)
    assert cache_numbers_of(hybrid) == 2 * 2 * 4 * 256
    assert period(hybrid) == 4
    assert cache_numbers_of(LlamaConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=64)) == 2 * 3 * 64


# --------------------------------------------------------------------------- passes


FORMS = [Form(), Form(checkpointing=True), Form(autocast=True), Form(rank=2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backward", [True, False])
def test_a_deep_body_is_foreseen_from_few_layers(form: Form, backward: bool):
    deep = Tracer(toys.tiny_llama(num_hidden_layers=7).config)
    rows = Rows(2, 24, 16)
    kept, *peaks = deep._body(7, rows, form, backward)
    assert deep._deep(rows, form, backward=backward) == pytest.approx((kept, max(peaks)), rel=1e-3)


def test_a_real_pass_keeps_what_was_foreseen():
    # autograd itself says what it keeps: the storages that are saved for the backward pass, parameters left out
    from vapo.models.backbone import hidden_states

    model = toys.tiny_llama(num_hidden_layers=3)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = [torch.zeros(50, dtype=torch.long) for _ in range(4)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = hidden_states(model, tokens)
    rows = Rows(4, 50, 40)
    foreseen = Tracer(model.config).update(rows, Form(), max_logits=None).kept
    assert states.shape == (200, 32)
    assert foreseen == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_copies_of_weights_are_not_kept_over_a_pass(checkpointing: bool):
    # real tensors: without a gradient, or with checkpoints, no layer's copies outlive the layer
    peaks = []
    for layers in (2, 6):
        model = toys.tiny_llama(num_hidden_layers=layers, hidden_size=128, intermediate_size=256)
        if checkpointing:
            checkpoint_gradients(model)
        policy = Policy(model, "packed", 1.0, autocast=True)
        with LiveBytes([*model.parameters(), *model.buffers()]) as live, torch.set_grad_enabled(checkpointing):
            policy.logp(Sequences((torch.zeros(4, dtype=torch.long),), (2,)), 2)
        peaks.append(live.peak)
    copies = 4 * 2 * sum(p.numel() for p in decoder_layers(model)[0].parameters())
    assert peaks[1] - peaks[0] < 0.1 * copies


def test_passes_grow_with_tokens_and_shrink_with_checkpointing_and_chunks():
    tracer = Tracer(toys.tiny_llama(num_hidden_layers=4, vocab_size=512).config)
    small, large = (tracer.update(Rows(n, 32, 24), Form(), max_logits=2**12) for n in (2, 4))
    assert large.kept > small.kept
    assert large.peak > small.peak
    assert tracer.update(Rows(4, 32, 24), Form(checkpointing=True), max_logits=2**12).kept < large.kept
    assert tracer.update(Rows(4, 32, 24), Form(), max_logits=2**14).output > large.output
    assert tracer.score(Rows(4, 32, 24), Form(), max_logits=2**12).peak < large.peak


def test_a_side_critic_takes_less_than_a_full_one(base: Path):
    full, side = plan(base), plan(base, "model.critic_kind=side")
    assert side.training.total(Phase.CRITIC) < full.training.total(Phase.CRITIC)
    assert side.training.host["kept hidden states"] > 0
    assert "critic weights" not in side.training.parts


def test_hidden_states_that_value_pretraining_keeps_are_counted(base: Path):
    many = ["model.critic_kind=side", "trainer.pretraining_passes=4"]
    host = plan(base, *many).training.host
    # two steps of 32 responses of 12 tokens: twice what is kept of one step
    assert host["hidden states of value pretraining"] == 2 * host["kept hidden states"]
    memory = host["kept hidden states"] * 6  # of which a quarter may be kept: three quarters of the two steps
    little = plan(base, *many, cluster=Cluster(1, 1, replace(GPU, memory=memory)), advise=False).training.host
    assert little["hidden states of value pretraining"] == memory / 4


# --------------------------------------------------------------------------- clusters and times


@pytest.mark.parametrize(
    ("text", "sizes"), [("16x8xH100", (16, 8)), ("8xh200", (1, 8)), ("4090", (1, 1)), ("2x4xA100-80", (2, 4))]
)
def test_clusters_are_read(text: str, sizes: tuple[int, int]):
    found = read_cluster(text)
    assert (found.nodes, found.per_node) == sizes


@pytest.mark.parametrize(
    ("text", "words"),
    [("16x8xH1000", "did you mean H100? There are: H100, H200, A100-80, L40S, 4090, cpu"), ("0xH100", "16x8xH100"),
     ("8 of H100", "MACHINESxGPUSxDEVICE"), ("", "MACHINESxGPUSxDEVICE")],
)  # fmt: skip
def test_wrong_clusters_are_refused(text: str, words: str):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        read_cluster(text)


def test_a_card_without_a_data_sheet_keeps_its_name_and_borrows_rates_with_a_note(base: Path):
    known, other = device_of("NVIDIA H100 80GB HBM3", 79e9), device_of("NVIDIA RTX 3090", 24e9)
    assert (known.name, known.memory, known.rates_of) == ("H100", 79e9, None)
    assert (other.name, other.memory, other.rate) == ("NVIDIA RTX 3090", 24e9, DEVICES["A100-80"].rate)
    note = "rates of A100-80 are assumed for NVIDIA RTX 3090: give --cluster for those of another device"
    assert note in plan(base, cluster=Cluster(1, 1, other)).notes
    assert not [note for note in plan(base, cluster=Cluster(1, 1, known)).notes if "assumed for" in note]


def test_a_plan_has_the_room_that_the_engine_leaves(base: Path):
    narrow = "rollout.engine={kind: vllm, context: 10}"
    with pytest.raises(ConfigError, match=r"tokens exceed rollout.engine.context of 10\. Set .* to 6 or less"):
        plan(base, narrow)


def test_a_cluster_is_shared_out(base: Path):
    ray = "scale={backend: ray, nodes: 1, gpus_per_node: 8, training_ranks: 6, rollout_workers: 1, tensor_parallel: 2}"
    together = dealt(of(base, ray), Cluster(2, 8, GPU))
    assert (together.ranks, together.engines, together.per_engine, together.colocated) == (16, 8, 2, True)
    split = dealt(of(base, ray, "scale.placement=split"), Cluster(2, 8, GPU))
    assert (split.ranks, split.engines, split.colocated) == (12, 2, False)
    with pytest.raises(ConfigError, match="exceeds the 4 GPUs"):
        dealt(of(base, ray, "scale.placement=split", "scale.tensor_parallel=8"), Cluster(2, 8, GPU))
    sampling = plan(base, ray, "scale.placement=split", cluster=Cluster(2, 8, GPU)).sampling
    assert sampling is not None
    assert sampling.phases == [Phase.ROLLOUT]


def test_times_by_hand(base: Path):
    found = plan(base, mean_tokens=4, shares=Shares(mfu=0.5, bandwidth=0.5))
    # products: two layers of 9216 weights; 16 x 32 for outputs. 32 responses of 8 tokens, 4 of them sampled
    body, head, attention = 2 * 9216, 512, 2 * 32
    score = 2 * (body * 8 + head * 4) + 2 * attention * 64
    of_critic = 2 * (body + 32) * 8 + 2 * attention * 64
    # the policy scores 4 responses to see that the engine is exact, the critic all but its first minibatch of 8
    assert found.times["score"].seconds == pytest.approx((4 * score + 24 * of_critic) / 0.5e12)
    update = 32 * (6 * (body * 8 + head * 4) + 6 * attention * 64)
    assert found.times["update policy"].seconds == pytest.approx(update / 0.5e12)
    # four steps that read all weights and 32 caches of 4 + 2 tokens; 8 prompts are read before
    step = 4 * (body + head + 32 * 64 * 6) / 0.5e9
    prefill = 8 * (2 * body * 4 + 2 * attention * 16) / 0.5e12
    assert found.times["rollout"].seconds == pytest.approx(4 * step + prefill)
    assert found.times["rollout"].bound == "bandwidth"
    assert found.times["hand-over"].seconds == pytest.approx(4 * PARAMETERS / 1e8)
    every = plan(base, "trainer.scoring=all", "algorithm.kl.coef=0.1", mean_tokens=4, shares=Shares(mfu=0.5))
    assert every.times["score"].seconds == pytest.approx((64 * score + 32 * of_critic) / 0.5e12)
    again = plan(base, "model.gradient_checkpointing=true", mean_tokens=4, shares=Shares(mfu=0.5))
    assert again.times["update policy"].seconds > found.times["update policy"].seconds


# --------------------------------------------------------------------------- advice


def test_the_cheapest_change_is_the_first_that_fits_alone_and_else_all_up_to_one():
    first, second, third = (Change({name: 1}, "") for name in "abc")
    assert cheapest([first, second, third], lambda change: "b" in change.settings) is second
    both = cheapest([first, second, third], lambda change: {"a", "b"} <= set(change.settings))
    assert both is not None
    assert set(both.settings) == {"a", "b"}
    assert cheapest([first, second, third], lambda change: False) is None


def test_what_does_not_fit_is_told_with_the_cheapest_change(base: Path):
    # the torch engine is small, so that learning decides
    small = ["rollout.engine.slots=16", "trainer.minibatch_size=32"]
    whole = plan(base, *small)
    assert whole.fits
    assert whole.advice is None
    checkpointed = plan(base, *small, "model.gradient_checkpointing=true")
    assert checkpointed.training.peak < whole.training.peak
    between = (whole.training.peak + checkpointed.training.peak) / 2
    memory = (between + 1.5e9) / 0.95
    tight = plan(base, *small, cluster=Cluster(1, 1, replace(GPU, memory=memory)))
    assert not tight.fits
    assert tight.advice is not None
    assert tight.advice.settings == {"model.gradient_checkpointing": True}
    assert plan(base, *small, "model.gradient_checkpointing=true", cluster=tight.cluster).fits
    nothing = plan(base, *small, cluster=Cluster(1, 1, replace(GPU, memory=1.5e9)))
    assert not nothing.fits
    assert nothing.advice is None


def test_adapters_are_no_advice_where_peft_is_missing(base: Path, monkeypatch: pytest.MonkeyPatch):
    def unasked(*_: object, **__: object) -> None:
        raise AssertionError("adapters need peft")

    monkeypatch.setattr(planned, "find_spec", lambda name: None)
    monkeypatch.setattr(traced, "add_lora", unasked)
    found = plan(base, cluster=Cluster(1, 1, replace(GPU, memory=1.5e9)))
    assert not found.fits
    assert found.notes[-1].endswith("need peft: pip install 'vapo[lora]'")


# --------------------------------------------------------------------------- recipes and the command


def test_published_models_have_their_published_sizes():
    sizes = {name: count_parameters(model_config(name, offline=True)[0]) for name in published()}
    # the last one without its vision encoder
    assert sizes == {
        "Qwen/Qwen2.5-32B": 32_763_876_352,
        "Qwen/Qwen2.5-7B": 7_615_616_512,
        "Qwen/Qwen3.5-9B-Base": 8_953_803_264,
    }
    with pytest.raises(ModelError, match="neither a folder here nor shipped"):
        model_config("Qwen/Qwen2.5-3B", offline=True)


def test_twins_differ_in_their_method_alone():
    twins = [name for name in recipes() if name.endswith("-qwen2.5-7b")]
    assert len(twins) == 5
    whole = {name: dict(recipe_layer(name).values) for name in twins}
    assert {values["algorithm"]["preset"] for values in whole.values()} == {n.split("-")[0] for n in twins}
    for values in whole.values():
        values["algorithm"] = values["algorithm"]["alpha"]
    assert all(values == whole["vapo-qwen2.5-7b"] for values in whole.values())


def test_the_page_of_plans_is_that_of_this_code_and_every_recipe_fits():
    printed = Path(__file__).parents[2] / "docs" / "plan.md"
    now = page()
    assert printed.read_text(encoding="utf-8") == now, "Print it again: python -m vapo.session.planning.plan_page"
    assert now.count("It fits:") == len([name for name in recipes() if "-" in name])
    assert "does not fit" not in now


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vapo", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_prints_a_plan(base: Path, monkeypatch, capsys):
    few = ["--set", f"model.policy={base}", "--cluster", "8xH100", "--offline", "--prompt-tokens", "4"]
    run(monkeypatch, "plan", *few, "--set", "rollout.max_response_tokens=8")
    printed = capsys.readouterr().out
    assert "vapo on 1x8xH100: policy 19.1k parameters" in printed
    assert "It fits:" in printed
    run(monkeypatch, "plan", *few, "--set", "rollout.max_response_tokens=8", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == 8
    assert found["fits"]
    assert run(monkeypatch, "plan", *few, "--set", "rollout.max_response_tokens=80") == 2
    assert "exceed the model's context of 64" in capsys.readouterr().err
