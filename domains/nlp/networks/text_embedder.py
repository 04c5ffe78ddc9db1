"""Any pretrained transformer as an encoder of whole texts."""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from core.layers.wide import wide
from core.networks.hugging_face import HuggingFace

Pooling = Literal["mean", "first", "last"]


class TextEmbedder(HuggingFace):
    """Give one vector (B, D) a text.

    Reimers and Gurevych, Sentence-BERT, 2019. Plain transformers loads it as ``AutoModel``.

    Args:
        config: the published configuration, as in ``config.json``; ``--checkpoint`` fills it in.
        pooling: the ``mean`` of a text's states, its ``first``, or its ``last`` one.
        normalise: scale each vector to length 1.
    """

    auto: ClassVar[str] = "AutoModel"

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        pooling: Pooling = "mean",
        normalise: bool = True,
    ) -> None:
        if pooling not in ("mean", "first", "last"):
            raise ValueError(f"pooling={pooling!r} must be 'mean', 'first' or 'last'")
        super().__init__(config)
        self.pooling = pooling
        self.normalise = normalise

    def read(self, outputs: Any, mask: Tensor) -> Tensor:
        """Pool the states of the tokens, without the padding."""
        vectors = pooled(outputs.last_hidden_state, mask, self.pooling)
        return F.normalize(vectors, dim=-1) if self.normalise else vectors


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Make one vector (B, D) of the states (B, L, D) where ``mask`` (B, L) is 1."""
    if pooling == "mean":
        states = wide(states)
        weight = mask[..., None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    place = mask.argmax(1) if pooling == "first" else last
    return states[range(len(states)), place]
