"""TEDDY: cells as sentences of genes, learnt from masked genes and from what is known of the cell.

Chevalier et al., TEDDY: A Family of Foundation Models for Understanding Single Cell Biology, 2025
(arXiv 2503.03485). TEDDY-G orders a cell's genes by rank and embeds the rank; TEDDY-X embeds the
bin of each gene's expression instead, as scGPT does (Cui et al., Nature Methods 2024).
Sizes: B cells, L genes, T vocabulary, D width, A annotations with K labels in all, V bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from core.layers.wide import wide

Activation = Literal["gelu", "relu"]


class TeddyOutput(NamedTuple):
    """What is said of B cells.

    Attributes:
        cell: (B, D) the mean over the cell's genes.
        genes: (M, T) logits of the M genes asked for, row by row; of TEDDY-X (M, V), their bins.
        annotations: (B, K) logits of all labels, side by side.
    """

    cell: Tensor
    genes: Tensor
    annotations: Tensor


class Layer(nn.Module):
    """Attention, then two linear maps around an activation.

    Args:
        width: D.
        heads: attention heads.
        inner: width between the linear maps.
        dropout: on attention weights, on both branches and inside the second.
        activation: ``gelu`` or ``relu``.
        pre_norm: normalise before each branch, not after each sum.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        dropout: float,
        activation: Activation,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.pre_norm = pre_norm
        self.activation = activation
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_inner = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode genes and, after them, annotation tokens.

        Args:
            x: (B, L + A, D).
            mask: (B, L), True on the genes that all tokens attend to; nothing else is.
        """
        if self.pre_norm:
            x = x + self._attend(self.norm_attention(x), mask)
            return x + self._feed(self.norm_inner(x))
        x = self.norm_attention(x + self._attend(x, mask))
        normed: Tensor = self.norm_inner(x + self._feed(x))
        return normed

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        split = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.qkv(x).view(split).permute(2, 0, 3, 1, 4)  # (B, heads, L + A, D / heads)
        genes = mask.shape[1]
        mixed = F.scaled_dot_product_attention(
            q,
            k[:, :, :genes],
            v[:, :, :genes],
            mask[:, None, None],
            dropout_p=self.drop.p if self.training else 0.0,
        )
        attended: Tensor = self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return attended  # (B, L + A, D)

    def _feed(self, x: Tensor) -> Tensor:
        activate = F.gelu if self.activation == "gelu" else F.relu
        fed: Tensor = self.drop(self.contract(self.drop(activate(self.expand(x)))))
        return fed


class Annotations(nn.Module):
    """Questions about a cell, such as its type, its tissue or its disease.

    Args:
        sizes: labels of each question.
        width: D.
        tokens: give each question a token of its own, which reads the genes; else all are answered
            from the mean over the genes.
    """

    owner: Tensor

    def __init__(self, sizes: Sequence[int], width: int, tokens: bool) -> None:
        super().__init__()
        self.questions = nn.Parameter(torch.empty(len(sizes), width)) if tokens else None
        self.score = nn.Linear(width, sum(sizes))
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)))
        self.register_buffer("owner", owner if tokens else torch.zeros_like(owner), False)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (B, A, D) of the questions, or (B, 1, D) of the cells, to logits (B, K)."""
        scores: Tensor = self.score(states)  # (B, A, K)
        return scores[:, self.owner, torch.arange(len(self.owner), device=scores.device)]


