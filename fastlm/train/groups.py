"""The rates of a run's parameter groups: layer-wise decay, and a rate of their own for new layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fastlm.tasks.base import Group
from fastlm.train.config import TrainConfig


class RatedGroup(NamedTuple):
    """Holds parameters and their rate, as a multiple of the schedule's learning rate."""

    name: str
    parameters: list[nn.Parameter]
    rate: float


def rated_groups(groups: Sequence[Group], config: TrainConfig) -> list[RatedGroup]:
    """Returns a task's groups with their rates: rate * layer_decay^(D - depth), times head_rate if the layers are new.

    D is the greatest depth. The result belongs to the parameters alone, so a resumed run has the same rates. Raises
    ValueError if a rate is asked for that no group can have, since groups have no depth or none of them is new.
    """
    depths = [group.depth for group in groups if group.depth is not None]
    if config.layer_decay != 1 and not depths:
        raise ValueError("layer_decay: 1 expected, since the parameter groups of this task have no depth")
    if config.head_rate != 1 and not any(group.new for group in groups):
        raise ValueError("head_rate: 1 expected, since this task has no new layers")
    return [RatedGroup(group.name, group.parameters, _rate(group, max(depths, default=0), config)) for group in groups]


def by_rate(groups: Sequence[RatedGroup]) -> list[tuple[list[nn.Parameter], float]]:
    """Returns (parameters, rate) pairs, a pair per rate, so that the optimizer has few groups."""
    merged: dict[float, list[nn.Parameter]] = {}
    for group in groups:
        merged.setdefault(group.rate, []).extend(group.parameters)
    return [(parameters, rate) for rate, parameters in merged.items()]


def _rate(group: Group, deepest: int, config: TrainConfig) -> float:
    below = 0 if group.depth is None else deepest - group.depth
    return group.rate * config.layer_decay**below * (config.head_rate if group.new else 1.0)
