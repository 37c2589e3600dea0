"""Two policies, and."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Both(Policy):
    """Where two policies both want to look: late, and there every k-th step, say.

        step t is perturbed  iff  first and second perturb it

    Both are asked at every step, so that what they remember moves as it does alone.

    Args:
        first: a policy.
        second: another, which keeps no number of the same name.

    Cost: a perturbed step where both want one; their rates multiplied, which is the share where
    neither depends on the other (`Late` and `Early` that do not meet perturb nothing).

    Raises:
        TypeError: one of them is not a policy.
        ValueError: both keep numbers of the same name.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.policy import Both, EveryK, Late
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> policy = Both(Late(total_steps=1000, start=0.5), EveryK(k=5))
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, policy=policy)
        >>> optimizer.gradients_per_step()
        1.1
    """

    first: Policy
    second: Policy

    def __post_init__(self) -> None:
        check.kind("first", self.first, Policy, "flatmin.policy.Late(total_steps=1000)")
        check.kind("second", self.second, Policy, "flatmin.policy.EveryK()")
        twice = self.first.memory.keys() & self.second.memory.keys()
        if twice:
            raise ValueError(
                f"both policies keep a number {min(twice)!r}, and one would overwrite the other's: "
                "take two of different kinds"
            )

    @property
    def memory(self) -> Mapping[str, float]:
        return MappingProxyType({**self.first.memory, **self.second.memory})

    @property
    def needs_gradient(self) -> bool:
        return self.first.needs_gradient or self.second.needs_gradient

    @property
    def rate(self) -> float:
        return self.first.rate * self.second.rate

    def perturbs(self, at: Probe) -> bool:
        wanted = [self.first.perturbs(at), self.second.perturbs(at)]
        return all(wanted)
