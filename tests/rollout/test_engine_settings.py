"""The room that an engine's own context leaves."""

from __future__ import annotations

import pytest

from vapo.rollout.engine_settings import TorchEngineSettings, VllmEngineSettings, sampling_context


@pytest.mark.parametrize(
    ("model", "engine", "room"), [(32768, 256, 256), (128, 256, 128), (None, 256, 256), (64, None, 64)]
)
def test_the_smaller_context_counts(model: int | None, engine: int | None, room: int):
    assert sampling_context(model, VllmEngineSettings(context=engine)) == room
    assert sampling_context(model, TorchEngineSettings()) == model
