"""Conv-TasNet: a stack of dilated convolutions finds a mask of learnt frames for each voice.

Luo and Mesgarani, Conv-TasNet: Surpassing Ideal Time-Frequency Magnitude Masking for Speech
Separation, IEEE/ACM Transactions on Audio, Speech, and Language Processing 2019, arXiv 1809.07454;
the network is torchaudio's. Sizes: B mixtures of L samples, C speakers.
"""

from typing import Literal

import torchaudio
from torch import Tensor, nn


class ConvTasNet(nn.Module):
    """Separate the voices of a mixture of any length; the sizes are the published ones.

    Args:
        speakers: C.
        kernel: samples of a frame; the next one begins half a frame later.
        features: learnt features of a frame.
        width: channels of the state between two blocks.
        inner: channels inside a block.
        taps: frames that a convolution sees, dilated.
        depth: blocks of a stack, each dilated twice as far as the one before.
        stacks: how often the dilation starts anew.
        activation: of the masks, ``sigmoid`` or ``relu``.

    Raises:
        ValueError: if there is no speaker.

    Example:
        >>> import torch
        >>> network = ConvTasNet(features=16, width=8, inner=16, depth=2, stacks=1)
        >>> network(torch.zeros(3, 1000)).shape
        torch.Size([3, 2, 1000])
    """

    def __init__(
        self,
        speakers: int = 2,
        *,
        kernel: int = 16,
        features: int = 512,
        width: int = 128,
        inner: int = 512,
        taps: int = 3,
        depth: int = 8,
        stacks: int = 3,
        activation: Literal["sigmoid", "relu"] = "sigmoid",
    ) -> None:
        super().__init__()
        if speakers < 1:
            raise ValueError(f"speakers={speakers} must be at least 1")
        self.speakers = speakers
        self.kernel = kernel
        self.features = features
        self.width = width
        self.inner = inner
        self.taps = taps
        self.depth = depth
        self.stacks = stacks
        self.activation = activation
        self.model = torchaudio.models.ConvTasNet(
            num_sources=speakers,
            enc_kernel_size=kernel,
            enc_num_feats=features,
            msk_kernel_size=taps,
            msk_num_feats=width,
            msk_num_hidden_feats=inner,
            msk_num_layers=depth,
            msk_num_stacks=stacks,
            msk_activate=activation,
        )

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks, in order."""
        layers: nn.ModuleList = self.model.mask_generator.conv_layers
        return layers

    @property
    def head(self) -> nn.Module:
        """What divides the frames among the speakers."""
        by_voice: nn.Module = self.model.mask_generator.output_conv
        return by_voice

    def forward(self, mixture: Tensor) -> Tensor:
        """Separate ``mixture`` (B, L), mono, into its voices (B, C, L).

        Raises:
            ValueError: if it is of another shape, or empty.
        """
        if mixture.ndim != 2 or not mixture.numel():
            raise ValueError(f"mixture {tuple(mixture.shape)} must be (mixtures, samples)")
        voices: Tensor = self.model(mixture.unsqueeze(1))
        return voices
