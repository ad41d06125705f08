"""`model.dtype: auto`, chosen by measuring, and a warning for bfloat16 where it is the slower one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vapo.models.matrix_rate import layer_seconds, matrix_rate, rate_words
from vapo.models.placing import TINY, best_device, num_threads
from vapo.models.pretrained import load_config
from vapo.session.config import Config
from vapo.session.inputs import Inputs
from vapo.session.layers import Origin

AUTO = "auto"
WORTH = 1.1
"""bfloat16 rounds to 8 bits: `auto` takes it where it is faster by this factor at least."""
HOPELESS = 0.5
"""Below this share of float32's rate a layer of the model's width is not tried: it could take minutes."""


@dataclass(frozen=True)
class Measured:
    """What two precisions reach on this machine."""

    rates: tuple[float, float]
    """Operations per second of a matrix product in float32 and in bfloat16."""
    speedup: float
    """How many times as fast a layer of the model's width trains in bfloat16."""

    @property
    def words(self) -> str:
        """For people."""
        one, two = map(rate_words, self.rates)
        return f"a layer of this width is {self.speedup:.2g} times as fast in bfloat16 (products: {two}, float32 {one})"


def measure(config: Config, inputs: Inputs) -> Measured:
    """Compare the precisions on this device and the run's threads, which are set; takes less than a second."""
    threads = num_threads(config.sections.scale.threads, inputs.parameters or TINY)
    torch.set_num_threads(threads)
    device = best_device()
    rates = (matrix_rate(device, torch.float32, threads), matrix_rate(device, torch.bfloat16, threads))
    if rates[1] < HOPELESS * rates[0]:
        return Measured(rates, rates[1] / rates[0])
    source, trust = inputs.policy_source, config.sections.model.trust_remote_code
    width = load_config(source, trust_remote_code=trust).get_text_config().hidden_size
    slow, fast = (layer_seconds(width, device, threads, autocast=half) for half in (False, True))
    return Measured(rates, slow / fast)


def with_dtype(config: Config, inputs: Inputs) -> tuple[Config, str | None]:
    """The configuration with `auto` made one of the two, which a resume keeps, and a note that says why."""
    model, origin = config.sections.model, config.origins.get("model.dtype", Origin())
    if model.dtype != AUTO:
        return config, None
    measured = measure(config, inputs)
    dtype = "bfloat16" if measured.speedup >= WORTH else "float32"
    sections = config.sections.model_copy(update={"model": replace(model, dtype=dtype)})
    origins = {**config.origins, "model.dtype": replace(origin, place=f"{origin.place}: auto")}
    note = f"model.dtype=auto takes {dtype}: {measured.words}. Set model.dtype to choose"
    return replace(config, sections=sections, origins=origins), note


def dtype_warning(config: Config, inputs: Inputs) -> str | None:
    """The warning where bfloat16 was chosen and float32 is faster."""
    if not config.sections.model.half:
        return None
    measured = measure(config, inputs)
    if measured.speedup >= 1:
        return None
    dtype = config.sections.model.dtype
    return f"model.dtype={dtype} slows this machine down: {measured.words}. Set model.dtype=float32, or auto."
