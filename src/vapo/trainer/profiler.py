"""What looks at a run's steps as they come; `vapo.trainer.profiling` has one that measures them."""

from __future__ import annotations

from vapo.errors import ConfigError

AROUND = 2
"""Steps beside the measured ones: one to warm up, one to trace."""


def check_steps(steps: int, profiled: int) -> None:
    """Raise ConfigError unless a run of so many joint steps can profile so many of them."""
    if steps < profiled + AROUND:
        raise ConfigError(
            f"--profile measures {profiled} of the joint steps, after one to warm up and before one to trace, and "
            f"trainer.steps is {steps}. Set --steps to {profiled + AROUND} or more"
            + (", or --profile-steps to less." if profiled > 1 else ".")
        )


class Profiler:
    """A profiler that does nothing."""

    def turn(self, *, next_is_a_step: bool) -> None:
        """Something of the loop has ended; `next_is_a_step` says whether a joint step comes next."""

    def close(self) -> None:
        """The run has ended, in whatever way."""
