"""SegFormer: a hierarchical transformer without positions, and linear maps that join its stages.

Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers,
NeurIPS 2021, arXiv 2105.15203; the layers are those of transformers.
Sizes: B images of H x W pixels, K classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from core.networks.hugging_face import HuggingFace
from core.published import renamed
from domains.vision.networks.outputs import SegmentationOutput

LEAST = 32
"""The side that the stages need; smaller images are filled up with their mean colour."""


class SegFormer(HuggingFace):
    """Segment images of any height and width; ``model/`` is a folder that transformers loads.

    Args:
        classes: K.
        config: the published configuration, as in ``config.json``, or the part of it that differs
            from B0, the smallest size; ``--checkpoint`` fills it in.

    Raises:
        UserError: if the configuration is none of a SegFormer.

    Example:
        >>> import torch
        >>> SegFormer(classes=11)(torch.zeros(1, 3, 45, 70)).logits.shape
        torch.Size([1, 11, 45, 70])
    """

    auto: ClassVar[str] = "AutoModelForSemanticSegmentation"

    def __init__(self, classes: int, config: dict[str, Any] | None = None) -> None:
        if classes < 1:
            raise ValueError(f"classes={classes} must be at least 1")
        self.classes = classes
        super().__init__({"model_type": "segformer", **(config or {})})

    def forward(self, images: Tensor) -> SegmentationOutput:  # type: ignore[override]
        """Score the classes of every pixel of ``images`` (B, 3, H, W), normalised."""
        height, width = images.shape[2:]
        padded = F.pad(images, (0, max(LEAST - width, 0), 0, max(LEAST - height, 0)))
        scores = self.model(pixel_values=padded).logits  # (B, K, H/4, W/4)
        logits = F.interpolate(scores, padded.shape[2:], mode="bilinear", align_corners=False)
        return SegmentationOutput(logits[..., :height, :width])

    @property
    def stages(self) -> list[nn.Module]:
        """The stages of the encoder."""
        return list(self.body.stages)  # type: ignore[arg-type]

    @property
    def head(self) -> list[nn.Module]:
        """What joins the stages and scores the classes."""
        return [self.model.decode_head]

    def _labels(self) -> dict[str, Any]:
        return {"num_labels": self.classes}

    @staticmethod
    def translated(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give tensors by the names of published files those of the modules; ours keep theirs."""
        return {renamed(name, _RULES.items()): tensor for name, tensor in state_dict.items()}


_RULES = {
    r"encoder\.patch_embeddings\.(\d+)\.": r"stages.\1.patch_embeddings.",
    r"encoder\.block\.(\d+)\.": r"stages.\1.blocks.",
    r"encoder\.layer_norm\.(\d+)\.": r"stages.\1.layer_norm.",
    r"attention\.self\.([qkv])\w+\.": r"attention.\1_proj.",
    r"attention\.self\.sr\.": "attention.sequence_reduction.sequence_reduction.",
    r"attention\.self\.layer_norm\.": "attention.sequence_reduction.layer_norm.",
    r"attention\.output\.dense\.": "attention.o_proj.",
    r"mlp\.dense([12])\.": r"mlp.fc\1.",
    r"\.layer_norm_1\.": ".layernorm_before.",
    r"\.layer_norm_2\.": ".layernorm_after.",
    r"decode_head\.linear_c\.": "decode_head.linear_projections.",
}
