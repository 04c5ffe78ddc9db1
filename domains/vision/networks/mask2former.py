"""Mask2Former: queries that find masks, and the class of each.

Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022. A
backbone gives maps; the layers of the pixel decoder refine those at 1/32, 1/16 and 1/8 by
deformable attention, and these are what early exits leave between (ECO-M2F); a decoder asks the
refined maps by queries, each of which looks where the mask lies that it has found so far.
Sizes: B images of H x W pixels, D width, Q queries, K classes, S tokens of the three maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.warm_start import check_fit
from domains.vision import mask2former_published as published
from domains.vision.networks.backbones import Backbone
from domains.vision.networks.deformable import DeformableLayer, Maps, middles, sine_positions
from domains.vision.networks.outputs import MaskOutput

LEVELS = 3
GROUPS = 32


class Refined(NamedTuple):
    """What a pixel decoder makes of an image: three maps, the coarsest first, and its pixels.

    ``tokens`` (B, h w, D) of each map and their ``positions`` (h w, D); ``sizes`` h and w;
    ``pixels`` (B, D, H/4, W/4) embeddings.
    """

    tokens: list[Tensor]
    positions: list[Tensor]
    sizes: tuple[tuple[int, int], ...]
    pixels: Tensor


class PixelDecoder(nn.Module):
    """Refine maps among one another, and give each pixel at 1/4 an embedding.

    Args:
        channels: of the maps at 1/4, 1/8, 1/16 and 1/32.
        width: D.
        heads: of the deformable attention.
        layers: of it.
        feedforward: width inside the linear maps of a layer.
    """

    def __init__(
        self, channels: Sequence[int], width: int, heads: int, layers: int, feedforward: int
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(  # the coarsest map first
            nn.Sequential(nn.Conv2d(count, width, 1), nn.GroupNorm(GROUPS, width))
            for count in reversed(channels[1:])
        )
        self.level_embed = nn.Embedding(LEVELS, width)
        self.layers = nn.ModuleList(
            DeformableLayer(width, heads, feedforward, LEVELS) for _ in range(layers)
        )
        self.lateral = nn.Sequential(
            nn.Conv2d(channels[0], width, 1, bias=False), nn.GroupNorm(GROUPS, width)
        )
        self.output = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width)
        )
        self.mask_features = nn.Conv2d(width, width, 1)
        for projection in self.projections:
            conv = projection.get_submodule("0")
            nn.init.xavier_uniform_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        for conv in (self.lateral[0], self.output[0], self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
        nn.init.zeros_(self.mask_features.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Refined:
        """Refine the maps of a backbone at 1/4, 1/8, 1/16 and 1/32."""
        pairs = zip(self.projections, reversed(maps[1:]), strict=True)
        projected = [project(each) for project, each in pairs]
        sizes = tuple((each.shape[-2], each.shape[-1]) for each in projected)
        state = torch.cat([each.flatten(2).mT for each in projected], 1)  # (B, S, D)
        plain = [sine_positions(*size, state.shape[-1], state) for size in sizes]
        levels = self.level_embed.weight
        known = Maps(
            sizes,
            torch.tensor([[size[::-1]] for size in sizes], dtype=torch.float32).to(state.device),
            middles(sizes, state),
            torch.cat([each + level for each, level in zip(plain, levels, strict=True)]),
        )
        for layer in self.layers:
            state = layer(state, known)
        parts = list(torch.split(state, known.tokens, 1))
        fine = parts[-1].mT.reshape(len(state), -1, *sizes[-1])  # (B, D, H/8, W/8)
        lateral = self.lateral(maps[0])
        larger = F.interpolate(fine, lateral.shape[-2:], mode="bilinear", align_corners=False)
        pixels = self.mask_features(F.relu(self.output(lateral + larger)))
        return Refined(parts, plain, sizes, pixels)


class Attention(nn.Module):
    """Attention of queries to keys that may be given other positions than values.

    Args:
        width: D.
        heads: that share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)  # as one map of D to 3 D
        nn.init.xavier_uniform_(self.out_proj.weight)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(linear.bias)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Give (B, Q, D).

        Args:
            queries: (B, Q, D).
            keys: (B, S, D).
            values: (B, S, D).
            allowed: (B, 1, Q, S) True where a query may look.
        """
        pairs = zip((self.q_proj, self.k_proj, self.v_proj), (queries, keys, values), strict=True)
        q, k, v = (
            project(each).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, each in pairs
        )  # (B, heads, Q or S, D / heads)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        output: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return output


class DecoderLayer(nn.Module):
    """Queries look at a map where they are allowed to, then at one another.

    Args:
        width: D.
        heads: of both attentions.
        feedforward: width inside the two linear maps.
    """

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross_attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.self_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, state: Tensor, positions: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """Refine the queries (B, Q, D).

        Args:
            state: the queries.
            positions: (Q, D) that tell queries apart.
            keys: (B, S, D) of a map.
            values: (B, S, D) of it.
            allowed: (B, 1, Q, S) True where a query may look.
        """
        found = self.cross_attention(state + positions, keys, values, allowed)
        state = self.cross_norm(state + found)
        placed = state + positions
        state = self.self_norm(state + self.self_attention(placed, placed, state))
        output: Tensor = self.norm(state + self.contract(F.relu(self.expand(state))))
        return output


class MaskDecoder(nn.Module):
    """Q queries that find masks, layer by layer.

    Args:
        classes: K.
        width: D.
        queries: Q.
        heads: of the attentions.
        layers: after each of which, and before the first, masks are told.
        feedforward: width inside the linear maps of a layer.
    """

    def __init__(
        self, classes: int, width: int, queries: int, heads: int, layers: int, feedforward: int
    ) -> None:
        super().__init__()
        self.query_features = nn.Embedding(queries, width)
        self.query_positions = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes + 1)
        self.mask_embed = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, refined: Refined) -> list[tuple[Tensor, Tensor]]:
        """Give classes (B, Q, K + 1) and masks (B, Q, H/4, W/4) before and after each layer."""
        levels = self.level_embed.weight
        values = [each + level for each, level in zip(refined.tokens, levels, strict=True)]
        keys = [each + place for each, place in zip(values, refined.positions, strict=True)]
        state = self.query_features.weight.repeat(len(refined.pixels), 1, 1)  # (B, Q, D)
        told = [self._tell(state, refined.pixels)]
        for number, layer in enumerate(self.layers):
            at = number % LEVELS
            allowed = reach(told[-1][1], refined.sizes[at])
            state = layer(state, self.query_positions.weight, keys[at], values[at], allowed)
            told.append(self._tell(state, refined.pixels))
        return told

    def _tell(self, state: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        state = self.norm(state)
        first, second, third = self.mask_embed
        embedded = third(F.relu(second(F.relu(first(state)))))  # (B, Q, D)
        masks = torch.einsum("bqd,bdhw->bqhw", embedded, pixels)
        return self.class_embed(state), masks


def reach(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Say where queries may look (B, 1, Q, S): inside their masks; where one is empty, everywhere.

    Args:
        masks: (B, Q, h, w) logits at 1/4.
        size: of the map that is looked at.
    """
    small = F.interpolate(masks.detach(), size, mode="bilinear", align_corners=False)
    inside = (small >= 0).flatten(2)
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


