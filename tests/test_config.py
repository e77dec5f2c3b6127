"""Settings: what is computed of them."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from dlcv_cli.config import TrainConfig


@pytest.mark.parametrize("epochs", [1, 6])
@pytest.mark.parametrize("schedule", ["exponential", "cosine", "constant"])
def test_lr_schedules_match_torch(schedule: str, epochs: int) -> None:
    """The learning rate of each epoch is that of torch's scheduler of the same name."""
    config = TrainConfig(epochs=epochs, lr=0.3, decay=0.8, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedulers = {
        "exponential": lambda: ExponentialLR(optimizer, gamma=0.8),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=epochs),
        "constant": lambda: ExponentialLR(optimizer, gamma=1.0),
    }
    scheduler = schedulers[schedule]()
    for epoch in range(epochs):
        assert config.lr_at(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()
