"""Give covariates to any forecaster, by a wrapper around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WithCovariates(nn.Module):
    """Take the effect of covariates off the past, forecast the rest, and put the effect back on.

    The effect of a step is a linear map plus a small perceptron of what is known of that step and
    of the series as a whole; what is known up to now only adds a linear map of its look-back. All
    begin at zero: the network starts as it is without covariates.

    Args:
        network: any forecaster of standardised past (B, L, C) to (B, H, C), with or without marks.
        lookback: L.
        horizon: H.
        channels: C.
        known: K, numbers known of past and future steps.
        past: P, numbers known of past steps.
        static: Q, numbers known of a series.
        width: inner width of the perceptron.
    """

    takes_covariates = True

    def __init__(
        self,
        network: nn.Module,
        lookback: int,
        horizon: int,
        channels: int,
        *,
        known: int = 0,
        past: int = 0,
        static: int = 0,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.network = network
        self.lookback = lookback
        self.horizon = horizon
        self.channels = channels
        self.known, self.past, self.static = known, past, static
        self.takes_marks = bool(getattr(network, "takes_marks", False))
        self.linear = nn.Linear(known + static, channels, bias=False)
        self.hidden = nn.Linear(known + static, width)
        self.out = nn.Linear(width, channels, bias=False)
        self.lead = nn.Linear(past * lookback, horizon * channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin without any effect."""
        for layer in (self.linear, self.out, self.lead):
            nn.init.zeros_(layer.weight)

    def forward(self, past: Tensor, *rest: Tensor) -> Tensor:
        """Forecast (B, H, C) from the past (B, L, C).

        Args:
            past: the steps seen.
            rest: the marks of past and future where the network takes them; then what is known of
                all steps (B, L + H, K), of the steps seen (B, L, P), and of the series (B, Q).
        """
        *marks, known, beside, static = rest
        effect = self.effect(known, static)  # (B, L + H, C)
        remainder: Tensor = self.network(past - effect[:, : self.lookback], *marks)
        lead = self.lead(beside.flatten(1)).unflatten(1, (self.horizon, self.channels))
        forecast: Tensor = remainder + effect[:, self.lookback :] + lead
        return forecast

    def effect(self, known: Tensor, static: Tensor) -> Tensor:
        """Give the effect (B, T, C) of what is known of T steps and of the series."""
        whole = static.unsqueeze(1).expand(-1, known.shape[1], -1)
        given = torch.cat([known, whole], 2)  # (B, T, K + Q)
        effect: Tensor = self.linear(given) + self.out(F.gelu(self.hidden(given)))
        return effect
