"""Deformable attention over maps of several sizes (Zhu et al., Deformable DETR, ICLR 2021).

Sizes: B images, S tokens of all maps one after the other, D width, h heads, L maps, P points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.wide import wide

WIDE_HEAD = 32
"""Features of a head from which on rows of a table are read faster than points of a map."""


@dataclass(frozen=True)
class Maps:
    """What is known of the tokens of L maps; it is the same for every image.

    Attributes:
        sizes: height and width of each map.
        extent: (L, 1, 2) width and height of each map, as a tensor.
        places: (S, 2) x and y of the middle of each token, from 0 to 1.
        positions: (S, D) what tells a token its place and map.
    """

    sizes: tuple[tuple[int, int], ...]
    extent: Tensor
    places: Tensor
    positions: Tensor

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of each map."""
        return [height * width for height, width in self.sizes]


class DeformableAttention(nn.Module):
    """Each token looks at P points of each map, which it places itself.

    Args:
        width: D.
        heads: h.
        levels: L.
        points: P.

    Raises:
        ValueError: if ``width`` is no multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.heads = heads
        self.levels = levels
        self.points = points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as published: each head looks in its own direction, all points count alike."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto a square
        reach = torch.arange(1, self.points + 1)[:, None]
        bias = (directions[:, None, None] * reach).expand(-1, self.levels, -1, -1)  # (h, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())

    def forward(self, queries: Tensor, values: Tensor, maps: Maps) -> Tensor:
        """Give (B, S, D).

        Args:
            queries: (B, S, D) which place the points and weigh them.
            values: (B, S, D) what is looked at.
            maps: what the tokens are of.
        """
        shape = (*queries.shape[:2], self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries).view(*shape, 2)
        weights = self.attention_weights(queries).view(*shape[:3], -1).softmax(-1).view(shape)
        table = self.value_proj(values).unflatten(-1, (self.heads, -1))  # (B, S, h, D/h)
        weights = weights.to(table.dtype)
        rows = table.shape[-1] >= WIDE_HEAD and table.device.type == "cpu"
        if rows and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = read_rows(wide(table), wide(offsets), wide(weights), maps).to(table.dtype)
        else:
            found = read_points(table, offsets, weights, maps)
        output: Tensor = self.output_proj(found)
        return output


def read_points(table: Tensor, offsets: Tensor, weights: Tensor, maps: Maps) -> Tensor:
    """Sum what the points of each map show (B, S, D), between its four nearest tokens.

    Args:
        table: (B, S, h, D/h) the values.
        offsets: (B, S, h, L, P, 2) of the points from the token that looks, in tokens of each map.
        weights: (B, S, h, L, P) of the points.
        maps: what the tokens are of.
    """
    batch, tokens, heads, _ = table.shape
    places = 2 * maps.places.to(offsets.dtype) - 1  # grid_sample counts from -1 to 1
    grid = places[:, None, None, None] + offsets * (2 / maps.extent).to(offsets.dtype)
    grid = grid.permute(3, 0, 2, 1, 4, 5).flatten(1, 2).to(table.dtype)  # (L, B h, S, P, 2)
    share = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)  # (L, B h, S, P)
    rows = table.permute(0, 2, 3, 1).reshape(batch * heads, -1, tokens)  # (B h, D/h, S)
    total: Tensor | None = None
    pieces = torch.split(rows, maps.tokens, -1)
    for number, (piece, size) in enumerate(zip(pieces, maps.sizes, strict=True)):
        seen = F.grid_sample(
            piece.reshape(batch * heads, -1, *size), grid[number], align_corners=False
        )
        part = (seen * share[number, :, None]).sum(-1)  # (B h, D/h, S)
        total = part if total is None else total + part
    assert total is not None
    return total.view(batch, -1, tokens).mT


def read_rows(table: Tensor, offsets: Tensor, weights: Tensor, maps: Maps) -> Tensor:
    """Do as :func:`read_points`, but read the values as rows of one table.

    Each query is a bag of weighted rows, which needs no memory for what the single points show. A
    map has rows of zeros around it: one column before each line, which ends the line above too.
    """
    batch, tokens, heads, width = table.shape
    stride = maps.extent[..., 0].int() + 1  # (L, 1)
    parts, starts, rows = [], [], 0
    for piece, size in zip(torch.split(table, maps.tokens, 1), maps.sizes, strict=True):
        framed = F.pad(piece.reshape(batch, *size, heads, width), (0, 0, 0, 0, 1, 0, 1, 2)).flatten(
            1, 2
        )
        parts.append(F.pad(framed, (0, 0, 0, 0, 0, 2)))  # (B, R, h, D/h)
        starts.append(rows)
        rows += parts[-1].shape[1]
    device = table.device
    first = torch.tensor(starts, device=device, dtype=torch.int32)[:, None]  # (L, 1)
    image = torch.arange(batch, device=device, dtype=torch.int32)[:, None, None, None, None] * rows
    head = torch.arange(heads, device=device, dtype=torch.int32)[:, None, None]
    begin = (image + first) * heads + head
    extent = maps.extent.to(offsets.dtype)
    places = maps.places.to(offsets.dtype)[:, None, None, None] * extent + 0.5
    place = (places + offsets).clamp(min=0).minimum(extent + 1)  # (B, S, h, L, P, 2), framed
    low = place.floor()
    share = torch.stack([1 - (place - low), place - low], -1)  # (B, S, h, L, P, 2, 2)
    left, top = low.int().unbind(-1)
    corners = torch.stack([0 * stride, 0 * stride + 1, stride, stride + 1], -1) * heads
    index = (top * (stride * heads) + left * heads + begin)[..., None] + corners
    above = share[..., 1, :] * weights[..., None]
    weight = above[..., :, None] * share[..., None, 0, :]  # (B, S, h, L, P, 2, 2)
    bags = batch * tokens * heads
    found = F.embedding_bag(
        index.view(bags, -1),
        torch.cat(parts, 1).view(-1, width),
        mode="sum",
        per_sample_weights=weight.view(bags, -1),
    )
    return found.view(batch, tokens, heads * width)


class DeformableLayer(nn.Module):
    """A layer of the encoder of Mask2Former: deformable self-attention and two linear maps.

    Args:
        width: D.
        heads: of the attention.
        feedforward: width inside the two linear maps.
        levels: L.
        points: P.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, levels: int = 3, points: int = 4
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, levels, points)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, state: Tensor, maps: Maps) -> Tensor:
        """Refine the tokens (B, S, D) of the maps."""
        seen = self.attention(state + maps.positions, state, maps)
        state = self.attention_norm(state + seen)
        output: Tensor = self.norm(state + self.contract(F.relu(self.expand(state))))
        return output


