"""The optimizers, and their state by the names of the parameters. Only the table knows which optimizer it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlcv_cli.config import TrainConfig

Parameters = Mapping[str, Tensor]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def build_optimizer(parameters: Parameters, config: TrainConfig, scales: Mapping[str, float]) -> Optimizer:
    """Return the optimizer of the settings for parameters by name, all on one device.

    Biases and norms, which have one dimension, are not decayed. Parameters with a scale, by name, get that share of
    the learning rate; see `set_lr`.
    """
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, p in parameters.items():
        groups.setdefault((p.dim() > 1, scales.get(name, 1.0)), []).append(p)
    described = [
        {"params": members, "weight_decay": config.weight_decay if decays else 0.0, "scale": scale}
        for (decays, scale), members in groups.items()
    ]
    fused = next(iter(parameters.values())).device.type in ("cpu", "cuda")
    return OPTIMIZERS[config.optimizer](described, lr=config.lr, fused=fused)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def get_optimizer_state(optimizer: Optimizer, parameters: Parameters) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of an optimizer by `KEY.PARAMETER`: (tensors, not copied; other values)."""
    state = {f"{key}.{name}": value for name, p in parameters.items() for key, value in optimizer.state[p].items()}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in state.items() if key not in tensors}


def restore_optimizer(
    optimizer: Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Give a new optimizer the state that `get_optimizer_state` returned. The parameters' own values are lost.

    Raises:
        ValueError: it is not the state of this optimizer.
    """
    if not tensors and not values:  # from before the first step
        return
    # a step lets the optimizer make its state itself: every key, shape, device and memory layout
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    own_tensors, own_values = get_optimizer_state(optimizer, parameters)
    for key in [*own_tensors.keys() ^ tensors.keys(), *own_values.keys() ^ values.keys()]:
        raise ValueError(f"its optimizer state has, or lacks, {key}")
    with torch.no_grad():
        for key, tensor in own_tensors.items():
            if tensors[key].shape != tensor.shape or tensors[key].dtype != tensor.dtype:
                raise ValueError(f"its optimizer tensor {key} is not {tuple(tensor.shape)} {tensor.dtype}")
            tensor.copy_(tensors[key])
    for name, p in parameters.items():
        for key in optimizer.state[p]:
            if f"{key}.{name}" in values:
                optimizer.state[p][key] = values[f"{key}.{name}"]
