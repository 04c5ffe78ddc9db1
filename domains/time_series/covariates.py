"""Give covariates to any forecaster, by a wrapper around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Step(nn.Module):
    """The effect of what is known of a step: a linear map plus a small perceptron, both from zero.

    Args:
        given: numbers known of a step.
        channels: C.
        width: inner width of the perceptron.
    """

    def __init__(self, given: int, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(given, channels, bias=False)
        self.hidden = nn.Linear(given, width)
        self.out = nn.Linear(width, channels, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, given: Tensor) -> Tensor:
        """Map what is known (B, T, F) to its effect (B, T, C)."""
        effect: Tensor = self.linear(given) + self.out(F.gelu(self.hidden(given)))
        return effect


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
        self.step: Step | None = None
        if known + static:
            self.step = Step(known + static, channels, width)
        self.lead: nn.Linear | None = None
        if past:
            self.lead = nn.Linear(past * lookback, horizon * channels, bias=False)
            nn.init.zeros_(self.lead.weight)

    def forward(self, past: Tensor, *rest: Tensor) -> Tensor:
        """Forecast (B, H, C) from the past (B, L, C).

        Args:
            past: the steps seen.
            rest: the marks of past and future where the network takes them; then what is known of
                all steps (B, L + H, K), of the steps seen (B, L, P), and of the series (B, Q).
        """
        *marks, known, beside, static = rest
        effect = None
        if self.step is not None:
            whole = static.unsqueeze(1).expand(-1, known.shape[1], -1)
            effect = self.step(torch.cat([known, whole], 2))  # (B, L + H, C)
            past = past - effect[:, : self.lookback]
        forecast: Tensor = self.network(past, *marks)
        if effect is not None:
            forecast = forecast + effect[:, self.lookback :]
        if self.lead is not None:
            lead = self.lead(beside.flatten(1))
            forecast = forecast + lead.unflatten(1, (self.horizon, self.channels))
        return forecast
