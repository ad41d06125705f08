"""A side critic: a small value transformer beside the policy, which reads the policy's hidden states.

One block for the policy's token embeddings, then one for each of a few of its decoder layers, up to the last. A block
adds a projection of its layer's states to its own stream and applies an MLP; with `attention` it attends causally
within prompt and response in between. The policy's states come without a gradient, so nothing that the critic learns
moves the policy.

A state is about the token to come: what the text says so far has partly left it, and what was asked for even more. So
the critic also reads the embeddings, and every block adds a projection of the mean of its layer's states over the
prompt, from the prompt's last token on. Attention alone finds the question late: its weights start at random.

Source: ladder side-tuning, arXiv:2206.06522.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from vapo.errors import ConfigError, ModelError
from vapo.models.backbone import decoder_layers

MODEL_TYPE = "vapo_side_critic"
"""The `model_type` in the config.json of a saved side critic."""
SHARE = 0.02
"""A side critic has fewer parameters than this share of the policy's, unless it has the smallest width."""
EMBEDDINGS = -1
"""Among the policy's layers: what goes into the first one."""
EVERY = 3
"""One block for so many layers of the policy, where nobody chose how many."""
MOST_BLOCKS = 12
"""Blocks for layers, where nobody chose how many; the one for the embeddings comes on top."""
WIDTHS = (32, 64, 128, 256)
"""The smallest is taken whatever its share: 2 % of a tiny policy is a width that learns nothing."""
HEAD_WIDTH = 32
"""Numbers in an attention head, or the whole width where that is less."""
MLP_FACTOR = 2
"""The MLP's hidden width over the block's."""


class SideConfig(PreTrainedConfig):
    """Sizes of a side critic: which of the policy's layers it reads (from 0; -1 the embeddings), how wide these are,
    its own width, whether its blocks attend, and how many numbers its head reads."""

    model_type = MODEL_TYPE
    policy_layers: list[int] | None = None
    policy_width: int = 0
    hidden_size: int = 0
    attention: bool = False
    outputs: int = 1


AutoConfig.register(MODEL_TYPE, SideConfig)


class SideModel(PreTrainedModel):
    """The network: features of ragged rows in, one state per token out; `score` makes the head's outputs of a state."""

    config_class = SideConfig
    config: SideConfig

    def __init__(self, config: SideConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        blocks = len(config.policy_layers or ())
        self.blocks = nn.ModuleList(Block(config.policy_width, width, config.attention) for _ in range(blocks))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.score = nn.Linear(width, config.outputs)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear):
            if module is self.score:
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor], prompt_lengths: Sequence[int]) -> Tensor:
        """States (sum of lengths, width) of rows of features (tokens, K); no row reads another.

        The first `prompt_lengths[i]` tokens of row i, 1 or more, are its prompt.
        """
        flat = torch.cat(list(features))
        policy_width = self.config.policy_width
        # layers differ in scale by orders of magnitude, and single channels of a layer, too
        flat = F.rms_norm(flat.float().view(len(flat), -1, policy_width), (policy_width,))
        ragged = Ragged([len(row) for row in features], flat.device) if self.config.attention else None
        prompts, after = prompt_means(flat, [len(row) for row in features], prompt_lengths)
        stream = flat.new_zeros(len(flat), self.config.hidden_size)
        for i, block in enumerate(self.blocks):
            asked = cast(Block, block).ask(prompts[:, i])[after] * (after >= 0)[:, None]
            stream = block(stream + asked, flat[:, i], ragged)
        return self.norm(stream)

    def values(self, features: Sequence[Tensor], prompt_lengths: Sequence[int]) -> Tensor:
        """The head's outputs (sum of lengths, outputs) after every token; with a linear head V in units of reward."""
        return self.score(self(features, prompt_lengths))


class Block(nn.Module):
    """x + project(policy's states), then attention if there is any, and MLP, each on a normalised stream and added to
    it. `ask` projects the prompt's states."""

    def __init__(self, policy_width: int, width: int, attention: bool) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.project = nn.Linear(policy_width, width, bias=False)
        self.ask = nn.Linear(policy_width, width, bias=False)
        if attention:
            self.attention_norm = nn.RMSNorm(width, eps=1e-6)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, MLP_FACTOR * width, bias=False)
        self.down = nn.Linear(MLP_FACTOR * width, width, bias=False)

    def forward(self, stream: Tensor, states: Tensor, ragged: Ragged | None) -> Tensor:
        stream = stream + self.project(states)
        if ragged is not None:
            # positions are not encoded: the policy's states have them, and a causal mask shows them
            stream = stream + self.out(ragged.attention(self.qkv(self.attention_norm(stream)), self.heads))
        return stream + self.down(F.gelu(self.up(self.mlp_norm(stream))))


