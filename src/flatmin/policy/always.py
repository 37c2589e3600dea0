"""The policy of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Always(Policy):
    """Every step is perturbed, as in SAM.

    Cost: a perturbed step, every time; a rate of 1.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, policy=flatmin.policy.Always())
    """

    @property
    def rate(self) -> float:
        return 1.0

    def perturbs(self, at: Probe) -> bool:
        return True
