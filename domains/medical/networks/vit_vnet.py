"""ViT-V-Net: a vision transformer at the bottom of a V-Net.

Chen et al., ViT-V-Net: Vision Transformer for Unsupervised Volumetric Medical Image Registration,
MIDL 2021, arXiv 2104.06468.
Sizes: B pairs of D x H x W voxels, N patches of 32 x 32 x 32 voxels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from domains.medical.networks.parts import RegistrationOutput, flow_layer, joined
from domains.medical.warping import integrate, warp

STEM = (16, 32, 32)
PATCH = 8  # of the stem's last map, which is a quarter as fine as the volumes
BOTTOM = 512
SKIPS = (32, 32, 32, 32, 16)
DECODER = (96, 48, 32, 32, 16)


class Block(nn.Module):
    """A transformer layer whose norms stand before its parts.

    Args:
        width: of a token.
        heads: of the attention.
        inner: width of the feed-forward part.
        dropout: in the feed-forward part.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width)."""
        y = self.attention_norm(x)
        split = (len(y), y.shape[1], self.heads, -1)
        q, k, v = (f(y).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        inner = self.drop(F.gelu(self.fc1(self.ffn_norm(x))))
        mapped: Tensor = x + self.drop(self.fc2(inner))
        return mapped


class Up(nn.Module):
    """Double a map's places, join what was skipped, and convolve twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _normed(inputs + skip, outputs)
        self.conv2 = _normed(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, inputs, d, h, w) to (B, outputs, 2 d, 2 h, 2 w)."""
        x = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
        mapped: Tensor = self.conv2(self.conv1(torch.cat([x, skip], 1)))
        return mapped


class ViTVNet(nn.Module):
    """Register volumes of one size.

    Args:
        size: D, H and W, multiples of 32; one number is taken for all. Each patch has a learnt
            position.
        width: of a token.
        depth: layers of the transformer.
        heads: of its attention.
        inner: width of its feed-forward parts.
        dropout: of tokens, and in the feed-forward parts.
        int_steps: steps of an integration of the flow, 7 in the paper's code; 0 warps by what the
            last layer gives, as the NestedMorph study does.

    Raises:
        ValueError: if a side is no multiple of 32, or ``heads`` do not divide ``width``.

    Example:
        >>> volumes = torch.zeros(1, 1, 32, 32, 32)
        >>> network = ViTVNet(32, depth=1, int_steps=0).eval()
        >>> network(volumes, volumes).flow.shape
        torch.Size([1, 3, 32, 32, 32])
    """

    divisor = 32

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        width: int = 252,
        depth: int = 12,
        heads: int = 12,
        inner: int = 3072,
        dropout: float = 0.1,
        int_steps: int = 7,
    ) -> None:
        super().__init__()
        sides = (size,) * 3 if isinstance(size, int) else tuple(size)
        if len(sides) != 3 or min(sides) < 1 or any(side % self.divisor for side in sides):
            raise ValueError(f"size={size} must be three multiples of {self.divisor}")
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.size = size
        self.width = width
        self.depth = depth
        self.heads = heads
        self.inner = inner
        self.dropout = dropout
        self.int_steps = int_steps
        self._sides = sides
        self.stem = nn.ModuleList(_twice(*pair) for pair in zip((2, *STEM[:2]), STEM, strict=True))
        self.patches = nn.Conv3d(STEM[-1], width, PATCH, PATCH)
        count = math.prod(side // self.divisor for side in sides)
        self.positions = nn.Parameter(torch.zeros(1, count, width))
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(width, heads, inner, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.bottom = _normed(width, BOTTOM)
        inputs = (BOTTOM, *DECODER[:-1])
        self.up = nn.ModuleList(Up(*each) for each in zip(inputs, SKIPS, DECODER, strict=True))
        self.flow = flow_layer(DECODER[-1])

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register ``moving`` to ``fixed``, both (B, 1, D, H, W) in [0, 1].

        ``velocity`` is None without an integration.

        Raises:
            ValueError: if they are of another size.
        """
        x = joined(moving, fixed, self.divisor)
        if x.shape[2:] != self._sides:
            raise ValueError(
                f"volumes of {tuple(x.shape[2:])} voxels must be {self._sides}, as is size"
            )
        skips = []
        for level, convs in enumerate(self.stem):
            x = convs(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        for _ in range(2):
            skips.append(F.max_pool3d(skips[-1], 2))
        coarse = self.patches(x)  # (B, width, d, h, w)
        tokens = self.drop(coarse.flatten(2).mT + self.positions)  # (B, N, width)
        for layer in self.layers:
            tokens = layer(tokens)
        x = self.bottom(self.norm(tokens).mT.reshape(coarse.shape))
        for up in self.up:
            x = up(x, skips.pop())
        field: Tensor = self.flow(x)
        if not self.int_steps:
            return RegistrationOutput(warp(moving, field), field)
        flow = integrate(field, self.int_steps)
        return RegistrationOutput(warp(moving, flow), flow, field)

    @property
    def stages(self) -> list[nn.Module | list[nn.Module]]:
        """The stem, the layers of the transformer, then the levels of the decoder."""
        first = [*self.stem, self.patches]
        return [first, *self.layers, [self.bottom, self.up[0]], *self.up[1:]]

    @property
    def head(self) -> list[nn.Module]:
        """The layer that gives the flow or the velocity."""
        return [self.flow]

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "ViTVNet":
        """Build from the official configuration and parameter names.

        Args:
            config: ``img_size``, the sides of the volumes, and official options where they are not
                the published ones; ``int_steps`` is 0 if left out, as in the NestedMorph study.
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        config = {**config, **config.get("transformer", {})}
        config.pop("transformer", None)
        needed = {name: "size" for name in _SIZES if name in config} or {"img_size": "size"}
        given = published.arguments("ViTVNet", config, needed, _NAMES, _UNUSED)
        network = cls(**{"int_steps": 0, **given})
        ignored = r"(^|\.)grid$|num_batches_tracked$"
        published.load(network, state_dict, _RULES, ignored)
        return network


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv3d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def _normed(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


_SIZES = ("img_size", "inshape", "shape", "size")
_NAMES = {
    "hidden_size": "width",
    "num_layers": "depth",
    "num_heads": "heads",
    "mlp_dim": "inner",
    "dropout_rate": "dropout",
    "int_steps": "int_steps",
}
_UNUSED = (
    *("params", "patches", "patch_size", "attention_dropout_rate", "conv_first_channel"),
    *("encoder_channels", "down_factor", "down_num", "decoder_channels", "skip_channels"),
    *("n_dims", "n_skip"),
)
_EMBEDDINGS = "transformer.embeddings."
_RULES = (
    (r"^stem\.0\.", _EMBEDDINGS + "hybrid_model.inc.double_conv."),
    (r"^stem\.([12])\.", _EMBEDDINGS + r"hybrid_model.down\1.maxpool_conv.1.double_conv."),
    (r"^patches\.", _EMBEDDINGS + "patch_embeddings."),
    (r"^positions$", _EMBEDDINGS + "position_embeddings"),
    (r"^layers\.", "transformer.encoder.layer."),
    (r"\.(query|key|value|out)\.", r".attn.\1."),
    (r"\.(fc\d)\.", r".ffn.\1."),
    (r"^norm\.", "transformer.encoder.encoder_norm."),
    (r"^bottom\.", "decoder.conv_more."),
    (r"^up\.", "decoder.blocks."),
    (r"^flow\.", "reg_head.0."),
)
