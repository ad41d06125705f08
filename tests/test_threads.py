"""How many CPU threads a model gets."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vapo.models.placing import set_threads


@pytest.mark.parametrize(
    ("wanted", "given", "threads"), [(None, "1", 1), (2, "1", 2), (None, "0", 3), (None, "4,2", 3), (None, None, 3)]
)
def test_large_models_keep_the_set_number_of_threads(monkeypatch, wanted, given, threads):
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20_000, hidden_size=512, num_hidden_layers=1))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    try:
        set_threads(wanted, model)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
