"""During tests, check the shape and dtype annotations of every public function of `vapo.algo`."""

from __future__ import annotations

import functools
import inspect
from typing import Any, get_type_hints

import hypothesis
import jaxtyping
import torch
from torch import Tensor

import vapo.algo

torch.set_num_threads(1)
# The same examples on every machine, without deadlines, because the first call of a torch function is slow.
hypothesis.settings.register_profile("vapo", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("vapo")


def shape_checked(function: Any) -> Any:
    """The function, with arguments and result compared to its jaxtyping annotations.

    jaxtyping is no dependency of the package, so the annotations are strings, resolved here. The comparison
    comes after the call: what the function itself says about a wrong argument is what a test sees.
    """
    hints = get_type_hints(function, localns={**vars(jaxtyping), "Tensor": Tensor})
    signature = inspect.signature(function)

    @jaxtyping.jaxtyped(typechecker=None)  # opens a scope in which one letter means one size
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        given = {**signature.bind(*args, **kwargs).arguments, "return": result}
        for name, value in given.items():
            if isinstance(value, Tensor) and not isinstance(value, hints[name]):
                got = f"{value.dtype} {tuple(value.shape)}"
                raise TypeError(f"{function.__name__}: {name} is {got}, not {hints[name]}")
        return result

    return checked


for _name in vapo.algo.__all__:
    setattr(vapo.algo, _name, shape_checked(getattr(vapo.algo, _name)))