def sine_positions(height: int, width: int, features: int, like: Tensor) -> Tensor:
    """Tell each place of a map its row and column by sines: (height width, features).

    Rows and columns count from 1 and end at 2 pi; wave lengths grow to 10000 of that (Carion et
    al., DETR, ECCV 2020).

    Args:
        height: rows.
        width: columns.
        features: a multiple of 4; the first half tells the row.
        like: a tensor of the device and kind of numbers wished for.
    """
    half = features // 2
    pairs = torch.arange(half // 2, device=like.device, dtype=torch.float32)
    lengths = 10_000 ** (2 * pairs / half)

    def axis(count: int) -> Tensor:
        steps = torch.arange(1, count + 1, device=like.device) / (count + 1e-6) * (2 * math.pi)
        angles = steps[:, None] / lengths  # (count, half / 2)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    rows, columns = axis(height)[:, None], axis(width)[None]
    whole = [each.expand(height, width, half) for each in (rows, columns)]
    return torch.cat(whole, -1).flatten(0, 1).to(like.dtype)


def middles(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Give x and y of the middle of each token of maps (S, 2), from 0 to 1."""

    def of(height: int, width: int) -> Tensor:
        down = (torch.arange(height, device=like.device) + 0.5) / height
        right = (torch.arange(width, device=like.device) + 0.5) / width
        grid = torch.meshgrid(down, right, indexing="ij")
        return torch.stack([grid[1], grid[0]], -1).flatten(0, 1)

    return torch.cat([of(*size) for size in sizes])
