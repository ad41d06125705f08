"""Decode steps as CUDA graphs: which sizes are recorded, and on a GPU the same samples as without."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_prompts, tiny_model

from vapo.rollout.step_graphs import rows_of, width_of
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding


def test_few_numbers_of_rows_are_recorded():
    assert [rows_of(n, 112, 16) for n in (1, 16, 17, 33, 64, 65, 112)] == [16, 16, 32, 64, 64, 112, 112]


def test_widths_are_multiples_that_fit_the_cache():
    assert [width_of(n, 640) for n in (1, 256, 257, 513, 640)] == [256, 256, 512, 640, 640]


def test_a_cpu_records_nothing():
    engine = TorchEngine(tiny_model(), slots=4)
    assert not engine.uses_graphs
    assert engine.graphs_fault == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_steps_give_the_samples_of_plain_steps():
    prompts, found = make_prompts([3, 20, 7, 11, 5, 9], per_prompt=2), []
    for graphs in (True, False):
        engine = TorchEngine(tiny_model().to("cuda"), slots=4, graphs=graphs)
        assert engine.uses_graphs == graphs, engine.graphs_fault
        for _ in range(2):  # the second call replays what the first recorded
            found.append(engine.generate(prompts, Decoding(40, (1,)), list(range(len(prompts)))))
    assert all([c.token_ids for c in other] == [c.token_ids for c in found[0]] for other in found)


class NoGraphs:
    """Graphs that cannot be recorded."""

    def run(self, *_):
        raise RuntimeError("out of registers\nat line 7")

    def clear(self):
        pass


def test_graphs_that_are_given_up_raise_an_alarm_and_change_no_sample():
    prompts, how = make_prompts([3, 20]), Decoding(10, (1,))
    expected = TorchEngine(tiny_model(), slots=4).generate(prompts, how, [0, 1])
    alarms: list[str] = []
    engine = TorchEngine(tiny_model(), slots=4, on_alarm=alarms.append)
    engine._decoder._graphs = NoGraphs()
    assert engine.generate(prompts, how, [0, 1]) == expected
    assert not engine.uses_graphs
    assert engine.graphs_fault == "out of registers"
    assert len(alarms) == 1
    assert "CUDA graphs are off" in alarms[0]
    assert "out of registers" in alarms[0]
