"""How a report writes numbers and names."""

import math


def figure(value: float, like: float | None = None) -> str:
    """Write a measured number, with the decimals that suit its own size or that of ``like``."""
    size = abs(value if like is None else like)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.4f}" if size >= 0.001 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Write a length of time."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plain(text: str) -> str:
    """Replace what a terminal would obey instead of show."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
