"""The input encodings of FlowTransformer.

Sizes: B windows of W flows, N numeric and C categorical fields, D width of an encoded flow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from domains.security.networks.flow_blocks import glorot


class OneHot(nn.Module):
    """Mark the level of every categorical field.

    Args:
        levels: the number of levels of each field.
    """

    field: Tensor
    level: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        columns = [(field, n) for field, count in enumerate(levels) for n in range(count)]
        field, level = torch.tensor(columns, dtype=torch.long).view(-1, 2).unbind(1)
        self.register_buffer("field", field, persistent=False)
        self.register_buffer("level", level, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Map ``codes`` (B, W, C) to bool (B, W, sum of levels)."""
        return codes.index_select(2, self.field) == self.level


class RecordEncoding(nn.Module):
    """Put numeric fields and one-hot levels side by side, and map them to ``width``.

    Args:
        numeric: N.
        levels: the number of levels of each field.
        width: D; None leaves them as they are.
        bias: of the map.
    """

    def __init__(self, numeric: int, levels: Sequence[int], width: int | None, bias: bool) -> None:
        super().__init__()
        self.one_hot = OneHot(levels)
        self.width = numeric + sum(levels) if width is None else width
        self.embed = None
        if width is not None:
            self.embed = nn.Linear(numeric + sum(levels), width, bias)
            glorot(self.embed)

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Encode (B, W, N) and (B, W, C) to (B, W, D)."""
        record = torch.cat([numeric, self.one_hot(codes).to(numeric.dtype)], 2)
        return record if self.embed is None else self.embed(record)


class FieldEncoding(nn.Module):
    """Map the one-hot levels of each field by themselves, beside the numeric fields as they are.

    Args:
        numeric: N.
        levels: the number of levels of each field.
        width: of an encoded field.
        bias: of the maps.
    """

    def __init__(self, numeric: int, levels: Sequence[int], width: int, bias: bool) -> None:
        super().__init__()
        self.levels = list(levels)
        self.one_hot = OneHot(levels)
        self.width = numeric + width * len(levels)
        self.embed = nn.ModuleList(nn.Linear(count, width, bias) for count in levels)
        for layer in self.embed:
            glorot(layer)

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Encode (B, W, N) and (B, W, C) to (B, W, D)."""
        marks = self.one_hot(codes).to(numeric.dtype).split(self.levels, 2)
        encoded = (embed(mark) for embed, mark in zip(self.embed, marks, strict=True))
        return torch.cat([numeric, *encoded], 2)


class LookupEncoding(nn.Module):
    """Look the code of each field up in a table of its own, beside the numeric fields as they are.

    Args:
        numeric: N.
        levels: the number of levels of each field.
        width: of an encoded field.
    """

    def __init__(self, numeric: int, levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = numeric + width * len(levels)
        # A row more than there are codes: the published codes are counted from 1.
        self.embed = nn.ModuleList(nn.Embedding(count + 1, width) for count in levels)
        for table in self.embed:
            nn.init.uniform_(table.weight, -0.05, 0.05)  # type: ignore[arg-type]

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Encode (B, W, N) and (B, W, C) to (B, W, D)."""
        encoded = (table(code) for table, code in zip(self.embed, codes.unbind(2), strict=True))
        return torch.cat([numeric, *encoded], 2)
