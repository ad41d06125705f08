"""Weights in bfloat16, and AdamW on float32 copies of them: updates of a thousandth are lost in 8 bits.

Passes read 2 bytes a weight and convert nothing. Gradients are added up in float32, each as soon as a backward pass has
made it, so that micro-batches do not round what they add. Source: mixed precision training, arXiv:1710.03740 §3.1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MASTER = "master"
"""The copy's name in the optimizer's state, beside its moments."""


def halve(model: nn.Module, keep: Collection[nn.Parameter] = ()) -> dict[nn.Parameter, Tensor]:
    """Make every float32 weight but `keep` bfloat16, in place; the float32 numbers that they had."""
    masters: dict[nn.Parameter, Tensor] = {}
    kept = {id(parameter) for parameter in keep}
    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and id(parameter) not in kept:
            masters[parameter] = parameter.detach()
            parameter.data = parameter.data.bfloat16()
    return masters


class MasterAdamW(torch.optim.AdamW):
    """AdamW over `masters`, float32, in place of the bfloat16 weights that they belong to.

    Its parameters are the masters, and the weights that have none. Their gradients come from the weights'. After a step
    the weights are the masters rounded. The masters are in `state_dict`, so a resume loses no bit.
    """

    def __init__(self, weights: list[nn.Parameter], masters: dict[nn.Parameter, Tensor], **options: Any) -> None:
        self._pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        """(weight, master) by the parameter's number."""
        parameters: list[nn.Parameter] = []
        for number, weight in enumerate(weights):
            if weight in masters:
                master = nn.Parameter(masters[weight])
                self._pairs[number] = (weight, master)
                weight.register_post_accumulate_grad_hook(_hand_on(master))
                parameters.append(master)
            else:
                parameters.append(weight)
        super().__init__(parameters, **options)

    @property
    def masters(self) -> list[nn.Parameter]:
        """The float32 copies."""
        return [master for _, master in self._pairs.values()]

    def move_masters(self, to: torch.device) -> None:
        """Move the float32 copies and their gradients to a device."""
        for master in self.masters:
            master.data = master.data.to(to)
            master.grad = None if master.grad is None else master.grad.to(to)

    def step(self, closure: Any = None) -> Any:
        """See torch.optim.AdamW."""
        result = super().step(closure)
        self._round()
        return result

    def state_dict(self) -> dict[str, Any]:
        """See torch.optim.AdamW; with the masters."""
        found = super().state_dict()
        for number, (_, master) in self._pairs.items():
            found["state"][number] = {**found["state"].get(number, {}), MASTER: master.detach()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch.optim.AdamW; with the masters, which the weights follow.

        A state of float32 weights has none: its masters are the weights as they are now, which were read before.
        """
        state = state_dict["state"]
        with torch.no_grad():
            for number, (weight, master) in self._pairs.items():
                master.copy_(state.get(number, {}).get(MASTER, weight))
        super().load_state_dict({**state_dict, "state": without_masters(state)})
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for weight, master in self._pairs.values():
            weight.copy_(master)


def without_masters(state: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """An optimizer's state without the masters in it; a parameter that has nothing else is left out."""
    moments = {n: {name: value for name, value in entry.items() if name != MASTER} for n, entry in state.items()}
    return {number: entry for number, entry in moments.items() if entry}


def _hand_on(master: nn.Parameter) -> Any:
    """A hook that adds a weight's gradient to its master's, and drops it.

    It drops it first: memory may run out here, and the pass that is tried again must not find a part of the first.
    """

    def hand_on(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient, weight.grad = weight.grad, None
        gradient = gradient.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    return hand_on