class Teddy(nn.Module):
    """Encode a cell, name the genes that were masked in it, and annotate it.

    One network serves every step. Masked gene modelling replaces genes by the mask token (TEDDY-G)
    or their bins by ``bins`` itself, one more than the largest (TEDDY-X), passes the places as
    ``masked`` and compares ``genes`` with ``ids[masked]``, or ``values[masked]``, of the cell as it
    was. What is known of cells is learnt beside it, or later in fine-tuning, by ``annotations``,
    whose meaning is :attr:`heads`. A linear probe freezes all but :attr:`head`, with
    ``annotate_from="cell"``. Cells are compared by ``cell``.

    Annotation tokens read the genes; nothing reads them, so ``cell`` and ``genes`` are the same
    with any questions, and no label can tell another one.

    Args:
        vocabulary: T, all tokens: genes and special ones.
        heads: the questions: ``name``, ``kind`` and ``labels`` of each, as in
            :func:`core.tasks.heads.read_heads`.
        width: D.
        depth: layers.
        attention_heads: heads of attention.
        inner: width inside the feed-forward parts.
        positions: the most genes of a cell in TEDDY-G.
        bins: V, bins of expression, of which 0 is none: this is TEDDY-X. None is TEDDY-G.
        dropout: in the layers.
        activation: ``gelu`` or ``relu``.
        pre_norm: normalise before each branch, not after each sum.
        annotate_from: answer from a ``token`` a question, or from the mean over the ``cell``.
        decoder: whether masked genes can be asked for; fine-tuning needs none.

    Raises:
        ValueError: if a size is below 1, ``width`` is no multiple of ``attention_heads``, or a word
            is not known.

    Example:
        >>> cell_type = {"name": "", "kind": "single", "labels": ["B", "T"]}
        >>> network = Teddy(100, [cell_type], width=16, depth=2, attention_heads=2, inner=32)
        >>> ids, mask = torch.full((3, 9), 5), torch.ones(3, 9, dtype=torch.bool)
        >>> output = network(ids, mask, masked=ids == 5)
        >>> output.cell.shape, output.genes.shape, output.annotations.shape
        (torch.Size([3, 16]), torch.Size([27, 100]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        vocabulary: int,
        heads: Sequence[Mapping[str, Any]] = (),
        *,
        width: int = 512,
        depth: int = 12,
        attention_heads: int = 8,
        inner: int = 1024,
        positions: int = 2048,
        bins: int | None = None,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        pre_norm: bool = False,
        annotate_from: Literal["token", "cell"] = "token",
        decoder: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "width": width, "depth": depth, "inner": inner}
        sizes |= {"attention_heads": attention_heads, "positions": positions}
        for name, size in (sizes if bins is None else {**sizes, "bins": bins}).items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if width % attention_heads:
            raise ValueError(f"width={width} must be a multiple of {attention_heads=}")
        if activation not in ("gelu", "relu"):
            raise ValueError(f"activation={activation!r} must be 'gelu' or 'relu'")
        if annotate_from not in ("token", "cell"):
            raise ValueError(f"annotate_from={annotate_from!r} must be 'token' or 'cell'")
        self.vocabulary = vocabulary
        self.heads = [dict(each) for each in heads]
        self.width = width
        self.depth = depth
        self.attention_heads = attention_heads
        self.inner = inner
        self.positions = positions
        self.bins = bins
        self.dropout = dropout
        self.activation = activation
        self.pre_norm = pre_norm
        self.annotate_from = annotate_from
        self.decoder = decoder
        self.genes = nn.Embedding(vocabulary, width)
        self.ranks = nn.Embedding(positions, width) if bins is None else None
        self.values = None if bins is None else nn.Embedding(bins + 1, width)
        self.layers = nn.ModuleList(
            Layer(width, attention_heads, inner, dropout, activation, pre_norm)
            for _ in range(depth)
        )
        self.decode = nn.Linear(width, bins or vocabulary) if decoder else None
        labels = [len(each["labels"]) for each in self.heads]
        self.annotations = Annotations(labels, width, annotate_from == "token") if labels else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 0.02), our choice; biases are zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                nn.init.normal_(parameter, std=0.02)

    @property
    def stages(self) -> list[nn.Module]:
        """The embedding of genes, then the layers in order."""
        return [self.genes, *self.layers]

    @property
    def head(self) -> list[nn.Module]:
        """What is new with other questions."""
        return [] if self.annotations is None else [self.annotations]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        values: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> TeddyOutput:
        """Read cells.

        Args:
            ids: (B, L) genes, in TEDDY-G the most expressed first, padded at the end.
            mask: (B, L) True on genes, False on padding.
            values: (B, L) the genes' bins, for TEDDY-X.
            masked: (B, L) True where genes are asked for; None asks for none.

        Raises:
            ValueError: if there are more genes than ``positions``, values are missing, or genes are
                asked for and there is no decoder.
        """
        states = self.encode(ids, mask, values)
        states, asked = states[:, : ids.shape[1]], states[:, ids.shape[1] :]
        cell = masked_mean(states, mask)
        if masked is not None and self.decode is None:
            raise ValueError("decoder=False leaves out what masked genes are told by")
        none = states.new_zeros(0, self.bins or self.vocabulary)
        genes = none if masked is None or self.decode is None else self.decode(states[masked])
        answers = states.new_zeros(len(ids), 0)
        if self.annotations is not None:
            by_token = self.annotate_from == "token"
            answers = self.annotations(asked if by_token else cell[:, None])
        return TeddyOutput(cell, genes, answers)

    def encode(self, ids: Tensor, mask: Tensor, values: Tensor | None = None) -> Tensor:
        """Give the states (B, L + A, D) of genes and of annotation tokens."""
        x: Tensor = self.genes(ids)  # (B, L, D)
        if self.ranks is not None:
            if ids.shape[1] > self.positions:
                raise ValueError(f"{ids.shape[1]} genes are more than positions={self.positions}")
            x = x + self.ranks.weight[: ids.shape[1]]
        elif self.values is not None:
            if values is None:
                raise ValueError("a network with bins needs the bin of each gene, values")
            x = x + self.values(values)
        if self.annotations is not None and self.annotations.questions is not None:
            x = torch.cat([x, self.annotations.questions.expand(len(x), -1, -1)], 1)
        seen = mask | ~mask.any(1, keepdim=True)  # a cell without genes attends to its padding
        for layer in self.layers:
            x = layer(x, seen)
        return x

    @classmethod
    def from_published(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> "Teddy":
        """Build TEDDY-G from its official configuration and parameter names.

        Args:
            config: the official options; those of special tokens have no effect on the network.
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        faults = [f"missing {name}" for name in _NEEDED if name not in config]
        faults += [f"unknown {name}" for name in config if name not in {*_ARGUMENTS, *_UNUSED}]
        if config.get("n_cls"):
            faults.append(f"n_cls={config['n_cls']}, needed 0")
        if faults:
            raise ValueError(f"Teddy config: {'; '.join(faults)}")
        network = cls(**{ours: config[name] for name, ours in _ARGUMENTS.items() if name in config})
        published.load(network, state_dict, _NAMES)
        return network


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average ``states`` (B, L, D) where ``mask`` (B, L) is True; zero where it is nowhere."""
    total = (wide(states) * mask[..., None]).sum(1)  # (B, D)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(states.dtype)


_ARGUMENTS = {
    "ntoken": "vocabulary",
    "d_model": "width",
    "nlayers": "depth",
    "nheads": "attention_heads",
    "d_hid": "inner",
    "max_position_embeddings": "positions",
    "dropout": "dropout",
    "layer_activation": "activation",
    "pre_norm": "pre_norm",
}
_NEEDED = ("ntoken", "d_model", "nlayers", "nheads", "d_hid")
_OPTIONS = """
    add_cls cls_token_id pad_token pad_token_id mask_token mask_token_id n_cls
    architectures auto_map model_type torch_dtype transformers_version initializer_range
    tie_word_embeddings
