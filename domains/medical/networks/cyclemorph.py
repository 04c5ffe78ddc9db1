"""CycleMorph: a generator that registers one way, trained with a second one that goes back.

Kim et al., CycleMorph: Cycle consistent unsupervised deformable image registration, Medical Image
Analysis 2021. The cycle is a matter of training: two of these networks, each given what the other
has warped.
Sizes: B pairs of D x H x W voxels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core import published
from domains.medical.networks.parts import SIZES, RegistrationOutput, convolution, joined
from domains.medical.warping import warp


class Up(nn.Module):
    """Double a map's places by a transposed convolution, join what was skipped, and convolve."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose3d(inputs, inputs, 3, 2, padding=1, output_padding=1)
        self.block = convolution(inputs + skip, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, inputs, d, h, w) to (B, outputs, 2 d, 2 h, 2 w)."""
        mapped: Tensor = self.block(torch.cat([skip, self.upconv(x)], 1))
        return mapped


class CycleMorph(nn.Module):
    """Register volumes whose sides are multiples of 16.

    Args:
        encoder: channels of its five levels.
        decoder: channels of three levels, of a convolution, of the finest level, and 3.

    Raises:
        ValueError: if there are other numbers of levels.

    Example:
        >>> volumes = torch.zeros(1, 1, 16, 32, 16)
        >>> CycleMorph()(volumes, volumes).flow.shape
        torch.Size([1, 3, 16, 32, 16])
    """

    divisor = 16

    def __init__(
        self,
        encoder: Sequence[int] = (16, 32, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 8, 8, 3),
    ) -> None:
        super().__init__()
        if len(encoder) != 5 or len(decoder) != 6 or decoder[-1] != 3:
            raise ValueError(
                f"encoder={encoder} must name five levels, decoder={decoder} six, the last 3"
            )
        self.encoder = tuple(encoder)
        self.decoder = tuple(decoder)
        pairs = enumerate(zip((2, *encoder), encoder, strict=False))
        self.down = nn.ModuleList(
            convolution(*pair, stride=2 if level else 1) for level, pair in pairs
        )
        e0, e1, e2, e3, e4 = encoder
        d0, d1, d2, keep, d3, _ = decoder
        self.up = nn.ModuleList([Up(e4, e3, d0), Up(d0, e2, d1), Up(d1, e1, d2), Up(keep, e0, d3)])
        self.keep = convolution(d2, keep)
        self.flow = nn.Conv3d(d3, 3, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions as published, normally by He's rule."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register ``moving`` to ``fixed``, both (B, 1, D, H, W) in [0, 1]."""
        x = joined(moving, fixed, self.divisor)
        skips = []
        for conv in self.down:
            x = conv(x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = up(self.keep(x) if len(skips) == 1 else x, skips.pop())
        flow = self.flow(x)
        return RegistrationOutput(warp(moving, flow), flow)

    @property
    def stages(self) -> list[nn.Module]:
        """The levels of the encoder, then those of the decoder."""
        return [*self.down, *self.up[:3], self.keep, self.up[3]]

    @property
    def head(self) -> list[nn.Module]:
        """The layer that gives the flow."""
        return [self.flow]

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "CycleMorph":
        """Build from the official arguments and the parameter names of one generator.

        Args:
            config: ``encoder_nc`` and ``decoder_nc``, the published ones if left out.
            state_dict: the official entries of ``netG_A`` or ``netG_B``, with ``model.`` before
                each name or without.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        given = published.arguments("CycleMorph", config, {}, _NAMES, (*SIZES, "input_nc"))
        network = cls(**given)
        entries = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
        published.load(network, entries, _RULES)
        return network


_NAMES = {"encoder_nc": "encoder", "decoder_nc": "decoder"}
_NAMES |= {name: name for name in ("encoder", "decoder")}
_RULES = (
    (r"^down\.0\.", "inconv.block.block."),
    (r"^down\.([1-4])\.", r"downconv\1.block.block."),
    *((rf"^up\.{level}\.", f"upconv{level + 1}.") for level in range(4)),
    (r"(upconv\d)\.block\.", r"\1.block.block."),
    (r"^keep\.", "keepblock.block."),
    (r"^flow\.", "outconv.upconv."),
)
