"""An optimizer that shares its parameter groups and its state with the one that it wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flatmin.engine import check
from flatmin.engine.cost import Cost
from flatmin.engine.memory import KEY


class Wrapper(torch.optim.Optimizer):
    """What makes a wrapped optimizer one optimizer: groups and state *are* the base optimizer's.

    Schedulers, checkpoints, `add_param_group`, deepcopy and pickle reach both at once, since there
    is
    one of everything. `rho` stands in each group, next to `lr`; so do the numbers that are kept.
    """

    base: torch.optim.Optimizer
    defaults: dict[str, Any]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups, each with its `rho`."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state: its buffers, and beside them those of the parts."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:  # type: ignore[override]
        self.base.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may bring a `rho` of its own."""
        check.at_least_zero("rho", param_group.get("rho", self.defaults["rho"]))
        self.base.add_param_group(param_group)
        self._complete_groups()

    def _numbers_at_start(self) -> dict[str, float]:
        """The numbers that are kept in every group, as they are before the first step."""
        return dict(Cost().__dict__)

    def _complete_groups(self) -> None:
        """Give every group its `rho` and the numbers, which others' checkpoints lack."""
        groups = self.param_groups
        numbers = {**self._numbers_at_start(), **groups[0].get(KEY, {})}
        for group in groups:
            check.at_least_zero("rho", group.setdefault("rho", self.defaults["rho"]))
            if group.get(KEY, {}).keys() != numbers.keys():
                group[KEY] = dict(numbers)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        if "base" not in state:  # load_state_dict: groups and state, which are the base optimizer's
            self.base.__setstate__(dict(state))
        else:
            super().__setstate__(dict(state))
        self._complete_groups()


def check_radius(base: torch.optim.Optimizer, rho: float) -> None:
    """Raise ValueError if `base` carries another radius from an earlier flatmin optimizer."""
    carried = {group.get("rho") for group in base.param_groups if KEY in group}
    if len(carried) == 1 and carried != {rho}:
        raise ValueError(
            f"this base optimizer carries rho={carried.pop()} from an earlier flatmin optimizer, "
            f"and rho={rho} would be ignored: build a new base, or set group['rho'] in its "
            f"param_groups"
        )


def check_base(base: object) -> None:
    """Raise TypeError or ValueError unless `base` can take the steps."""
    if isinstance(base, type):
        raise TypeError(
            f"base must be an optimizer, got the class {base.__name__}: build it first, as in "
            f"base = {base.__name__}(model.parameters(), lr=0.1)"
        )
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(
            f"base must be a torch.optim optimizer, got {check.describe(base)}: build one first, "
            f"as "
            "in base = torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    if isinstance(base, Wrapper):
        raise ValueError(
            "base is already sharpness-aware, and looking around inside a look around has no "
            "meaning: "
            "pass its own base (optimizer.base), and choose the parts together"
        )
    if isinstance(base, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss by itself within a step, so it cannot take the step of "
            "another "
            "gradient: use SGD, Adam, AdamW or another optimizer whose step() needs no closure"
        )
    if isinstance(base, torch.optim.SparseAdam):
        raise ValueError(
            "SparseAdam takes sparse gradients only, and these have no place here: use Adam"
        )
