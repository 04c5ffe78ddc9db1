"""Attention by positive random features of rotated queries and keys.

A token's weight for another is the product of their features, so the sums over all tokens before
one are all that has to be kept of them (Katharopoulos et al., Transformers are RNNs, ICML 2020;
random features: Choromanski et al., Rethinking Attention with Performers, ICLR 2021; rotation by
position: Su et al., RoFormer, 2021).
Sizes: B sequences, L tokens, D width, h heads of width H = D / h, F random features.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.wide import wide


class Rotation(NamedTuple):
    """Cosines and sines of the angles that turn queries and keys, (1 or B, 1, L, H)."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Rotate ``x`` (B, h, L, H), the first half of each vector against the second."""
        low, high = x.chunk(2, -1)
        return x * self.cos + torch.cat([-high, low], -1) * self.sin


def rotation(position: Tensor, size: int) -> Rotation:
    """Give the angles at ``position`` (1 or B, L) for vectors of ``size`` H."""
    speed = 10_000 ** (-torch.arange(0, size, 2, device=position.device) / size)  # (H / 2,)
    angle = position[:, None, :, None].float() * speed  # (1 or B, 1, L, H / 2)
    angle = torch.cat([angle, angle], -1)
    return Rotation(angle.cos(), angle.sin())


def orthogonal_features(size: int, count: int) -> Tensor:
    """Draw random directions (size, count): orthogonal in blocks, with the lengths of Gaussians."""
    blocks = []
    for start in range(0, count, size):
        gaussian = torch.randn(size, size)
        orthogonal = torch.linalg.qr(gaussian).Q * gaussian.norm(dim=1)
        blocks.append(orthogonal[:, : count - start])
    return torch.cat(blocks, 1)


def causal_sums(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor | None, block: int
) -> tuple[Tensor, Tensor]:
    """Sum values, weighted by query · key, over each token and those before it.

    Inside a block of tokens the weights are written out, a masked square; of all blocks before it
    only the sums are kept. One block is the quadratic form of linear attention, blocks of one token
    are its recurrent form, and all give the same.

    Args:
        query: features (B, h, L, F).
        key: features (B, h, L, F).
        value: (B, h, L, E).
        before: the sums (B, h, F, E) of earlier tokens; None at the beginning.
        block: tokens in a block.

    Returns:
        (B, h, L, E), and the sums with these tokens.
    """
    mixed = []
    for q, k, v in zip(*(torch.split(x, block, 2) for x in (query, key, value)), strict=True):
        if q.shape[2] == 1:  # one pass over the sums, in place of three
            before = k.mT * v if before is None else torch.addcmul(before, k.mT, v)
            mixed.append(q @ before)
            continue
        own = (q @ k.mT).tril() @ v  # (B, h, block, E)
        mixed.append(own if before is None else own + q @ before)
        before = k.mT @ v if before is None else before + k.mT @ v
    assert before is not None
    return torch.cat(mixed, 2), before


class LinearAttention(nn.Module):
    """Multi-head attention by positive random features, in float32 even under autocast.

    Args:
        width: D.
        heads: h.
        features: F.
        causal: let a token see those before it alone.
        redraw: draw the random features anew in each training pass.
        eps: bounds the sum of a token's weights below.
        shifted: add ``eps`` to the sum instead.
        block: the longest sequence whose weights are written out.
    """

    directions: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        features: int,
        *,
        causal: bool,
        redraw: bool,
        eps: float,
        shifted: bool,
        block: int,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.redraw = redraw
        self.eps = eps
        self.shifted = shifted
        self.block = block
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.register_buffer("directions", orthogonal_features(width // heads, features))

    def draw(self) -> None:
        """Draw the random features anew."""
        size, count = self.directions.shape
        self.directions.copy_(orthogonal_features(size, count))

    def forward(
        self, x: Tensor, turned: Rotation, real: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend over ``x`` (B, L, D) and what ``before`` (B, h, F, H + 1) holds.

        ``real`` (B, L) is False on padding, which no token sees.
        """
        if self.redraw and self.training:
            self.draw()
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        with torch.autocast(x.device.type, enabled=False):
            directions = wide(self.directions)
            q, k = ((turned.turn(wide(part)) @ directions).relu() for part in (q, k))
            if real is not None:
                k = k * real[:, None, :, None]
            v = F.pad(wide(v), (0, 1), value=1.0)  # (B, h, L, H + 1): the ones add up the weights
            if self.causal:
                sums, state = causal_sums(q, k, v, before, self.block)
            else:
                state = k.mT @ v  # (B, h, F, H + 1)
                sums = q @ state
            mixed, weight = sums[..., :-1], sums[..., -1:]
            mixed = mixed / (weight + self.eps if self.shifted else weight.clamp(min=self.eps))
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2).to(x.dtype))  # (B, L, D)
        return attended, state
