"""A rollout engine made of many: workers on Ray that pull pieces of the samples when they are free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from vapo.errors import VapoError
from vapo.rollout.decoder import check_request, context_of
from vapo.rollout.engine_settings import EngineSettings, VllmEngineSettings
from vapo.rollout.weight_exchange import outline
from vapo.scale.cluster import Cluster, RemoteProcess, import_ray
from vapo.scale.crew import Crew
from vapo.scale.deck import Deck, runs
from vapo.scale.placement import ROLLOUT_SHARE, Placement
from vapo.scale.ray_backend import RayBackend
from vapo.scale.rollout_worker import EngineSpec, PackedCompletions, Request, RolloutWorker, unpack_completions
from vapo.scale.weight_store import HasBuckets, put_weights
from vapo.types import Completion, Decoding, Prompt


class EnginePool:
    """The `RolloutEngine` protocol over `workers` engines of the same settings.

    A sample depends on its seed alone where the engine is exact, so who draws it changes nothing. A worker that dies,
    or does not get ahead for `answer_limit_s` seconds, is replaced by the cluster's budget of restarts; what it was
    drawing is drawn again with the same seeds.

    `model` is what the engines sample from; only its structure is kept. Raises what making the engine raises.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: EngineSettings,
        model: PreTrainedModel,
        weights: Iterable[tuple[str, Tensor]] | HasBuckets,
        *,
        workers: int,
        placement: Placement | None = None,
        threads: int = 1,
        answer_limit_s: float = 600.0,
        log: Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._ray = import_ray()
        self._cluster, self._settings = cluster, settings
        self._placement = placement or Placement((), ((),) * workers, False)
        self.exact = settings.exact
        self._version = 0
        self._context = context_of(model.config.get_text_config())
        embeddings: Any = model.get_input_embeddings()
        self._vocab_size = embeddings.weight.shape[0]
        self._log, self._trust, self._threads = log, trust_remote_code, threads
        self._spec = self._ray.put(self._spec_of(model))
        self._weights = put_weights(weights, self._ray.put)
        slow_start = settings.start_limit_s if isinstance(settings, VllmEngineSettings) else 0.0
        self.crew = Crew(
            workers,
            backend=RayBackend(),
            spawn=self._spawn,
            begin=self._begin,
            hand_over=lambda process: process.call("load", self._weights, self._version),
            restarts=cluster.restarts,
            answer_limit_s=answer_limit_s,
            start_limit_s=answer_limit_s + slow_start,
        )
        try:
            self.crew.start()
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The version passed to the last `load_weights`; 0 before."""
        return self._version

    def load_weights(self, weights: Iterable[tuple[str, Tensor]] | HasBuckets, version: int) -> None:
        """Put the weights into the object store and let every worker take them over; see `RolloutEngine`."""
        self._weights = []  # the store gives their memory back
        self._weights = put_weights(weights, self._ray.put)
        self._version = version
        self.crew.publish(version)

    def generate(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; see `RolloutEngine.generate`.

        Raises what the engines raise, and EngineError if workers are lost more often than they may be restarted.
        """
        check_request(prompts, how, seeds, context=self._context, vocab_size=self._vocab_size)
        return draw(
            self.crew, prompts, how, seeds, version=self._version, most=self._settings.slots, on_progress=on_progress
        )

    def close(self) -> None:
        """End the workers."""
        self.crew.close()
        self._weights, self._spec = [], None

    def _spec_of(self, model: PreTrainedModel) -> EngineSpec:
        return EngineSpec(self._settings, outline(model), self._threads, self._trust, self._log)

    def _spawn(self, number: int) -> RemoteProcess:
        gpus = self._placement.engines[number]
        return self._cluster.spawn(
            RolloutWorker,
            name=f"rollout worker {number}",
            gpu=gpus[0] if gpus else None,
            share=ROLLOUT_SHARE if self._placement.shared else 1.0,
            concurrency=3,
        )

    def _begin(self, number: int, process: Any) -> Any:
        gpus = self._placement.engines[number]
        several = self._cluster.names_of(gpus) if len(gpus) > 1 else ()
        return process.call("start", self._spec, self._weights, self._version, several)


def draw(
    crew: Crew,
    prompts: Sequence[Prompt],
    how: Decoding,
    seeds: Sequence[int],
    *,
    version: int,
    most: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order, by the crew's workers, at most about `most` at a time by one of them."""
    groups = runs([prompt.token_ids for prompt in prompts])
    deck = Deck([stop - start for start, stop in groups], workers=crew.size, most=most)
    found: dict[int, Completion] = {}
    tokens = 0

    def take() -> tuple[Any, tuple[Any, ...]] | None:
        piece = deck.take()
        return (piece, (_request([groups[at] for at in piece], prompts, how, seeds, version),)) if piece else None

    def keep(piece: Sequence[int], packed: PackedCompletions) -> None:
        nonlocal tokens
        if packed.version != version:
            raise VapoError(f"A worker sampled from version {packed.version} instead of {version}: a bug.")
        samples = [at for group in piece for at in range(*groups[group])]
        for at, completion in zip(samples, unpack_completions(packed), strict=True):
            found[at] = completion
            tokens += len(completion.token_ids)

    def report(beats: list[tuple[int, ...]]) -> None:
        if on_progress:
            begun = [beat for beat in beats if beat]
            on_progress(len(found) + sum(b[1] for b in begun), tokens + sum(b[2] for b in begun))

    crew.work("sample", take, keep, lambda piece, _: deck.give_back(piece), report)
    if on_progress and prompts:
        on_progress(len(found), tokens)
    return [found[at] for at in range(len(prompts))]


def _request(
    groups: Sequence[tuple[int, int]], prompts: Sequence[Prompt], how: Decoding, seeds: Sequence[int], version: int
) -> Request:
    """The request for the samples of these groups, each given by its first sample and the one after its last."""
    return Request(
        tuple((prompts[start].id, prompts[start].token_ids, stop - start) for start, stop in groups),
        np.array([seeds[at] for start, stop in groups for at in range(start, stop)], dtype=np.int64),
        how,
        version,
    )
