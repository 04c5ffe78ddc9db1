"""Any pretrained transformer that points at the first and the last token of an answer."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from core.networks.hugging_face import HuggingFace


class SpanExtractor(HuggingFace):
    """Give the logits (B, L, 2) of each token to be the first and the last of the answer.

    Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019. Plain transformers
    loads it as ``AutoModelForQuestionAnswering``.

    Args:
        config: the published configuration, as in ``config.json``; ``--checkpoint`` fills it in.
    """

    auto: ClassVar[str] = "AutoModelForQuestionAnswering"

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)

    def read(self, outputs: Any, mask: Tensor) -> Tensor:
        """Put the two logits of each token side by side."""
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