class Ragged:
    """Rows of these lengths, end to end, in groups of like length for attention."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        groups: list[list[int]] = []
        for row in order:
            # no row is padded to more than twice its length, so that padding costs little
            if not groups or 2 * lengths[row] < lengths[groups[-1][0]]:
                groups.append([])
            groups[-1].append(row)
        self.groups = []
        """Per group: rows, longest length, the flat places of its tokens, and their places in the padded group."""
        for group in groups:
            longest = lengths[group[0]]
            flat = torch.cat([torch.arange(starts[row], starts[row] + lengths[row]) for row in group])
            padded = torch.cat([torch.arange(lengths[row]) + i * longest for i, row in enumerate(group)])
            self.groups.append((len(group), longest, flat.to(device), padded.to(device)))

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """Causal attention within each row: (n, 3 · width) -> (n, width)."""
        out = qkv.new_zeros(len(qkv), qkv.shape[1] // 3)
        for rows, longest, flat, padded in self.groups:
            packed = qkv.new_zeros(rows * longest, qkv.shape[1]).index_copy(0, padded, qkv[flat])
            # (3, rows, heads, tokens, head width); padding stands on the right, where no token looks
            q, k, v = packed.view(rows, longest, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out = out.index_copy(0, flat, mixed.transpose(1, 2).reshape(rows * longest, -1)[padded])
        return out


def prompt_means(flat: Tensor, lengths: Sequence[int], prompt_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mean of each row's prompt, normalised, (rows, layers, width), of flat states (sum of lengths, layers, width);
    and which row's mean each token may read, (sum of lengths,): its own from the prompt's last token on, before it -1.
    """
    means, after = [], []
    for row, (states, prompt) in enumerate(zip(flat.split(list(lengths)), prompt_lengths, strict=True)):
        means.append(states[:prompt].mean(0))
        after.append(torch.full((len(states),), row))
        after[-1][: prompt - 1] = -1
    return F.rms_norm(torch.stack(means), (flat.shape[-1],)), torch.cat(after).to(flat.device)


def side_config(
    policy: PreTrainedConfig,
    parameters: int,
    *,
    outputs: int = 1,
    layers: int | None = None,
    share: float = SHARE,
    attention: bool = False,
) -> SideConfig:
    """The sizes of a side critic beside a policy with this configuration and so many parameters.

    `layers` is how many of the policy's layers it reads beside the embeddings, evenly spaced and the last one among
    them; None takes every third, twelve at most. The width is the largest of `WIDTHS` with which it has less than
    `share` of the policy's parameters; where none has, fewer layers, and at last the smallest. Raises ConfigError for
    more layers than there are.
    """
    text = policy.get_text_config()
    there = text.num_hidden_layers
    if layers is not None and layers > there:
        raise ConfigError(f"model.side_layers={layers} exceeds the policy's {there} layers. Lower it.")
    count = layers or min(MOST_BLOCKS, max(1, there // EVERY))
    while True:
        sizes = {w: side_parameters(1 + count, text.hidden_size, w, outputs, attention) for w in WIDTHS}
        fitting = [w for w in WIDTHS if sizes[w] < share * parameters]
        if fitting or layers is not None or count == 1:
            break
        count -= 1
    return SideConfig(
        policy_layers=[EMBEDDINGS, *((i + 1) * there // count - 1 for i in range(count))],
        policy_width=text.hidden_size,
        hidden_size=fitting[-1] if fitting else WIDTHS[0],
        attention=attention,
        outputs=outputs,
    )


def side_parameters(blocks: int, policy_width: int, width: int, outputs: int = 1, attention: bool = False) -> int:
    """The number of parameters of a side critic."""
    block = 2 * policy_width * width + 2 * MLP_FACTOR * width * width + width
    block += (4 * width * width + width) if attention else 0
    return blocks * block + width + outputs * (width + 1)


def config_parameters(config: SideConfig) -> int:
    """The number of parameters of the side critic that a configuration describes."""
    blocks = len(config.policy_layers or ())
    return side_parameters(blocks, config.policy_width, config.hidden_size, config.outputs, config.attention)


def check_readable(model: PreTrainedModel) -> None:
    """Raise ModelError unless the architecture's layers can be found; works without weights."""
    decoder_layers(model)


def is_side_critic(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a saved side critic."""
    return config.model_type == MODEL_TYPE


def holds_side_critic(source: str | Path) -> bool:
    """Whether a folder holds a saved side critic; reads its config.json alone."""
    try:
        return json.loads((Path(source) / "config.json").read_text()).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def check_fits(config: SideConfig, policy: PreTrainedModel, source: str | Path) -> None:
    """Raise ModelError unless a saved side critic reads states that the policy has."""
    text = policy.config.get_text_config()
    if config.policy_width != text.hidden_size or max(config.policy_layers or [0]) >= text.num_hidden_layers:
        raise ModelError(
            f"The side critic in {source} reads layers {config.policy_layers} of width {config.policy_width}, and the "
            f"policy has {text.num_hidden_layers} of width {text.hidden_size}. Give the policy it was trained beside."
        )


def describe(model: SideModel, policy: PreTrainedModel) -> str:
    """What the critic is, for the run's log."""
    share = model.num_parameters() / policy.num_parameters()
    layers = ", ".join(str(layer + 1) for layer in model.config.policy_layers or () if layer != EMBEDDINGS)
    return (
        f"side critic of {model.num_parameters()} parameters ({share:.1%} of the policy's) and width "
        f"{model.config.hidden_size}, reads the policy's embeddings and the states after its layers {layers}"
    )
