"""Registration beside plain formulations of the same sums.

``python benchmarks/medical.py [ncc] [step] [--output FOLDER]``. ``ncc``: the local correlation of
two volumes with its gradient, whose box filter works axis by axis, beside a convolution with
9 x 9 x 9 ones and beside MONAI's loss. ``step``: forward and backward pass of NestedMorph under its
loss (local correlation and diffusion), without an optimizer, beside a transcription of its formulas
one by one: tokens flattened and transposed at each turn, maps of single places as convolutions,
heads in a loop. Both sides of ``step`` share the parameters and are first held to be equal. Sides
take turns, there and back, in one process, on one thread; seconds are process time and medians of
the rounds, for 64 x 64 x 64 voxels. Memory is what the work adds to a forked process at its peak,
for 96 x 96 x 96. A ratio is the other side's time over ours.
"""

from collections.abc import Callable, Mapping
from functools import partial

import measure
import torch
import torch.nn.functional as F
from measure import Row
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor, nn

from domains.medical.losses import diffusion, local_ncc
from domains.medical.networks.nested_morph import (
    DualBlock,
    EfficientAttention,
    Expand,
    FeedForward,
    LargeKernel,
    Level,
    NestedMorph,
)
from domains.medical.networks.parts import RegistrationOutput
from domains.medical.warping import warp

SIDE = 64
MEMORY_SIDE = 96
Size = tuple[int, ...]


def dense_ncc(x: Tensor, y: Tensor) -> Tensor:
    """Correlate with sums by one convolution with a full cube."""
    cube, n = torch.ones(1, 1, 9, 9, 9), 9**3
    sx, sy, sxx, syy, sxy = (
        F.conv3d(part, cube, padding=4) for part in (x, y, x * x, y * y, x * y)
    )
    cross = sxy - sx * sy / n
    return -(cross**2 / ((sxx - sx**2 / n) * (syy - sy**2 / n) + 1e-5)).mean()


def single(linear: nn.Linear, x: Tensor) -> Tensor:
    """Map the places of (B, C, d, h, w) by a convolution of width one."""
    return F.conv3d(x, linear.weight[:, :, None, None, None], linear.bias)


def attention(part: EfficientAttention, x: Tensor) -> Tensor:
    """Attend head by head in (B, C, d, h, w)."""
    keys, queries, values = (
        single(each, x).flatten(2) for each in (part.keys, part.queries, part.values)
    )
    heads = []
    for k, q, v in zip(keys.chunk(2, 1), queries.chunk(2, 1), values.chunk(2, 1), strict=True):
        context = k.softmax(2) @ v.mT
        heads.append(context.mT @ q.softmax(1))
    return single(part.reprojection, torch.cat(heads, 1).view(x.shape))


def feed_forward(part: FeedForward, x: Tensor, size: Size) -> Tensor:
    """Map tokens (B, N, C)."""
    near = part.dwconv(part.fc1(x).mT.reshape(len(x), -1, *size)).flatten(2).mT
    if part.norm1:
        near = part.norm1(near + part.fc1(x))
    mapped: Tensor = part.fc2(part.act(near))
    return mapped


def dual(block: DualBlock, x: Tensor, size: Size) -> Tensor:
    """Map tokens (B, N, C)."""
    volume = block.norm1(x).mT.reshape(len(x), -1, *size)
    x = x + attention(block.attn, volume).flatten(2).mT
    x = x + feed_forward(block.mlp1, block.norm2(x), size)
    y = block.norm3(x)
    x = x + y * block.channel_attn.fc(y.mean(1, keepdim=True))
    return x + feed_forward(block.mlp2, block.norm4(x), size)


