"""Radii that move during training, with the manners of `torch.optim.lr_scheduler`.

Build one on a flatmin optimizer, call `step()` after each `optimizer.step()` and after that of any
learning-rate schedule, save and load its `state_dict`. A new one is a subclass with `radius`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, cast

from flatmin.engine import check
from flatmin.engine.wrapper import Wrapper

Factor = Callable[[int], float]


class RhoScheduler:
    """Sets the radius of each parameter group as a function of the steps that were taken.

    Built, it sets the radii of step 0. What a group's radius was then is its `base_rho`; that of a
    group added later is its radius when it is first seen.

    Args:
        optimizer: of flatmin; the radius that it reads is `group[optimizer.radius_key]`.

    Attributes:
        optimizer: whose radii move.
        last_epoch: how often `step` was called.
        base_rhos: the radius that each group began with.

    Raises:
        TypeError: `optimizer` has no radius.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.schedules import RhoScheduler
        >>> class Halved(RhoScheduler):
        ...     def radius(self, base_rho, group, index):
        ...         return base_rho / 2**self.last_epoch
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> schedule = Halved(flatmin.SAM(base, rho=0.4))
        >>> schedule.step()
        >>> schedule.get_last_rho()
        [0.2]
    """

    def __init__(self, optimizer: Wrapper) -> None:
        if not hasattr(optimizer, "radius_key"):
            raise TypeError(
                "a schedule of radii needs an optimizer with a radius, such as flatmin.SAM(base), "
                f"got {check.describe(optimizer)}"
            )
        self.optimizer = optimizer
        self.last_epoch = 0
        self.base_rhos: list[float] = []
        self._write()

    def radius(self, base_rho: float, group: dict[str, Any], index: int) -> float:
        """The radius of a group, after `last_epoch` steps.

        Args:
            base_rho: what the group began with.
            group: the parameter group, with its `lr` as it is now.
            index: its number.
        """
        raise NotImplementedError

    def step(self) -> None:
        """A step was taken: set the radii of the next."""
        self.last_epoch += 1
        self._write()

    def get_last_rho(self) -> list[float]:
        """The radius of each group, as this schedule has last set it."""
        return list(self._last_rho)

    def state_dict(self) -> dict[str, Any]:
        """All that it knows but the optimizer."""
        return {name: x for name, x in self.__dict__.items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another has stopped; the radii of the groups are set to what it had set.

        Args:
            state_dict: what `state_dict` gave, of a schedule of the same kind.
        """
        self.__dict__.update(state_dict)
        groups = self.optimizer.param_groups
        for group, rho in zip(groups, self._last_rho, strict=False):  # some may be added later
            group[self.optimizer.radius_key] = rho

    def _write(self) -> None:
        key, groups = self.optimizer.radius_key, self.optimizer.param_groups
        # A new list: saved state dicts hold the old one.
        known = len(self.base_rhos)
        self.base_rhos = [*self.base_rhos, *(group[key] for group in groups[known:])]
        radii = [
            self.radius(base_rho, group, i)
            for i, (base_rho, group) in enumerate(zip(self.base_rhos, groups, strict=True))
        ]
        for rho in radii:
            check.at_least_zero(key, rho)
        for group, rho in zip(groups, radii, strict=True):
            group[key] = rho
        self._last_rho = radii


