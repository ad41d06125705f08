"""An engine that takes turns on the device with the networks that train (`vapo.trainer.device_turns`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from vapo.rollout.engine import RolloutEngine
from vapo.types import Completion, Decoding, Prompt


class DeviceTurnEngine:
    """`RolloutEngine`: the engine given, before whose samples `make_room` is called."""

    def __init__(self, engine: RolloutEngine, make_room: Callable[[], None]) -> None:
        self.engine, self._make_room = engine, make_room

    @property
    def exact(self) -> bool:
        """See `RolloutEngine.exact`."""
        return self.engine.exact

    @property
    def version(self) -> int:
        """See `RolloutEngine.version`."""
        return self.engine.version

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `RolloutEngine.load_weights`."""
        self.engine.load_weights(weights, version)

    def generate(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        self._make_room()
        return self.engine.generate(prompts, how, seeds, on_progress)

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self.engine.close()