def last(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise the channels of (B, C, d, h, w)."""
    normed: Tensor = norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    return normed


def large(block: LargeKernel, x: Tensor) -> Tensor:
    """Map (B, C, d, h, w)."""
    v = last(block.norm1, x)
    t = block.act(single(block.proj_1, v))
    t = t * single(block.weigh, block.far(block.near(t)))
    x = x + block.layer_scale_1[:, None, None, None] * (v + single(block.proj_2, t))
    inner = block.dwconv(single(block.fc1, last(block.norm2, x)))
    return x + block.layer_scale_2[:, None, None, None] * single(block.fc2, block.act(inner))


def expand(part: Expand, x: Tensor, size: Size) -> Tensor:
    """Map tokens (B, N, C) to (B, N f^3, outputs)."""
    f = part.factor
    d, h, w = size
    x = part.expand(x).view(len(x), d, h, w, f, f, f, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    expanded: Tensor = part.norm(x.reshape(len(x), d * h * w * f**3, -1))
    return expanded


def join(level: Level, x: Tensor, skip: Tensor) -> Tensor:
    """Decode tokens (B, N, C) with a skip (B, C, d, h, w)."""
    size = skip.shape[2:]
    x = level.linear(x)
    official = level.layout == "official"
    x = x.view(skip.shape) if official else x.mT.reshape(skip.shape)
    x = last(level.norm, x + level.gate(skip, x))
    if isinstance(level.blocks[0], DualBlock):
        tokens = x.flatten(2).mT
        for block in level.blocks:
            tokens = dual(block, tokens, size)
        return expand(level.up, tokens, size)
    for block in level.blocks:
        x = large(block, x)
    x = x.contiguous()
    tokens = x.view(len(x), -1, x.shape[1]) if official else x.flatten(2).mT
    return expand(level.up, tokens, size)


class Plain(nn.Module):
    """NestedMorph by its formulas one by one, with the parameters of ours."""

    def __init__(self, network: NestedMorph) -> None:
        super().__init__()
        self.network = network

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register."""
        n = self.network
        x, skips = torch.cat([moving, fixed], 1), []
        for stage in n.encoder:
            x = stage.proj(x)
            size = x.shape[2:]
            tokens = dual(stage.block, stage.embed_norm(x.flatten(2).mT), size)
            x = stage.norm(tokens).mT.reshape(x.shape).contiguous()
            skips.append(x)
        tokens = expand(n.level3, skips[3].flatten(2).mT, skips[3].shape[2:])
        for level, skip in zip((n.level2, n.level1, n.level0), skips[2::-1], strict=True):
            tokens = join(level, tokens, skip)
        volume = tokens.view(len(x), *moving.shape[2:], -1).permute(0, 4, 1, 2, 3)
        flow = n.flow(single(n.features, volume))
        return RegistrationOutput(warp(moving, flow), flow)


def correlate(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    """Take a loss and its gradient."""
    loss(x, y).backward()


def step(network: nn.Module, moving: Tensor, fixed: Tensor) -> None:
    """Take a forward and a backward pass."""
    output = network(moving, fixed)
    (local_ncc(output.warped, fixed) + diffusion(output.flow)).backward()
    network.zero_grad()


def compared(
    name: str,
    works: Mapping[str, Callable[[Tensor, Tensor], None]],
    required: Mapping[str, float | None],
    rounds: int,
) -> list[Row]:
    """Time what is done with two volumes; ours is the first."""
    x, y = torch.rand(2, 1, 1, SIDE, SIDE, SIDE)
    wide = torch.rand(2, 1, 1, MEMORY_SIDE, MEMORY_SIDE, MEMORY_SIDE)
    x.requires_grad_(), wide.requires_grad_()
    for work in works.values():  # what is done once is not counted
        work(x, y)
    memory = {key: measure.peak(partial(work, *wide)) for key, work in works.items()}
    rest = measure.peak(lambda: None)
    seconds = measure.alternate({key: partial(work, x, y) for key, work in works.items()}, rounds)
    ours, *others = works
    rows = []
    for other in others:
        note = f"{memory[ours] - rest:.0f} and {memory[other] - rest:.0f} MB at {MEMORY_SIDE}^3"
        times = (seconds[ours], seconds[other])
        rows.append(Row(name, other, times, required[other], note))
    return rows


def ncc() -> list[Row]:
    """Compare the local correlation and its gradient."""
    monai = LocalNormalizedCrossCorrelationLoss(kernel_size=9, smooth_nr=0.0, smooth_dr=1e-5)
    x, y = torch.rand(2, 1, 1, 24, 24, 24)
    for other in (dense_ncc, monai):
        gap = float((local_ncc(x, y) - other(x, y)).abs())
        assert gap <= 1e-4, f"the local correlation differs by {gap}"
    sides = {"ours": local_ncc, "9^3 filter": dense_ncc, "MONAI": monai}
    works = {name: partial(correlate, loss) for name, loss in sides.items()}
    return compared("local NCC and gradient", works, {"9^3 filter": 5.0, "MONAI": None}, 3)


def training() -> list[Row]:
    """Compare a training step of NestedMorph, in both layouts."""
    rows = []
    for layout in ("fixed", "official"):
        ours = NestedMorph(layout)
        nn.init.normal_(ours.flow.weight, std=0.1)
        plain = Plain(ours)
        pair = torch.rand(2, 1, 1, 32, 32, 32).unbind()
        with torch.no_grad():
            gap = float((ours.train()(*pair).flow - plain(*pair).flow).abs().max())
        assert gap <= 1e-4, f"NestedMorph differs from its formulas by {gap}"
        works = {"ours": partial(step, ours), "formulas": partial(step, plain)}
        rows += compared(f"NestedMorph {layout}, training step", works, {"formulas": 1.0}, 5)
    return rows


if __name__ == "__main__":
    measure.main({"ncc": ncc, "step": training}, "medical.png")