class LambdaRho(RhoScheduler):
    """The radius times a function of the step.

        rho_t = base_rho rho_lambda(t)

    Args:
        optimizer: of flatmin, whose radii move.
        rho_lambda: from the number of steps taken to a factor, at least 0; or a list of such, one a
            parameter group.

    Functions are not saved in `state_dict`; callable objects are, by their attributes.

    Raises:
        TypeError: `optimizer` has no radius, or `rho_lambda` cannot be called.
        ValueError: there are not as many functions as groups, or a radius becomes negative.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SAM(base, rho=0.1)
        >>> schedule = flatmin.schedules.LambdaRho(optimizer, lambda t: min(1.0, t / 4))
        >>> optimizer.rho
        0.0
        >>> schedule.step()
        >>> optimizer.rho
        0.025
    """

    def __init__(self, optimizer: Wrapper, rho_lambda: Factor | Sequence[Factor]) -> None:
        several = isinstance(rho_lambda, Sequence)
        self.rho_lambdas = list(cast("Sequence[Factor]", rho_lambda)) if several else [rho_lambda]
        for each in self.rho_lambdas:
            if not callable(each):
                raise TypeError(
                    "rho_lambda must be a function from the step to a factor, such as "
                    f"lambda t: 0.9**t, got {check.describe(each)}"
                )
        self._several = several
        super().__init__(optimizer)

    def radius(self, base_rho: float, group: dict[str, Any], index: int) -> float:
        if self._several and len(self.rho_lambdas) != len(self.optimizer.param_groups):
            raise ValueError(
                f"there are {len(self.rho_lambdas)} functions and "
                f"{len(self.optimizer.param_groups)} parameter groups: give one, or one a group"
            )
        factor = self.rho_lambdas[index if self._several else 0]
        return base_rho * factor(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """All that it knows but the optimizer and plain functions."""
        kept = [
            None if isinstance(each, FunctionType) else dict(vars(each))
            for each in self.rho_lambdas
        ]
        return {**super().state_dict(), "rho_lambdas": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another has stopped, with the functions that this one was given.

        Args:
            state_dict: what `state_dict` gave.

        Raises ValueError where it is of another number of functions; nothing is loaded then.
        """
        state_dict = dict(state_dict)
        attributes = state_dict.pop("rho_lambdas")
        if len(attributes) != len(self.rho_lambdas):
            raise ValueError(
                f"the state is of {len(attributes)} functions and this schedule has "
                f"{len(self.rho_lambdas)}: make it as the one that was saved"
            )
        for each, kept in zip(self.rho_lambdas, attributes, strict=True):
            if kept is not None:
                vars(each).update(kept)
        super().load_state_dict(state_dict)


class LinearRho(RhoScheduler):
    """A straight line from the radius to another.

        rho_t = base_rho + min(t/T, 1) (end - base_rho)

    Args:
        optimizer: of flatmin, whose radii move.
        total_steps: T, at least 1. Later steps keep `end`.
        end: the radius at T, at least 0; default 0. Above the base's the radius grows.

    Raises:
        TypeError: `optimizer` has no radius.
        ValueError: `total_steps` is not a positive integer, or `end` is negative.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SAM(base, rho=0.5)
        >>> schedule = flatmin.schedules.LinearRho(optimizer, total_steps=4, end=1.0)
        >>> schedule.step()
        >>> optimizer.rho
        0.625
    """

    def __init__(self, optimizer: Wrapper, total_steps: int, end: float = 0.0) -> None:
        check.positive_int("total_steps", total_steps)
        check.at_least_zero("end", end)
        self.total_steps = total_steps
        self.end = end
        super().__init__(optimizer)

    def radius(self, base_rho: float, group: dict[str, Any], index: int) -> float:
        done = min(self.last_epoch / self.total_steps, 1.0)
        return (1 - done) * base_rho + done * self.end


class CosineRho(RhoScheduler):
    """Half a period of a cosine from the radius to another.

        rho_t = end + (base_rho - end) (1 + cos(π min(t/T, 1))) / 2

    Args:
        optimizer: of flatmin, whose radii move.
        total_steps: T, at least 1. Later steps keep `end`.
        end: the radius at T, at least 0; default 0. Above the base's the radius grows.

    Raises:
        TypeError: `optimizer` has no radius.
        ValueError: `total_steps` is not a positive integer, or `end` is negative.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SAM(base, rho=0.5)
        >>> schedule = flatmin.schedules.CosineRho(optimizer, total_steps=2)
        >>> schedule.step()
        >>> round(optimizer.rho, 6)
        0.25
    """

    def __init__(self, optimizer: Wrapper, total_steps: int, end: float = 0.0) -> None:
        check.positive_int("total_steps", total_steps)
        check.at_least_zero("end", end)
        self.total_steps = total_steps
        self.end = end
        super().__init__(optimizer)

    def radius(self, base_rho: float, group: dict[str, Any], index: int) -> float:
        left = (1 + math.cos(math.pi * min(self.last_epoch / self.total_steps, 1.0))) / 2
        return left * base_rho + (1 - left) * self.end


class ProportionalRho(RhoScheduler):
    """The radius between two bounds as the learning rate is between two, as in GSAM.

        rho_t = rho_min + (rho_max - rho_min) (lr_t - lr_min) / (lr_max - lr_min)

    Step it after the schedule of the learning rate, which it reads from each group.

    Args:
        optimizer: of flatmin, whose radii move.
        rho_min: radius where the learning rate is `lr_min`, or below, at least 0; default 0.
        rho_max: radius where it is `lr_max`, or above, at least `rho_min`; default None: that of
            each group when the schedule is built. Start with SAM's best.
        lr_min: least learning rate, at least 0; default 0.
        lr_max: largest, above `lr_min`; default None: that of each group before any schedule
            (`initial_lr`), or as it is when this one is built.

    Raises:
        TypeError: `optimizer` has no radius.
        ValueError: a bound is negative, or the lower is above the upper one.

    Reference: Zhuang et al., Surrogate Gap Minimization Improves SAM, ICLR 2022, arXiv:2203.08065,
    eq. 8.

    Examples:
        >>> import torch, flatmin
        >>> model, x = torch.nn.Linear(4, 2), torch.randn(8, 4)
        >>> optimizer = flatmin.GSAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.4)
        >>> def closure():
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> halved = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        >>> schedule = flatmin.schedules.ProportionalRho(optimizer, rho_min=0.2)
        >>> optimizer.rho
        0.4
        >>> loss = optimizer.step(closure)
        >>> halved.step()
        >>> schedule.step()
        >>> round(optimizer.rho, 6)
        0.3
    """

    def __init__(
        self,
        optimizer: Wrapper,
        rho_min: float = 0.0,
        rho_max: float | None = None,
        lr_min: float = 0.0,
        lr_max: float | None = None,
    ) -> None:
        check.at_least_zero("rho_min", rho_min)
        check.at_least_zero("lr_min", lr_min)
        for name, value in (("rho_max", rho_max), ("lr_max", lr_max)):
            if value is not None:
                check.at_least_zero(name, value)
        self.rho_min, self.rho_max = rho_min, rho_max
        self.lr_min, self.lr_max = lr_min, lr_max
        self._first_lrs: list[float] = []
        super().__init__(optimizer)

    def radius(self, base_rho: float, group: dict[str, Any], index: int) -> float:
        if index == len(self._first_lrs):
            self._first_lrs = [*self._first_lrs, float(group.get("initial_lr", group["lr"]))]
        rho_max = base_rho if self.rho_max is None else self.rho_max
        lr_max = self._first_lrs[index] if self.lr_max is None else self.lr_max
        if rho_max < self.rho_min:
            raise ValueError(
                f"rho_min is {self.rho_min:g} and rho_max {rho_max:g}: the lower bound must not be "
                "above the upper one; exchange them"
            )
        if lr_max <= self.lr_min:
            raise ValueError(
                f"lr_min is {self.lr_min:g} and lr_max {lr_max:g}: the largest learning rate must "
                "be above the least; exchange them, or give lr_max="
            )
        share = (float(group["lr"]) - self.lr_min) / (lr_max - self.lr_min)
        share = min(max(share, 0.0), 1.0)
        return (1 - share) * self.rho_min + share * rho_max


__all__ = ["CosineRho", "LambdaRho", "LinearRho", "ProportionalRho", "RhoScheduler"]
