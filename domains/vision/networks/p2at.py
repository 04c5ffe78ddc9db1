"""P2AT: a convolutional encoder, axial attention on its coarsest map, and two-way fusion back up.

Elmahdy et al., P2AT: Pyramid Pooling Axial Transformer for Real-Time Semantic Segmentation, 2023,
arXiv 2310.15025. The sums follow the released network; on a batch of one the global context is
normalised by running statistics, where the released one stops.
Sizes: B images of H x W pixels, K classes, C channels, h x w places of a map.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50

from core import published
from domains.vision.networks.outputs import SegmentationOutput

Size = Literal["s", "m", "l"]

WIDTH = 64
HEADS = 8
KEY = 16  # channels of a query and a key of each head
VALUE = 32  # channels of a value of each head
PLACES = 16  # learnt positions of an axis
_ENCODERS = {"s": resnet18, "m": resnet34, "l": resnet50}


class Unit(nn.Module):
    """A convolution, batch normalisation and a PReLU by channel.

    Args:
        inputs: channels before.
        outputs: channels after.
        kernel: odd side of the kernel.
        groups: of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, h, w) to (B, outputs, h, w)."""
        mapped: Tensor = self.act(self.bn(self.conv(x)))
        return mapped


class Encoder(nn.Module):
    """A ResNet of torchvision without its last layers.

    Args:
        size: ``s`` for ResNet-18, ``m`` for 34, ``l`` for 50.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        resnet = _ENCODERS[size](weights=None)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        last = resnet.fc.in_features
        self.channels = (last // 8, last // 4, last // 2, last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the maps of strides 4, 8, 16 and 32 of images (B, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x1 = self.layer1(x)
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x1, x2, x3, self.layer4(x3)


class PyramidPooling(nn.Module):
    """Weigh a map by averages of it over growing neighbourhoods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Unit(WIDTH, WIDTH)
        self.conv2 = Unit(3 * WIDTH, WIDTH, 3, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x`` (B, C, h, w); the smallest average enters twice, as released."""
        y = self.conv1(x)
        small = F.avg_pool2d(y, 3, stride=1, padding=1)
        middle = F.avg_pool2d(small, 5, stride=1, padding=2)
        large = F.avg_pool2d(middle, 7, stride=1, padding=3)
        pooled: Tensor = self.conv2(torch.cat([small, small, large], 1)) * y
        return pooled


class Detail(nn.Module):
    """Keep what is local, which attention along whole axes blurs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _normed(WIDTH, WIDTH)
        self.conv2 = _normed(WIDTH, WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        near = self.conv1(x)
        detail: Tensor = self.conv2(near) + near
        return detail


class AxialAttention(nn.Module):
    """Attention among the rows of a map, each row one token, and among its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PyramidPooling()
        self.detail = Detail()
        self.query = nn.Conv2d(WIDTH, HEADS * KEY, 1, bias=False)
        self.key = nn.Conv2d(WIDTH, HEADS * KEY, 1, bias=False)
        self.value = nn.Conv2d(WIDTH, HEADS * VALUE, 1, bias=False)
        self.row_query = nn.Parameter(torch.randn(1, HEADS * KEY, PLACES))
        self.row_key = nn.Parameter(torch.randn(1, HEADS * KEY, PLACES))
        self.column_query = nn.Parameter(torch.randn(1, HEADS * KEY, PLACES))
        self.column_key = nn.Parameter(torch.randn(1, HEADS * KEY, PLACES))
        self.row = Unit(HEADS * VALUE, HEADS * VALUE)
        self.column = nn.Conv2d(HEADS * VALUE, HEADS * VALUE, 1, bias=False)
        self.out = Unit(HEADS * VALUE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend in ``x`` (B, C, h, w)."""
        pooled = self.pool(x)
        q, k, v = self.query(pooled), self.key(pooled), self.value(pooled)
        rows = attend(q.mean(3), k.mean(3), v.mean(3), self.row_query, self.row_key)  # (B, 256, h)
        columns = attend(q.mean(2), k.mean(2), v.mean(2), self.column_query, self.column_key)
        mixed = v + self.row(rows[..., None]) + self.column(columns[:, :, None])
        attended: Tensor = self.out(mixed) * self.detail(x)
        return attended


def attend(q: Tensor, k: Tensor, v: Tensor, q_places: Tensor, k_places: Tensor) -> Tensor:
    """Mix the L tokens of an axis.

    Args:
        q: queries (B, heads x 16, L).
        k: keys of that shape.
        v: values (B, heads x 32, L).
        q_places: positions (1, heads x 16, 16) that are added to the queries, stretched to L.
        k_places: those of the keys.

    Returns:
        The mixed values (B, heads x 32, L).
    """
    length = q.shape[-1]
    q = q + F.interpolate(q_places, length, mode="linear", align_corners=False)
    k = k + F.interpolate(k_places, length, mode="linear", align_corners=False)
    split = (q.shape[0], HEADS, -1, length)
    q, k, v = (part.reshape(split).mT for part in (q, k, v))  # (B, heads, L, .)
    return F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)


class Mlp(nn.Module):
    """Widen each place four times, look at its neighbours, and narrow it again."""

    def __init__(self) -> None:
        super().__init__()
        inner = 4 * WIDTH
        self.fc1 = nn.Conv2d(WIDTH, inner, 1, bias=False)
        self.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.fc2 = nn.Conv2d(inner, WIDTH, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        mapped: Tensor = self.fc2(F.relu(self.dwconv(self.fc1(x)), inplace=True))
        return mapped


class Layer(nn.Module):
    """A transformer layer without normalisation around its two sums."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AxialAttention()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        x = x + self.attention(x)
        mapped: Tensor = x + self.mlp(x)
        return mapped


class Decoder(nn.Module):
    """A depth-wise convolution and two linear maps of each place, beside the map itself.

    Args:
        kernel: odd side of the kernel.
        layer_scale: first weight of what is added.
    """

    def __init__(self, kernel: int, layer_scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2, groups=WIDTH),
            nn.BatchNorm2d(WIDTH),
        )
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.contract = nn.Linear(4 * WIDTH, WIDTH)
        self.gamma = nn.Parameter(torch.full((WIDTH,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        hidden = F.hardswish(self.expand(self.depthwise(x).movedim(1, 3)))  # (B, h, w, 4 C)
        added: Tensor = self.gamma * self.contract(hidden)
        return x + added.movedim(3, 1)


class Fusion(nn.Module):
    """Join a fine map, the one of the next stage, and the decoded one, at the first one's size.

    Args:
        fine: channels of the fine map.
        coarse: channels of the next one.
    """

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.down = Refiner(fine)
        self.up = Selector()
        self.stage = _normed(coarse, WIDTH)
        self.fuse = _normed(3 * WIDTH, WIDTH)

    def forward(self, fine: Tensor, coarse: Tensor, decoded: Tensor) -> Tensor:
        """Join maps (B, ., h, w) to one (B, C, h, w) of the size of ``fine``."""
        d = self.down(fine)
        u = _resized(self.up(decoded), d)
        s = _resized(self.stage(coarse), d)
        joined: Tensor = self.fuse(torch.cat([d, u, s], 1)) + s * u + torch.sigmoid(s * d)
        return joined


class Refiner(nn.Module):
    """Join a local and a global view of a fine map.

    Args:
        inputs: its channels.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv1 = Unit(inputs, WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.conv3 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.fuse = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, h, w) to (B, C, h, w)."""
        x = self.conv1(x)
        whole = self.conv2(x.mean((2, 3), keepdim=True))
        refined: Tensor = self.fuse(torch.sigmoid(self.conv3(x)) + whole)
        return refined


class Selector(nn.Module):
    """Weigh the channels of each place against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Unit(WIDTH, WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        selected: Tensor = self.conv1(x) * self.conv2(x).softmax(1)
        return selected


class GlobalContext(nn.Module):
    """Add to every place what the whole map says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.act = nn.PReLU(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        whole = self.conv1(x.mean((2, 3), keepdim=True))  # (B, C, 1, 1)
        whole = self.conv2(whole * self.scale[:, None, None] + self.shift[:, None, None])
        if self.training and len(x) == 1:  # one value a channel has no spread of its own
            n = self.norm
            whole = F.batch_norm(whole, n.running_mean, n.running_var, n.weight, n.bias)
        else:
            whole = self.norm(whole)
        added: Tensor = self.act(whole) + x
        return added


class Head(nn.Module):
    """Score the classes of each place.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w) to scores (B, K, h, w)."""
        x = self.conv1(F.relu(self.bn1(x), inplace=True))
        scores: Tensor = self.conv2(F.relu(self.bn2(x), inplace=True))
        return scores


class P2AT(nn.Module):
    """Segment images of any height and width.

    Args:
        classes: K.
        size: ``s``, ``m`` or ``l``, by the encoder: ResNet-18, 34 or 50.
        auxiliary: with two more heads, on the maps of strides 8 and 4, that deepen supervision;
            False leaves them out, to deploy.
        depth: transformer layers; 0 leaves attention out.
        layer_scale: first weight of what each decoder adds. The published 1e-6 learns slowly where
            no trained weights are given; 1e-2 is quicker.

    Raises:
        ValueError: if ``classes`` is below 1, ``depth`` below 0, or there is no such size.

    Example:
        >>> output = P2AT(classes=11)(torch.zeros(2, 3, 45, 70))
        >>> output.logits.shape, len(output.auxiliary)
        (torch.Size([2, 11, 45, 70]), 2)
    """

    def __init__(
        self,
        classes: int,
        size: Size = "s",
        *,
        auxiliary: bool = True,
        depth: int = 2,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        if classes < 1 or depth < 0:
            raise ValueError(f"classes={classes} must be at least 1, and depth={depth} at least 0")
        if size not in _ENCODERS:
            raise ValueError(f"size={size!r} must be one of {', '.join(_ENCODERS)}")
        self.classes = classes
        self.size = size
        self.auxiliary = auxiliary
        self.depth = depth
        self.layer_scale = layer_scale
        self.encoder = Encoder(size)
        c1, c2, c3, c4 = self.encoder.channels
        self.reduce = Unit(c4, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.decoder1 = Decoder(3, layer_scale)
        self.fusion4 = Fusion(c2, c3)
        self.context4 = GlobalContext()
        self.decoder2 = Decoder(5, layer_scale)
        self.fusion3 = Fusion(c1, c2)
        self.context3 = GlobalContext()
        self.decoder3 = Decoder(7, layer_scale)
        self.refine3 = Unit(WIDTH, WIDTH, 3)
        self.merge1 = Unit(2 * WIDTH, WIDTH, 3)
        self.refine2 = Unit(WIDTH, WIDTH, 3)
        self.merge2 = Unit(2 * WIDTH, WIDTH, 3)
        self.refine1 = Unit(WIDTH, WIDTH, 3)
        self.main_head = Head(classes)
        self.auxiliary_heads = nn.ModuleList(Head(classes) for _ in range(2 if auxiliary else 0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Score the classes of every pixel of ``images`` (B, 3, H, W), normalised."""
        x1, x2, x3, x = self.encoder(images.contiguous(memory_format=torch.channels_last))
        x = self.reduce(x)
        for layer in self.layers:
            x = layer(x)
        p1 = self.decoder1(x)  # stride 32
        b4 = self.fusion4(x2, x3, p1)  # stride 8
        p2 = self.decoder2(self.context4(b4))
        b3 = self.fusion3(x1, x2, p2)  # stride 4
        p3 = self.decoder3(self.context3(b3))
        r = self.refine3(p3)
        r = self.refine2(self.merge1(torch.cat([_resized(p2, r), r], 1)))
        r = self.refine1(self.merge2(torch.cat([_resized(p1, r), r], 1)))
        scores = [self.main_head(r)]
        scores += [head(b) for head, b in zip(self.auxiliary_heads, (b4, b3), strict=False)]
        logits, *auxiliary = (_spread(each, images.shape[2:]) for each in scores)
        return SegmentationOutput(logits, tuple(auxiliary))

    @property
    def stages(self) -> list[nn.Module | list[nn.Module]]:
        """The stem and the four stages of the encoder, then the transformer layers."""
        e = self.encoder
        first = [e.conv1, e.bn1]
        return [first, e.layer1, e.layer2, e.layer3, e.layer4, *self.layers]

    @property
    def head(self) -> list[nn.Module]:
        """What scores the classes."""
        return [self.main_head, self.auxiliary_heads]

    @classmethod
    def from_published(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> "P2AT":
        """Build from the official arguments and parameter names.

        Args:
            config: ``backbone``, ``num_classes`` and ``is_train``, which says whether the auxiliary
                heads are there (they are if it is left out).
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        faults = [f"missing {name}" for name in ("backbone", "num_classes") if name not in config]
        faults += [f"unknown {name}" for name in config if name not in _OPTIONS]
        if not faults and config["backbone"] not in _BACKBONES:
            known = ", ".join(_BACKBONES)
            faults = [f"backbone={config['backbone']!r} must be one of {known}"]
        if faults:
            raise ValueError(f"P2AT config: {'; '.join(faults)}")
        network = cls(
            config["num_classes"],
            _BACKBONES[config["backbone"]],
            auxiliary=config.get("is_train", True),
        )
        published.load(network, state_dict, _RULES, r"num_batches_tracked$")
        return network

    def translated(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give official tensors, or those of a ResNet, our names; ours keep theirs."""
        names = {published.renamed(name, _RULES): name for name in self.state_dict()}
        names["conv1.weight"] = "encoder.conv1.weight"  # as torchvision calls it
        return {names.get(name, name): tensor for name, tensor in state_dict.items()}


def _normed(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Bring a map to the places of another."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def _spread(logits: Tensor, size: torch.Size) -> Tensor:
    """Bring scores to the pixels (H, W), corner onto corner, classes apart in memory."""
    return F.interpolate(logits.contiguous(), size, mode="bilinear", align_corners=True)


_OPTIONS = ("backbone", "num_classes", "is_train", "pretrained", "salt", "mode")
_BACKBONES: dict[str, Size] = {"resnet18": "s", "resnet34": "m", "resnet50": "l"}
_RULES = (
    (r"^encoder\.conv1\.", "conv1_x."),
    (r"^encoder\.", ""),
    (r"^reduce\.", "feature_reducer."),
    (r"^layers\.", "deep_feature_processor.transformer_layers."),
    (r"\.attention\.", ".attn."),
    (r"\.attn\.([qkv])\w+\.", r".attn.to_\1.conv."),
    (r"\.attn\.(row|column)_([qk])\w+$", r".attn.pos_emb_\1_\2.pos_embed"),
    (r"\.attn\.row\.", ".attn.proj_encode_row."),
    (r"\.attn\.column\.", ".attn.proj_encode_column.conv."),
    (r"\.attn\.out\.", ".attn.proj."),
    (r"\.attn\.pool\.", ".attn.pool_feats_processor."),
    (r"\.attn\.detail\.", ".attn.details_enhancer."),
    (r"(details_enhancer\.conv\d)\.0\.", r"\1.0.conv."),
    (r"\.mlp\.(fc\d)\.", r".mlp.\1.conv."),
    (r"^decoder(\d)\.", r"P\1_decoder."),
    (r"\.depthwise\.", ".dwconv."),
    (r"\.expand\.", ".pwconv1.0."),
    (r"\.contract\.", ".pwconv2."),
    (r"^fusion(\d)\.", r"BiS\1."),
    (r"^(BiS\d)\.(down|up)\.", r"\1.\2_feat."),
    (r"^(BiS\d)\.stage\.", r"\1.st_feat."),
    (r"^(BiS\d\.(?:st_feat|fuse))\.0\.", r"\1.0.conv."),
    (r"(down_feat\.(?:conv2|conv3|fuse)|up_feat\.conv2)\.", r"\1.conv."),
    (r"^context(\d)\.scale$", r"pool_gce\1.bn_scale.weight"),
    (r"^context(\d)\.shift$", r"pool_gce\1.bn_scale.bias"),
    (r"^context(\d)\.(conv\d)\.", r"pool_gce\1.\2.conv."),
    (r"^context(\d)\.norm\.", r"pool_gce\1.conv2.bn."),
    (r"^context(\d)\.act\.", r"pool_gce\1.conv2.act."),
    (r"^refine(\d)\.", r"refine\1.c2_."),
    (r"^merge(\d)\.", r"fuse\1."),
    (r"^main_head\.", "final_seg_head."),
    (r"^auxiliary_heads\.0\.", "aux_seg_head1."),
    (r"^auxiliary_heads\.1\.", "aux_seg_head2."),
)
