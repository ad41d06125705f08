"""Judging in actors: a task whose responses are judged by workers that pull pieces when they are free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vapo.scale.cluster import START_LIMIT_S, Cluster
from vapo.scale.crew import Crew
from vapo.scale.deck import Deck
from vapo.scale.ray_backend import RayBackend
from vapo.scale.supervised import SupervisedActor
from vapo.tasks.full_task import FullTask
from vapo.tasks.problems import Problems
from vapo.tasks.verifiers import pool
from vapo.types import Episode, Verdict

MOST = 64
"""Responses in one piece at most: a long piece that is lost is judged again as a whole."""


@dataclass(frozen=True)
class JudgeSpec:
    """How a worker makes what it judges with: the task by its name."""

    name: str
    options: Mapping[str, Any]
    graded: bool = False


class VerifierWorker(SupervisedActor):
    """Judges with a task of its own. A verifier of the user is imported here, too."""

    def __init__(self) -> None:
        super().__init__()
        self._task: FullTask | None = None
        self._stopped = 0
        self._progress = (0, 0)

    def start(self, spec: JudgeSpec) -> int:
        """Make the task; the version 0, there is no other."""
        from vapo.tasks.catalog import find_judge

        self._task = find_judge(spec.name, spec.options, graded=spec.graded)
        return 0

    def judge(self, ticket: int, groups: Sequence[Sequence[Episode]]) -> list[Verdict]:
        """Verdicts on the responses of all groups, in order."""
        from vapo.tasks.verdicts import judge

        assert self._task is not None
        verdicts: list[Verdict] = []
        for group in groups:
            if self._stopped >= ticket:
                break
            done = len(verdicts)
            self._progress = (ticket, done)
            verdicts += judge(self._task, [group], lambda more, _, done=done: self._note(ticket, done + more))
        return verdicts

    def _note(self, ticket: int, done: int) -> None:
        self._progress = (ticket, done)

    def beat(self) -> tuple[int, ...]:
        """(ticket, judged responses) of the present work."""
        return self._progress

    def stop(self, ticket: int) -> None:
        """End the work with this ticket early."""
        self._stopped = max(self._stopped, ticket)


class VerifierCrew:
    """`workers` processes that judge for one task.

    A worker that dies, or does not get ahead for `answer_limit_s` seconds, is replaced by the cluster's budget of
    restarts. Its share is judged once more, response by response (or group by group, where the task compares a group);
    what then loses its worker again gets an invalid verdict with the reason.

    Raises ConfigError if a worker cannot make the task, such as a plug-in that cannot be imported there.
    """

    def __init__(
        self, cluster: Cluster, task: FullTask, spec: JudgeSpec, *, workers: int, answer_limit_s: float
    ) -> None:
        self._workers, self._close_task = workers, task.close
        self._together = "verify_groups" in task.given
        self._tokens = self._together and task_needs_tokens(task)
        self.crew = Crew(
            workers,
            backend=RayBackend(),
            spawn=lambda number: cluster.spawn(VerifierWorker, name=f"verifier worker {number}", concurrency=3),
            begin=lambda _, process: process.call("start", spec),
            hand_over=lambda process: process.call("start", spec),
            restarts=cluster.restarts,
            answer_limit_s=answer_limit_s,
            start_limit_s=START_LIMIT_S + pool.START_LIMIT_S,  # of the actor, then of the verifier in it
        )
        try:
            self.crew.start()
        except BaseException:
            self.crew.close()
            raise

    def verify_groups(
        self, groups: Sequence[Sequence[Episode]], on_progress: Callable[[int, int], None]
    ) -> list[Verdict]:
        """Verdicts on the responses of all groups, in order."""
        shares = [list(group) for group in groups]
        if not self._together:
            shares = [[episode] for group in shares for episode in group]
        total = sum(map(len, shares))
        deck = Deck([len(share) for share in shares], workers=self._workers, most=MOST)
        verdicts: dict[int, list[Verdict]] = {}
        again: deque[int] = deque()
        lost: set[int] = set()

        def take() -> tuple[Any, tuple[Any, ...]] | None:
            piece = (again.popleft(),) if again else deck.take()
            return (piece, ([[self._lean(e) for e in shares[at]] for at in piece],)) if piece else None

        def keep(piece: Sequence[int], found: list[Verdict]) -> None:
            at = 0
            for share in piece:
                verdicts[share] = found[at : at + len(shares[share])]
                at += len(shares[share])

        def lose(piece: Sequence[int], why: str) -> None:
            for share in piece:
                if share in lost:
                    verdict = Verdict("invalid", f"its verifier worker was lost twice: {why}")
                    verdicts[share] = [verdict] * len(shares[share])
                else:
                    lost.add(share)
                    again.append(share)

        def report(beats: list[tuple[int, ...]]) -> None:
            on_progress(sum(map(len, verdicts.values())) + sum(beat[1] for beat in beats if beat), total)

        self.crew.work("judge", take, keep, lose, report)
        return [verdict for at in range(len(shares)) for verdict in verdicts[at]]

    def _lean(self, episode: Episode) -> Episode:
        """The episode without its tokens where no verifier reads them: most of what would travel."""
        return episode if self._tokens else replace(episode, turns=())

    def close(self) -> None:
        """End the workers, and what the trainer's own task holds."""
        self.crew.close()
        self._close_task()


def task_needs_tokens(task: FullTask) -> bool:
    """Whether its `verify_groups` may read more of an episode than the text; a data task's verifier says so."""
    return not isinstance(task.original, Problems) or task.original.pool.together


def judged_by(crew: VerifierCrew, task: FullTask) -> FullTask:
    """The task, judged by the crew."""
    return replace(task, verify_groups=crew.verify_groups, close=crew.close)
