"""The rollout engine on vLLM, in a process of its own.

The process runs `vllm_worker` under an interpreter that may belong to another environment. It starts from weights that
are wrong on purpose; then the policy's are handed over, as after every step, and vLLM's log-probabilities of a fixed
text must be those of the trainer's model. So each hand-over is proven, and one that reaches a part of the model only is
found at the start.

A process that dies or hangs is named and started again, and only what was in flight is sampled again. vLLM seeds each
sample, but how it rounds depends on the other samples: the engine is not exact.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vapo.errors import ConfigError, DivergedError, EngineError, ModelError, counted
from vapo.rollout.decoder import check_request, context_of
from vapo.rollout.engine import rounding_gap
from vapo.rollout.engine_settings import EngineSettings, VllmEngineSettings
from vapo.rollout.vllm_environment import WORKER, check_environment, interpreter, variables
from vapo.rollout.weight_exchange import WeightExchange, proof_tokens
from vapo.rollout.worker_process import CommandFailedError, WorkerLostError, WorkerProcess
from vapo.types import Completion, Decoding, Prompt

LOG = "vllm.log"
OTHER_ENGINES = "Sample with another engine: rollout.engine=torch, or generate for recurrent and hybrid models."
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in that one process, which then leaves none behind
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_REFUSED_BY_SLEEP = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Expandable segments are the trainer's; vLLM's sleep refuses them."""


