"""What training has cost so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Counts since the start of training; they are saved and resumed with the optimizer.

    `optimizer.cost` is one. Costs of several trainings add up with `+`.

    Args:
        steps: steps taken, at least 0; default 0. Skipped ones are not among them.
        perturbed: steps that looked around before they moved; default 0.
        gradients: forward-and-backward passes, on primary and auxiliary batches together; default
            0.
        auxiliary: those on auxiliary batches; default 0.
        skipped: steps dropped because a loss or a gradient was not finite; default 0.
        samples: samples differentiated; default 0. Counted when the optimizer knows the model
            (`model=`).
        primary_samples: those of them that a plain optimizer would have differentiated too; default
            0.
        distance: the sum of ‖ε‖ over perturbed steps; default 0. Counted with
            `measure_radius=True`.

    Examples:
        >>> import torch, flatmin
        >>> model, x = torch.nn.Linear(4, 1), torch.randn(8, 4)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> def closure():
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients, optimizer.cost.samples, optimizer.cost.ratio
        (2, 16, 2.0)
    """

    steps: int = 0
    perturbed: int = 0
    gradients: int = 0
    auxiliary: int = 0
    skipped: int = 0
    samples: int = 0
    primary_samples: int = 0
    distance: float = 0.0

    @property
    def share(self) -> float:
        """Perturbed steps in a hundred (%SAM of the AE-SAM paper); nan before the first step."""
        return 100 * self.perturbed / self.steps if self.steps else float("nan")

    @property
    def ratio(self) -> float:
        """Samples differentiated / samples in primary batches; nan without `model=`."""
        return self.samples / self.primary_samples if self.primary_samples else float("nan")

    @property
    def radius(self) -> float:
        """Mean ‖ε‖ of the perturbed steps; nan if it was not measured."""
        return self.distance / self.perturbed if self.distance and self.perturbed else float("nan")

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in COUNTS})

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Cost:
        """The counts among numbers that are kept by name.

        Args:
            numbers: by name, others among them; a count that is missing is 0.
        """
        return cls(**{name: numbers[name] for name in COUNTS if name in numbers})


COUNTS = tuple(f.name for f in fields(Cost))
"""Their names."""
