import numpy as np
import pytest

from domains.nlp.tokens import Encoded, pad, width


def row(*ids, types=None):
    return Encoded(np.array(ids, np.int32), np.array(types or [0] * len(ids), np.int8))


def test_rows_are_padded_on_the_right():
    tokens = pad([row(5, 6, 7, types=[0, 0, 1]), row(8)], pad_id=9)
    assert tokens.ids.tolist() == [[5, 6, 7, 9, 9, 9, 9, 9], [8, *[9] * 7]]
    assert tokens.mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, *[0] * 7]]
    assert tokens.types.tolist() == [[0, 0, 1, 0, 0, 0, 0, 0], [0] * 8]
    assert {str(part.dtype) for part in tokens} == {"torch.int64"}


@pytest.mark.parametrize(("length", "padded"), [(1, 8), (8, 8), (9, 16), (512, 512)])
def test_widths_are_multiples_of_eight(length, padded):
    assert width(length) == padded
    assert pad([row(*range(length))], 0).ids.shape == (1, padded)