"""  # they change no encoder
_UNUSED = frozenset(f"{_OPTIONS} B L lengths salt".split())
_NAMES = (
    (r"^genes\.", "embeddings."),
    (r"^ranks\.", "position_embeddings."),
    (r"^decode\.weight", "decoder_head.weight"),
    (r"^decode\.bias", "decoder_bias"),
    (r"^layers\.", "encoder.layers."),
    (r"\.qkv\.", ".self_attn.in_proj_"),
    (r"\.out\.", ".self_attn.out_proj."),
    (r"\.norm_attention\.", ".norm1."),
    (r"\.expand\.", ".linear1."),
    (r"\.contract\.", ".linear2."),
    (r"\.norm_inner\.", ".norm2."),
)


def teddy_tiny(
    vocabulary: int, heads: Sequence[Mapping[str, Any]] = (), bins: int | None = None
) -> Teddy:
    """Build a size of our own for a few hundred cells."""
    return Teddy(
        vocabulary, heads, width=96, depth=3, attention_heads=4, inner=192, positions=512, bins=bins
    )


def teddy_70m(
    vocabulary: int, heads: Sequence[Mapping[str, Any]] = (), bins: int | None = None
) -> Teddy:
    """Build the smallest published size; its inner width follows from the size of its file."""
    return Teddy(vocabulary, heads, bins=bins)


def teddy_160m(
    vocabulary: int, heads: Sequence[Mapping[str, Any]] = (), bins: int | None = None
) -> Teddy:
    """Build the middle size: its width is published; its depth is what gives its parameters."""
    return Teddy(vocabulary, heads, width=768, attention_heads=12, inner=3072, bins=bins)


def teddy_400m(
    vocabulary: int, heads: Sequence[Mapping[str, Any]] = (), bins: int | None = None
) -> Teddy:
    """Build the largest size: its width is published; its depth is what gives its parameters."""
    return Teddy(vocabulary, heads, width=1024, depth=24, attention_heads=16, inner=4096, bins=bins)
