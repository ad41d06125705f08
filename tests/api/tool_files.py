"""Tools of a TRL user's script, which worker processes import."""

from __future__ import annotations

import time


class Counter:
    """Counts from where the row says."""

    def reset(self, start: int = 0, **row) -> str:
        self.count = start
        return f" ready {start}"

    def add(self, amount: int) -> int:
        """Add to the count.

        Args:
            amount: How much.
        """
        self.count += amount
        return self.count

    def get_reward(self) -> float:
        return float(self.count >= 3)


def add(amount: int) -> int:
    """Give the number back.

    Args:
        amount: Any number.
    """
    return amount


def wait(seconds: int) -> int:
    """Wait.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return 1
