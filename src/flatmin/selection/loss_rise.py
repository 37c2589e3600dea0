"""The sharpness-sensitive data selection of ESAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.selection.base import Selection

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.probe import PassGenerator, Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class LossRise(Selection):
    """The samples whose loss rose most from `w` to `w + eps`.

        B' = the max(1, int(gamma |B|)) samples i of B with the largest L_i(w + eps) - L_i(w)

    The closure is then called with the indices of the chosen samples, or None for the whole batch,
    and returns their losses, one for each; the optimizer averages them and runs the backward pass.

    Args:
        gamma: share of the batch to keep, in (0, 1]; default 0.5; at least one sample is kept. 1 is
            `WholeBatch()`, but for what the closure returns.

    Where nothing was perturbed (ESAM may keep no tensor), no loss rises and any samples will do.

    Cost: a forward pass over the batch at `w + eps` beyond the passes, none for gamma = 1; the
    perturbed pass costs gamma of a gradient.

    Raises:
        ValueError: `gamma` is out of range.

    Reference: Du et al., Efficient Sharpness-aware Minimization, ICLR 2022, arXiv:2110.03141, §3.2.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> selection = flatmin.selection.LossRise(gamma=0.25)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, selection=selection)
        >>> def losses(chosen):
        ...     inputs, labels = (x, y) if chosen is None else (x[chosen], y[chosen])
        ...     return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
        >>> loss = optimizer.step(losses)
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        check.in_range("gamma", self.gamma, 0.0, 1.0, open_low=True)

    @property
    def per_sample(self) -> bool:
        return True

    @property
    def share(self) -> float:
        return self.gamma

    def choose(self, at: Probe, eps: Vector) -> PassGenerator[Tensor | None]:
        before = at.losses
        assert before is not None  # the optimizer has seen to it
        if self.gamma == 1.0:
            return None
        # Also where all samples are kept, or there are none: other ranks may be running this pass.
        after = yield from at.losses_at(eps)
        kept = min(len(before), max(1, int(self.gamma * len(before))))
        rise = before - after if at.ascending else after - before
        return rise.topk(kept).indices.sort().values
