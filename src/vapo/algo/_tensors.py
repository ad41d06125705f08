"""Checks of shapes and types, and conversion to float32 or float64, for all functions of this package."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float32, or all in float64 if one of them is float64."""
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return [x.to(wide) for x in tensors]


def require_one_shape(function: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all have the same shape; broadcasting would hide mistakes."""
    if len({x.shape for x in tensors.values()}) > 1:
        got = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(
            f"{function} needs tensors of one shape, got {got}. It does not broadcast; "
            "expand explicitly, for example advantages[:, None].expand_as(mask)."
        )


def require_mask(function: str, mask: Tensor) -> None:
    """Raise ValueError unless the mask is boolean and has two dimensions."""
    require_bool(function, mask=mask)
    if mask.ndim != 2:
        raise ValueError(
            f"{function} needs a mask of shape (responses, tokens), got {tuple(mask.shape)}. "
            "For a single response, pass mask[None]."
        )


def require_rows(function: str, rows: int, **tensors: Tensor) -> None:
    """Raise ValueError unless each tensor has one number per row."""
    for name, x in tensors.items():
        if x.shape != (rows,):
            raise ValueError(f"{function} needs {name} of shape ({rows},), one per response, got {tuple(x.shape)}.")


def require_bool(function: str, **tensors: Tensor) -> None:
    """Raise ValueError unless each tensor is boolean."""
    for name, x in tensors.items():
        if x.dtype != torch.bool:
            raise ValueError(f"{function} needs a bool {name}, got {x.dtype}. Convert a 0/1 tensor with .bool().")


def require_groups(function: str, valid: Tensor | None, **columns: Tensor) -> Tensor:
    """`valid`, or all True. Raise ValueError unless the columns, `groups` among them, are one number per response and
    the groups are integers."""
    groups = columns["groups"]
    valid = torch.ones_like(groups, dtype=torch.bool) if valid is None else valid
    require_one_shape(function, **columns, valid=valid)
    require_bool(function, valid=valid)
    if groups.ndim != 1 or groups.is_floating_point():
        raise ValueError(
            f"{function} needs groups to be one integer per response, the name of its prompt; "
            f"got {groups.dtype} of shape {tuple(groups.shape)}."
        )
    return valid


def numbered(groups: Tensor) -> tuple[Tensor, int]:
    """The groups renamed 0, 1, 2, …, and how many there are."""
    names, index = torch.unique(groups, return_inverse=True)
    return index, len(names)
