"""Errors by cause, each with its exit code, and two helpers for their texts.

A message names the thing, the place and the fix. `vapo.cli` prints it as one line, without a traceback.
"""

import os
import shlex


def command(*words: object) -> str:
    """A `vapo` command for a message, quoted so that it can be copied into a shell.

    VAPO_COMMAND is the program's name where `vapo` is not on the PATH, as `./dev` sets it.

    >>> command("resume", "my runs/one")
    "vapo resume 'my runs/one'"
    """
    return shlex.join([os.environ.get("VAPO_COMMAND", "vapo"), *map(str, words)])


def counted(count: int, noun: str) -> str:
    """A count with its noun, for a message; the noun takes an s unless it is one.

    >>> counted(1, "step"), counted(0, "step"), counted(8192, "held-out prompt")
    ('1 step', '0 steps', '8,192 held-out prompts')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _gap(found: str) -> str:
    """What stands between an error and its fix: the fix of a list is a line of its own."""
    return "\n" if "\n" in found else " "


class VapoError(Exception):
    """The base of all errors for the user; `exit_code` is what the command line returns.

    The text ends with `fix`, what to do, where it is given apart from what is wrong, `found`.
    """

    exit_code = 1

    def __init__(self, found: object = "", *, fix: str = "") -> None:
        super().__init__(f"{found}{_gap(str(found))}{fix}" if fix else found)
        self.found, self.fix = str(found), fix


class ConfigError(VapoError):
    """A setting is wrong. Found before any weights load."""

    exit_code = 2


class UnguardedError(ConfigError):
    """A file is imported for a function in it, and starts a run or an evaluation when it is imported."""


class DataError(VapoError):
    """A data set, a prompt or a gold answer is wrong."""

    exit_code = 2


class ModelError(VapoError):
    """A model or tokenizer is missing, damaged or of the wrong kind."""

    exit_code = 2


class CheckpointError(VapoError):
    """A saved state is missing, damaged or belongs to another run."""

    exit_code = 2


class DivergedError(VapoError):
    """Loss, gradient or ratio stopped being finite, several times in a row."""

    exit_code = 3


class VerifierBrokenError(VapoError):
    """Too many verdicts were invalid for the rewards to mean anything."""

    exit_code = 4


class StoppedError(VapoError):
    """The run saved its state, stopped, and can be resumed."""

    exit_code = 75


class EngineError(StoppedError):
    """The rollout engine's process ended or hung more often than it may be started again."""


class RankError(StoppedError):
    """A training rank ended, hung, or ran out of memory. All ranks were ended: each held a part of the weights.

    `would_repeat` says that the same happens again if the run goes on as it was.
    """

    def __init__(self, message: str, *, would_repeat: bool = False) -> None:
        super().__init__(message)
        self.would_repeat = would_repeat


class AbandonedError(StoppedError):
    """A stop was requested before the current step's update: the step is dropped, the state before it is saved."""
