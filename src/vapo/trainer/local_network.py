"""A network in this process: a Hugging Face model, the loss it minimises, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vapo.durability.checkpoint import Entries
from vapo.models.critic_notes import set_policy_sample, value_head
from vapo.models.lora import plain_weights
from vapo.models.master_weights import MasterAdamW, halve
from vapo.models.model_flops import ModelFlops, model_flops
from vapo.models.networks import Critic, Policy
from vapo.models.weight_sample import weight_sample
from vapo.models.whole import shard_like, whole
from vapo.trainer.batch import Batch
from vapo.trainer.device_turns import DeviceTurns
from vapo.trainer.group import ALONE, Group, idle_piece
from vapo.trainer.network import Gradient, Score, StepResult
from vapo.trainer.network_files import NetworkFiles
from vapo.trainer.objectives import Objective, Part
from vapo.trainer.spans import Spans

CPU_TOKENS = 4096
"""Most tokens of a pass on a CPU, whatever `trainer.micro_batch_tokens` allows: the activations of more are taken from
the kernel anew for each operation, whose pages it clears. 16,384 tokens of a small model took 150,000 page faults."""


class LocalNetwork:
    """The `Network` protocol over one model. Without an `objective` it is a reference: it is scored, never trained.

    Head and backbone share one AdamW, so both follow one learning-rate schedule (docs/pitfalls.md, 13).
    """

    def __init__(
        self,
        name: str,
        network: Policy | Critic,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        objective: Objective | None = None,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        reads: tuple[Score, ...] = (),
        spans: Spans | None = None,
        group: Group = ALONE,
        device_turns: DeviceTurns | None = None,
        beside: LocalNetwork | None = None,
        half_weights: bool = False,
    ) -> None:
        """`device_turns` is the device that it shares with other networks, None if all stay there; `beside` computes
        with it, as the policy that a side critic reads."""
        self.name, self.network, self.reads = name, network, reads
        self.max_grad_norm = max_grad_norm
        self._objective = objective
        self._group = group
        self._spans = spans or Spans()
        self.flops = model_flops(network.model)
        self._loss: Tensor | None = None
        """Of the accumulated minibatch; None between steps."""
        head = value_head(network.model).parameters() if isinstance(network, Critic) else []
        masters = halve(network.model, keep=list(head)) if half_weights else {}
        trained = {n: p for n, p in network.model.named_parameters() if p.requires_grad} if objective else {}
        self._optimizer = _adamw(trained, masters, weight_decay) if trained else None
        self._files = NetworkFiles(name, network.model, tokenizer, self._optimizer, group)
        self._device_turns, self._together = device_turns, (self,) if beside is None else (beside, self)
        if device_turns is not None:
            device_turns.enter(self)

    @property
    def model(self) -> PreTrainedModel:
        """The model itself; for the code that builds and tests networks."""
        return self.network.model

    @property
    def origin(self) -> str:
        return self.network.origin if isinstance(self.network, Critic) else ""

    @property
    def objective(self) -> Objective:
        """What it minimises; not for a reference."""
        assert self._objective is not None
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._objective = objective

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over all trained parameters; not for a reference."""
        assert self._optimizer is not None
        return self._optimizer

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters, in the optimizer's order: of bfloat16 weights their float32 masters."""
        return self.optimizer.param_groups[0]["params"]

    # ------------------------------------------------------------------ where it is

    def move(self, to: torch.device) -> None:
        """Move weights, gradient and moments to a device."""
        self._group.move(self.network, to)
        if isinstance(self._optimizer, MasterAdamW):
            self._optimizer.move_masters(to)
        for state in self._optimizer.state.values() if self._optimizer is not None else ():
            for key, value in state.items():
                state[key] = value.to(to)

    def release(self) -> None:
        if self._device_turns is not None:
            self._device_turns.free()

    def _take_turn(self) -> None:
        if self._device_turns is not None:
            self._device_turns.take(*self._together)

    # ------------------------------------------------------------------ scoring

    def score(self, batch: Batch, what: Sequence[Score], *, micro_batch_tokens: int) -> dict[str, Tensor]:
        self._take_turn()
        lengths, responses = computed_sizes(batch, for_critic=isinstance(self.network, Critic))
        flops = score_flops(self.flops, what, lengths, responses)
        with torch.no_grad(), self._spans.time(f"score/{self.name}", tokens=sum(lengths), flops=flops):
            return self._scores(batch, what, micro_batch_tokens)

    def _deal(self, batch: Batch, micro_batch_tokens: int) -> Iterator[Tensor]:
        """This process's micro-batches as row numbers."""
        most = CPU_TOKENS if self.model.device.type == "cpu" else micro_batch_tokens
        return self._group.deal(batch, min(micro_batch_tokens, most))

    def _scores(self, batch: Batch, what: Sequence[Score], micro_batch_tokens: int) -> dict[str, Tensor]:
        scored: dict[str, Tensor] = {}
        lengths = torch.tensor([len(tokens) for tokens in batch.tokens])
        shapes = {"final_values": (len(batch),), "features": (int(lengths.sum()), self._feature_width)}
        for name in what:
            scored[name] = torch.zeros(shapes.get(name, (len(batch), batch.width)))
        for rows in self._deal(batch, micro_batch_tokens):
            rows, micro = _piece(batch, rows)
            idle = not bool(micro.mask.any())
            for name, part in self._score(micro.to(self.model.device), what).items():
                if idle:
                    continue
                if name == "features":
                    pieces = scored[name].split(lengths.tolist())
                    for row, states in zip(rows.tolist(), part.split(lengths[rows].tolist()), strict=True):
                        pieces[row].copy_(states)
                elif part.ndim == 1:
                    scored[name][rows] = part.cpu()
                else:
                    scored[name][rows, : part.shape[1]] = part.cpu()
        return {name: self._group.sum(tensor) for name, tensor in scored.items()}

    def _score(self, micro: Batch, what: Sequence[Score]) -> dict[str, Tensor]:
        width = micro.width
        found: dict[str, Tensor] = {}
        if isinstance(self.network, Policy) and list(what) == ["features"]:
            found["features"] = torch.cat(self.network.features(micro.sequences))
        elif isinstance(self.network, Policy) and "features" in what:
            found["logp"], found["entropy"], found["features"] = self.network.logp_and_features(micro.sequences, width)
        elif isinstance(self.network, Policy):
            logp, entropy = self.network.logp(micro.sequences, width, with_entropy="entropy" in what)
            found["logp"] = logp
            if entropy is not None:
                found["entropy"] = entropy
        else:
            found["values"] = self.network.values(micro.critic_sequences, width)
            if "final_values" in what:
                found["final_values"] = self.network.final_values(micro.critic_sequences)
        return found

    # ------------------------------------------------------------------ learning

    def accumulate(self, minibatch: Batch, *, micro_batch_tokens: int) -> Gradient:
        self._take_turn()
        lengths, responses = computed_sizes(minibatch, for_critic=isinstance(self.network, Critic))
        with self._updating(tokens=sum(lengths), flops=self.flops.update(lengths, responses)):
            self.optimizer.zero_grad(set_to_none=True)  # a call that ran out of memory may have left gradients
            part = accumulate_gradient(self.objective, minibatch, self._deal(minibatch, micro_batch_tokens))
            names = sorted(part.figures)
            sums = self._group.sum(torch.stack([part.loss, *(part.figures[name].cpu() for name in names)]))
            self._loss = sums[0]
            values = None if part.values is None else self._group.sum(part.values)
            return Gradient(dict(zip(names, sums[1:].tolist(), strict=True)), values)

    def step(self, lr: float) -> StepResult:
        self._take_turn()
        with self._updating():
            return self._step(lr)

    def _step(self, lr: float) -> StepResult:
        assert self._loss is not None
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        head = self._head_weight()
        # the loss counts too: a token whose loss is not finite can leave a finite gradient behind
        taken = math.isfinite(float(self._loss)) and math.isfinite(float(norm))
        if taken:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._loss = None
        figures = {f"grad_norm/{self.name}": float(norm)}
        if head is not None and taken:
            figures["value/head_step"] = float(whole(value_head(self.model).weight.detach() - head).norm())
        return StepResult(taken, figures)

    def _updating(self, *, tokens: int = 0, flops: float = 0.0) -> AbstractContextManager[None]:
        return self._spans.time(f"update/{self.name}", tokens=tokens, flops=flops)

    @property
    def _feature_width(self) -> int:
        """Numbers per token of `features`."""
        layers = len(self.network.side_layers) if isinstance(self.network, Policy) else 0
        return layers * self.model.config.get_text_config().hidden_size if layers else 0

    def _head_weight(self) -> Tensor | None:
        """A copy of a critic's head before a step: one that never moves is dead."""
        return value_head(self.model).weight.detach().clone() if isinstance(self.network, Critic) else None

    def start_at(self, value: float) -> bool:
        self._take_turn()
        return isinstance(self.network, Critic) and self.network.start_at(value)

    # ------------------------------------------------------------------ weights

    def weights(self, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        self._take_turn()
        if merged:
            yield from plain_weights(self.model)
        else:
            yield from ((name, whole(tensor)) for name, tensor in self.model.state_dict().items())

    def copy_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        given = dict(weights)  # another network's, which may take its turn to tell them: this one can be anywhere
        own = self.model.state_dict()
        self.model.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in given.items()})
        self._files.own_base = False

    def _note_policy(self) -> None:
        """Note the policy of now in the configuration of a side critic, which is about to be saved."""
        if isinstance(self.network, Critic) and self.network.beside is not None:
            set_policy_sample(self.model, weight_sample(self.network.beside))

    def save(self, folder: Path) -> Entries:
        self._take_turn()
        self._note_policy()
        return self._files.save(folder)

    def load(self, folder: Path) -> None:
        self._take_turn()
        self._files.load(folder)

    def publish(self, folder: Path) -> None:
        self._take_turn()
        self._note_policy()
        self._files.publish(folder)

    def publish_adapters(self, folder: Path) -> bool:
        self._take_turn()
        return self._files.publish_adapters(folder)

    @property
    def checkpoint_bytes(self) -> int:
        return self._files.checkpoint_bytes

    @property
    def published_bytes(self) -> int:
        """Float32 weights."""
        return 4 * self.model.num_parameters()


