"""What separators share that mask learnt frames: Conv-TasNet's way, as SpeechBrain's models go it.

Luo and Mesgarani, Conv-TasNet, IEEE/ACM Transactions on Audio, Speech, and Language Processing
2019. Sizes: B mixtures of L samples, C speakers, S frames, N features of a frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 16  # samples of a frame
STRIDE = KERNEL // 2


class MaskingSeparator(nn.Module):
    """Cut a mixture into learnt frames, mask these for each voice, and put them together again.

    A subclass gives ``features_by_voice``.

    Args:
        speakers: C.
        width: N, even.

    Raises:
        ValueError: if there is no speaker, or ``width`` is not even.
    """

    def __init__(self, speakers: int, width: int) -> None:
        super().__init__()
        if speakers < 1:
            raise ValueError(f"speakers={speakers} must be at least 1")
        if width < 2 or width % 2:
            raise ValueError(f"width={width} must be even, and at least 2")
        self.speakers = speakers
        self.width = width
        self.encoder = nn.Conv1d(1, width, KERNEL, STRIDE, bias=False)
        self.norm = nn.GroupNorm(1, width, eps=1e-8)  # over the whole utterance
        self.project_in = nn.Linear(width, width, bias=False)
        self.act = nn.PReLU()
        self.by_voice = nn.Linear(width, speakers * width)
        self.signal = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.project_out = nn.Linear(width, width, bias=False)
        self.decoder = nn.ConvTranspose1d(width, 1, KERNEL, STRIDE, bias=False)

    @property
    def head(self) -> nn.Module:
        """What divides the frames among the speakers."""
        return self.by_voice

    def forward(self, mixture: Tensor) -> Tensor:
        """Separate ``mixture`` (B, L), mono, into its voices (B, C, L).

        The last samples that fill no frame, up to seven, are zero; a mixture shorter than a frame
        is filled up with zeros.

        Raises:
            ValueError: if it is of another shape, or empty.
        """
        if mixture.ndim != 2 or not mixture.numel():
            raise ValueError(f"mixture {tuple(mixture.shape)} must be (mixtures, samples)")
        length = mixture.shape[1]
        padded = F.pad(mixture, (0, max(KERNEL - length, 0))).unsqueeze(1)
        encoded = F.relu(self.encoder(padded))  # (B, N, S)
        y = self.features_by_voice(self.project_in(self.norm(encoded).mT))  # (B, S, C, N)
        y = self.project_out(torch.tanh(self.signal(y)) * torch.sigmoid(self.gate(y)))
        parts = (F.relu(y) * encoded.mT.unsqueeze(2)).permute(0, 2, 3, 1)  # (B, C, N, S)
        voices = self.decoder(parts.flatten(0, 1)).view(len(mixture), self.speakers, -1)
        return F.pad(voices, (0, length - voices.shape[2]))  # (B, C, L)

    def features_by_voice(self, x: Tensor) -> Tensor:
        """Map the frames ``x`` (B, S, N) to what each voice's mask is made of, (B, S, C, N)."""
        raise NotImplementedError


def frequencies(width: int, like: Tensor) -> Tensor:
    """Give ``width / 2`` falling frequencies; found in float32 whatever the network's precision."""
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width
    return (1.0 / 10000**steps).to(like.dtype)
