"""Any pretrained transformer with outputs for each of its tokens."""

from typing import Any, ClassVar

from torch import Tensor

from core.networks.hugging_face import HuggingFace


class TokenClassifier(HuggingFace):
    """Give the logits (B, L, K) of each token, K outputs of all heads together.

    The head is that of the architecture, so that plain transformers loads it as
    ``AutoModelForTokenClassification``.

    Args:
        config: the published configuration, as in ``config.json``; ``--checkpoint`` fills it in.
        heads: what the outputs mean; see :class:`core.networks.hugging_face.HuggingFace`.
    """

    auto: ClassVar[str] = "AutoModelForTokenClassification"

    def read(self, outputs: Any, mask: Tensor) -> Tensor:
        """Take the logits."""
        logits: Tensor = outputs.logits
        return logits
