"""Backbones of transformers, as maps at 1/4, 1/8, 1/16 and 1/32 of an image."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

SWIN = {"model_type": "swin", "drop_path_rate": 0.3}
RESNET = {"model_type": "resnet"}
NAMED: Mapping[str, Mapping[str, Any]] = {
    "swin_tiny": {**SWIN, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swin_small": {**SWIN, "embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swin_base": {
        **SWIN,
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
    },
    "swin_large": {
        **SWIN,
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": 12,
    },
    "resnet50": {**RESNET, "depths": [3, 4, 6, 3]},
    "resnet101": {**RESNET, "depths": [3, 4, 23, 3]},
}
"""The sizes of the paper of Mask2Former."""
STAGES = ("stage1", "stage2", "stage3", "stage4")


class Backbone(nn.Module):
    """A Swin transformer or a ResNet; the maps of Swin have a norm each.

    Args:
        given: a name of :data:`NAMED`, or the configuration of a backbone of transformers:
            ``model_type`` (``swin`` or ``resnet``) and sizes by their names there.

    Raises:
        ValueError: if there is no such backbone.
    """

    def __init__(self, given: str | Mapping[str, Any]) -> None:
        super().__init__()
        if isinstance(given, str) and given not in NAMED:
            raise ValueError(f"backbone={given!r} must be one of {', '.join(NAMED)}")
        config = dict(NAMED[given] if isinstance(given, str) else given)
        self.kind = config.pop("model_type", None)
        if self.kind not in ("swin", "resnet"):
            raise ValueError(f"backbone: model_type={self.kind!r} must be 'swin' or 'resnet'")
        import transformers

        config = {key: value for key, value in config.items() if key != "out_indices"}
        settings = transformers.AutoConfig.for_model(
            self.kind, **{**config, "out_features": list(STAGES)}
        )
        builder: Any = transformers.AutoBackbone
        self.model: Any = builder.from_config(settings)
        if self.kind == "swin":  # a norm that no map passes through
            self.model.swin.layernorm = nn.Identity()
        self.channels: tuple[int, ...] = tuple(self.model.channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to four maps (B, C_i, H/s, W/s), s = 4, 8, 16, 32, rounded up."""
        maps: tuple[Tensor, ...] = self.model(images).feature_maps
        return maps

    @property
    def stages(self) -> list[nn.Module | list[nn.Module]]:
        """The stem and the four stages in order; they hold every parameter once."""
        if self.kind == "resnet":
            return [self.model.embedder, *self.model.encoder.stages]
        layers, norms = self.model.swin.encoder.layers, self.model.hidden_states_norms
        pairs = zip(layers, STAGES, strict=True)
        return [self.model.swin.embeddings, *([layer, norms[name]] for layer, name in pairs)]