class VllmEngine:
    """Samples from `model` with the weights that were handed over last, at first `weights` (None: the model's own).

    Only the model's structure is kept here. `log` is the file for what vLLM writes (None: a temporary one).
    `on_alarm` is told when the process is started again.

    Raises ConfigError for an environment without vLLM or a GPU without room, ModelError for a model that vLLM cannot
    load or computes otherwise than the trainer.
    """

    exact = False

    def __init__(
        self,
        settings: VllmEngineSettings,
        model: nn.Module,
        weights: Iterable[tuple[str, Tensor]] | None = None,
        *,
        log: Path | None = None,
        trust_remote_code: bool = False,
        on_alarm: Callable[[str], None] | None = None,
        tensor_parallel: int = 1,
    ) -> None:
        if not isinstance(model, PreTrainedModel):
            raise ModelError(f"vLLM samples from transformers models; {type(model).__name__} is none.")
        check_environment(settings)
        self._settings, self._trust, self._tensor_parallel = settings, trust_remote_code, tensor_parallel
        self._on_alarm = on_alarm or _silent
        self._own_log = log is None
        self._log = log or Path(tempfile.mkdtemp(prefix="vapo-vllm-")) / LOG
        self._context = min(context_of(model.config.get_text_config()), settings.context or 2**31)
        self._vocab_size = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
        self._name, self._dtype = type(model).__name__, model.dtype
        self._bound = agreed_gap(settings, model.dtype)
        self._tokens = proof_tokens(self._vocab_size, self._context)
        self._version = self._restarts = 0
        self._process: WorkerProcess | None = None
        self._sleeps = self._asleep = False
        self._expected: list[float] = []
        """The trainer's log-probabilities of the text under the present weights."""
        self._exchange = WeightExchange(model)
        try:
            self._write(model.state_dict().items() if weights is None else weights)
            self._start()
        except (WorkerLostError, CommandFailedError) as error:
            self._discard(keep_log=True)
            raise ModelError(
                f"vLLM could not start with {self._name}: {error}. {OTHER_ENGINES} {self._log} has the details."
            ) from error
        except BaseException:
            self._discard(keep_log=True)
            raise

    @property
    def version(self) -> int:
        """The version passed to the last `load_weights`; 0 before."""
        return self._version

    @property
    def pid(self) -> int | None:
        """The id of vLLM's process; None if it is not there."""
        return self._process and self._process.pid

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand over `weights`, named as in the model's `state_dict`; see `RolloutEngine`.

        Raises ModelError if they are not the model's, EngineError if vLLM does not take them.
        """
        self._write(weights)
        self._version = version
        if self._asleep:  # then they are loaded when it wakes
            return
        self._with_restarts(self._load, None)

    def generate(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; see `RolloutEngine.generate`.

        Raises what `check_request` raises, DivergedError if the logits are not numbers, and EngineError if vLLM's
        process is lost more often than it may be started again.
        """
        check_request(prompts, how, seeds, context=self._context, vocab_size=self._vocab_size)
        if not all(map(math.isfinite, self._expected)):
            raise self._diverged()
        done: dict[int, Completion] = {}
        tokens = 0

        def keep(part: dict[str, Any]) -> None:
            nonlocal tokens
            for sample in part["done"]:
                number = sample["sample"]
                done[number] = self._completion(sample)
                tokens += len(sample["tokens"])
            report()

        def report() -> None:
            if on_progress:
                on_progress(len(done), tokens)

        def sample() -> None:
            if self._asleep:
                self._load()
            left = [i for i in range(len(prompts)) if i not in done]
            if not left:  # the last samples came before the process was lost
                return
            distinct = {prompts[i].token_ids: 0 for i in left}
            places = {ids: place for place, ids in enumerate(distinct)}
            self._ask(
                {
                    "do": "generate",
                    "prompts": list(distinct),
                    "samples": [[i, places[prompts[i].token_ids], seeds[i] & (2**63 - 1)] for i in left],
                    "how": asdict(how),
                },
                on_part=keep,
                on_wait=report,
            )

        if prompts:
            self._with_restarts(sample, lambda: len(prompts) - len(done))
            report()
        self._with_restarts(self._rest, None)
        return [done[i] for i in range(len(prompts))]

    def close(self) -> None:
        """End vLLM's process and delete the weights that were handed over."""
        self._discard()

    # ------------------------------------------------------------------ the process

    def _start(self) -> None:
        """Start the process with other weights than the present ones, then hand these over."""
        self._kill()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info()
            check_room(self._settings.memory_share, taken=total - free, total=total)
        environment = {
            **{name: value for name, value in variables(self._settings).items() if name not in _REFUSED_BY_SLEEP},
            **_OFFLINE,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "VAPO_EXCHANGE": str(self._exchange.path),
        }
        self._process = WorkerProcess([interpreter(self._settings), str(WORKER)], environment, self._log)
        settings = self._settings
        started = self._process.ask(
            {
                "do": "start",
                "model": str(self._exchange.write_others()),
                "dtype": str(self._dtype).removeprefix("torch."),
                "slots": settings.slots,
                "context": self._context if self._context < 2**31 else None,
                "memory_share": settings.memory_share,
                "cache_gb": settings.cache_gb,
                "sleep": settings.sleep,
                "eager": settings.eager,
                "tensor_parallel": self._tensor_parallel,
                "trust_remote_code": self._trust,
            },
            limit_s=settings.start_limit_s,
        )
        self._exchange.remove_others()
        self._sleeps, self._asleep = started["sleeps"], False
        self._load()

    def _write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        given = self._exchange.write(weights)
        self._expected = self._exchange.logprobs(given, self._tokens)

    def _load(self) -> None:
        """Hand over the present weights, and prove it."""
        if torch.cuda.is_available() and self._asleep:
            torch.cuda.empty_cache()  # what the trainer has freed is vLLM's until it sleeps again
        self._ask({"do": "load", "folder": str(self._exchange.present)})
        self._asleep = False
        if not all(map(math.isfinite, self._expected)):
            return  # `generate` says so
        found = self._ask({"do": "score", "tokens": self._tokens})["logprobs"]
        pairs = zip(found, self._expected, strict=True)
        gap = sum(math.nan if a is None else abs(a - b) for a, b in pairs) / len(found)
        if not gap <= self._bound:
            raise CommandFailedError(
                f"after the hand-over its log-probabilities of a fixed text are {gap:.2g} nats from the trainer's in "
                f"the mean, above {self._bound:g} (rollout.engine.logp_gap)"
            )

    def _rest(self) -> None:
        """Let vLLM sleep, where it shares a GPU, until weights or samples are needed."""
        if self._sleeps and not self._asleep:
            self._ask({"do": "sleep"})
            self._asleep = True

    def _ask(self, command: dict[str, Any], **how: Any) -> dict[str, Any]:
        if self._process is None:  # it was ended in the middle of a command
            self._start()
        assert self._process is not None
        try:
            return self._process.ask(command, limit_s=self._settings.answer_limit_s, **how)
        except (WorkerLostError, CommandFailedError):
            raise
        except BaseException:  # the caller gave up (a stop), and vLLM would go on with the command
            self._kill()
            raise

    def _with_restarts(self, work: Callable[[], None], left: Callable[[], int] | None) -> None:
        """Do the work; when the process is lost, start it again and repeat. `left` counts samples still to be drawn."""
        while True:
            try:
                work()
                return
            except (WorkerLostError, CommandFailedError) as error:
                self._restart(error, left)

    def _restart(self, error: Exception, left: Callable[[], int] | None) -> None:
        while True:
            pid, limit = self.pid, self._settings.restarts
            self._kill()
            if self._restarts >= limit:
                raise EngineError(
                    f"vLLM (process {pid}) failed: {error}. It was started again {counted(self._restarts, 'time')} "
                    f"(rollout.engine.restarts={limit}); {self._log} has the details."
                ) from error
            self._restarts += 1
            again = "" if left is None else f"; {counted(left(), 'response')} are drawn again"
            self._on_alarm(
                f"vLLM (process {pid}) failed: {error}. It is started again, {self._restarts} of {limit} times{again}; "
                f"{self._log} has the details."
            )
            try:
                self._start()
                return
            except (WorkerLostError, CommandFailedError) as failure:
                error = failure

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None
        self._asleep = False

    def _discard(self, *, keep_log: bool = False) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        self._exchange.remove()
        if self._own_log and not keep_log:
            self._log.unlink(missing_ok=True)
            self._log.parent.rmdir()
            self._own_log = False

    # ------------------------------------------------------------------ samples

    def _completion(self, sample: dict[str, Any]) -> Completion:
        if None in sample["logprobs"]:
            raise self._diverged()
        return Completion(
            token_ids=tuple(sample["tokens"]),
            logprobs=tuple(sample["logprobs"]),
            finish_reason="stop" if sample["finish"] == "stop" else "length",
            policy_version=self._version,
        )

    def _diverged(self) -> DivergedError:
        return DivergedError(
            f"The policy's logits are not numbers (weights of version {self._version}). Look at the update before "
            "this version: loss, gradient norm, learning rate."
        )


def agreed_gap(settings: EngineSettings, dtype: torch.dtype) -> float:
    """The mean difference of log-probabilities, in nats, up to which an engine agrees with the trainer."""
    chosen = settings.logp_gap if isinstance(settings, VllmEngineSettings) else None
    return chosen or rounding_gap(dtype)


def check_room(share: float, *, taken: int, total: int) -> None:
    """Raise ConfigError if a GPU that the trainer and others take `taken` bytes of has no room for vLLM's share."""
    wanted = int(share * total)
    if taken + wanted > total:
        raise ConfigError(
            f"The GPU has no room for trainer and vLLM: of {_gb(total)} the trainer takes {_gb(taken)} (activations "
            f"come on top), and vLLM {_gb(wanted)} (rollout.engine.memory_share={share:g}). Three settings help: a "
            "lower rollout.engine.memory_share, adapters (model.policy_lora, model.critic_lora), a side critic "
            "(model.critic_kind=side)."
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _silent(_: str) -> None:
    return None