class Mask2Former(nn.Module):
    """Find masks and their classes; sizes default to those of the paper.

    Args:
        classes: K.
        backbone: ``swin_tiny``, ``swin_small``, ``swin_base``, ``swin_large``, ``resnet50`` or
            ``resnet101``; or the configuration of a Swin or ResNet of transformers.
        width: D, a multiple of 32 and of ``heads``.
        queries: Q, the most masks of an image.
        heads: of every attention but the backbone's.
        encoder_layers: of the deformable attention.
        encoder_feedforward: width inside their linear maps.
        decoder_layers: of the queries.
        decoder_feedforward: width inside their linear maps.

    Raises:
        ValueError: if a size is below 1 or they do not go together.
    """

    def __init__(
        self,
        classes: int,
        backbone: str | dict[str, Any] = "swin_tiny",
        width: int = 256,
        queries: int = 100,
        heads: int = 8,
        encoder_layers: int = 6,
        encoder_feedforward: int = 1024,
        decoder_layers: int = 9,
        decoder_feedforward: int = 2048,
    ) -> None:
        super().__init__()
        sizes = {
            "classes": classes,
            "queries": queries,
            "heads": heads,
            "encoder_layers": encoder_layers,
            "encoder_feedforward": encoder_feedforward,
            "decoder_layers": decoder_layers,
            "decoder_feedforward": decoder_feedforward,
        }
        if wrong := [f"{name}={value}" for name, value in sizes.items() if value < 1]:
            raise ValueError(f"{', '.join(wrong)} must be at least 1")
        if width < 1 or width % GROUPS or width % heads:
            raise ValueError(f"width={width} must be a multiple of {GROUPS} and of heads={heads}")
        self.classes = classes
        self.backbone = backbone
        self.width = width
        self.queries = queries
        self.heads = heads
        self.encoder_layers = encoder_layers
        self.encoder_feedforward = encoder_feedforward
        self.decoder_layers = decoder_layers
        self.decoder_feedforward = decoder_feedforward
        self.body = Backbone(backbone)
        self.pixel_decoder = PixelDecoder(
            self.body.channels, width, heads, encoder_layers, encoder_feedforward
        )
        self.decoder = MaskDecoder(
            classes, width, queries, heads, decoder_layers, decoder_feedforward
        )

    def forward(self, images: Tensor) -> MaskOutput:
        """Map images (B, 3, H, W), normalised, to masks at 1/4 of their size, rounded up."""
        *earlier, (classes, masks) = self.decoder(self.pixel_decoder(self.body(images)))
        return MaskOutput(classes, masks, tuple(earlier))

    @property
    def stages(self) -> list[Any]:
        """The stages of the backbone, the way into the encoder, and its layers, which exits leave.

        With :attr:`head` they hold every parameter once.
        """
        pixel = self.pixel_decoder
        return [*self.body.stages, [pixel.projections, pixel.level_embed], *pixel.layers]

    @property
    def head(self) -> list[nn.Module]:
        """What follows the encoder: the embeddings of pixels, and the queries."""
        pixel = self.pixel_decoder
        return [pixel.lateral, pixel.output, pixel.mask_features, self.decoder]

    def gate_tokens(self, state: Tensor, images: Tensor) -> Tensor:
        """Pick out of the encoder's input (B, S, D) the tokens of the map at 1/32.

        They are what a gate of early exits sees of the images (B, 3, H, W).
        """
        height, width = (-(-side // 32) for side in images.shape[-2:])
        return state[:, : height * width]

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "Mask2Former":
        """Build from the configuration and the names of transformers.

        Args:
            config: a ``config.json`` of ``model_type`` mask2former; or its sizes in short.
            state_dict: the entries, by the names of its files or of its modules; what no output
                depends on may be there.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape, or
                if the configuration asks for what is not built.
        """
        network = cls(**published.sizes(config))
        state = cls.translated(state_dict)
        check_fit(network, state, "the published weights")
        network.load_state_dict(state)
        return network

    @staticmethod
    def translated(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the tensors of transformers our names; ours keep theirs."""
        return published.tensors(state_dict)