def _adamw(
    trained: dict[str, torch.nn.Parameter], masters: dict[torch.nn.Parameter, Tensor], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the trained weights, or over their masters where they have some; it knows their names."""
    weights = list(trained.values())
    how: dict[str, Any] = {"weight_decay": weight_decay, "betas": (0.9, 0.999), "fused": True}
    optimizer = MasterAdamW(weights, masters, **how) if masters else torch.optim.AdamW(weights, **how)
    optimizer.param_groups[0]["param_names"] = list(trained)
    return optimizer


def computed_sizes(batch: Batch, *, for_critic: bool) -> tuple[list[int], int]:
    """Lengths of the sequences that a pass computes, and their response tokens in all."""
    tokens = (for_critic and batch.critic_tokens) or batch.tokens
    rows = batch.mask.any(-1).nonzero()[:, 0]
    return [len(tokens[row]) for row in rows.tolist()], int(batch.response_lengths[rows].sum())


def score_flops(flops: ModelFlops, what: Sequence[Score], lengths: Sequence[int], responses: int) -> float:
    """The floating-point operations of scoring sequences of these lengths."""
    return (2 if "final_values" in what else 1) * flops.score(lengths, responses)


def _piece(batch: Batch, rows: Tensor) -> tuple[Tensor, Batch]:
    """(row numbers, rows) of a micro-batch; of an empty one what is computed in its place."""
    return (rows, batch.select(rows)) if len(rows) else idle_piece(batch)


def accumulate_gradient(objective: Objective, minibatch: Batch, pieces: Iterable[Tensor]) -> Part:
    """Add the gradient of these micro-batches' rows to the parameters; their part of the minibatch's loss, on the CPU.

    An empty micro-batch is a pass that other processes need, and adds nothing. The part's `values` are (B, T) like the
    minibatch, and 0 in rows that were not computed.

    The weights are made on the whole minibatch, then every micro-batch adds its share. So the shares of all rows add
    up to the gradient of one big batch, however the rows are spread over micro-batches and processes (docs/pitfalls.md,
    3 and 5).
    """
    weights = objective.weights(minibatch)
    device = next(objective.module.parameters()).device
    loss, figures, values = torch.zeros(()), dict[str, Tensor](), None
    for rows in pieces:
        chosen, micro = _piece(minibatch, rows)
        micro = micro.to(device)
        share = {name: w[chosen, : micro.width].to(device) for name, w in weights.items()}
        if not len(rows):
            share = {name: torch.zeros_like(w) for name, w in share.items()}
        part = objective.loss(micro, share)
        part.loss.backward()
        loss = loss + part.loss.detach().cpu()
        figures = {key: figures.get(key, 0) + value for key, value in part.figures.items()}
        if part.values is not None:
            values = torch.zeros(minibatch.mask.shape) if values is None else values
            if len(rows):
                values[chosen, : micro.width] = part.values.cpu()
    return Part(loss, figures, values)
