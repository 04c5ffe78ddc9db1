"""Optimizers that torch lacks; any module's parameters, groups as in ``torch.optim``."""
