"""Float32 products at full precision, for checks that compare numbers closely."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_products() -> Iterator[None]:
    """Within, float32 products have float32's precision, whatever the process has chosen (TF32 differs by 1e-3)."""
    backends: Any = torch.backends  # its stubs lack mkldnn's
    places = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, chosen in zip(places, before, strict=True):
            place.fp32_precision = chosen
