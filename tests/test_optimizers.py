"""Optimizer state by parameter name, for whatever optimizer of torch it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlcv_cli.config import TrainConfig
from dlcv_cli.vision.optimizers import OPTIMIZERS, build_optimizer, get_optimizer_state, restore_optimizer, set_lr

KINDS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
}
if hasattr(torch.optim, "Adafactor"):
    KINDS["adafactor"] = lambda p: torch.optim.Adafactor(p, lr=0.1)


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a small network, the same every time, and its parameters by name."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    return network, dict(network.named_parameters())


def take_steps(network: nn.Module, optimizer: Optimizer, seeds: range) -> None:
    """Take a step for each seed."""
    for seed in seeds:
        x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_state_of_any_optimizer(kind: str, steps: int) -> None:
    """Restored into a new optimizer, the state leads to the same weights as if it had never been stopped."""
    network, parameters = build()
    optimizer = KINDS[kind]([*parameters.values()])
    take_steps(network, optimizer, range(steps))
    tensors, values = copy.deepcopy(get_optimizer_state(optimizer, parameters))
    assert all(key.partition(".")[2] in parameters for key in (*tensors, *values))
    weights = copy.deepcopy(network.state_dict())
    take_steps(network, optimizer, range(steps, steps + 3))

    again, parameters = build()
    other = KINDS[kind]([*parameters.values()])
    restore_optimizer(other, parameters, tensors, values)
    again.load_state_dict(weights)
    take_steps(again, other, range(steps, steps + 3))
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("damage", ["lacks", "has", "shape", "type"])
def test_state_of_another_optimizer_is_refused(damage: str) -> None:
    """State that is missing, left over or of another shape or type is refused by name."""
    network, parameters = build()
    optimizer = KINDS["adam"]([*parameters.values()])
    take_steps(network, optimizer, range(1))
    tensors, values = copy.deepcopy(get_optimizer_state(optimizer, parameters))
    name = "exp_avg.2.bias"
    if damage == "lacks":
        del tensors[name]
    elif damage == "has":
        name = "momentum_buffer.2.bias"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3) if damage == "shape" else torch.zeros(2, dtype=torch.float64)
    _, parameters = build()
    with pytest.raises(ValueError, match=name):
        restore_optimizer(KINDS["adam"]([*parameters.values()]), parameters, tensors, values)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_entry_builds_an_optimizer(name: str) -> None:
    """Each entry of the table makes an optimizer of all the parameters, with the settings' learning rate."""
    _, parameters = build()
    config = TrainConfig(lr=0.25, optimizer=name, weight_decay=0.1)
    optimizer = build_optimizer(parameters, config, dict.fromkeys(parameters, 0.5))
    set_lr(optimizer, 0.25)
    groups = optimizer.param_groups
    assert {group["lr"] for group in groups} == {0.125}
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for name, p in parameters.items() if name.endswith("weight") and p.dim() > 1}
    assert sum(len(group["params"]) for group in groups) == len(parameters)
