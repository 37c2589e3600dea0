"""What a task is, and many of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Task(NamedTuple):
    """A support set to adapt to, and a query set to be judged by.

    Args:
        support_x: inputs to adapt to, (samples, ...).
        support_y: their targets, (samples, ...).
        query_x: inputs to be judged by, (samples, ...).
        query_y: their targets, (samples, ...).

    Examples:
        >>> import torch
        >>> from flatmin.meta import Task
        >>> x = torch.linspace(-1, 1, 10).unsqueeze(-1)
        >>> task = Task(x[::2], x[::2].sin(), x[1::2], x[1::2].sin())
        >>> task.query_y.shape
        torch.Size([5, 1])
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def to(self, device: torch.device | str) -> Task:
        """The task on `device`."""
        return Task(*(part.to(device) for part in self))


def checked(tasks: Sequence[Task]) -> list[Task]:
    """The tasks of a meta-batch; TypeError or ValueError if they are none."""
    if isinstance(tasks, Task):
        raise TypeError("expected a list of tasks, got one Task: wrap it, as in [task]")
    found = list(tasks)
    for task in found:
        if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"a meta-batch is a list of flatmin.meta.Task, got {type(task).__name__}"
            )
    if not found:
        raise ValueError("a meta-batch has no task: give at least one")
    return found


def stacked(tasks: Sequence[Task]) -> Task:
    """Tasks of one shape as one, with the tasks in front."""
    return Task(*(torch.stack(parts) for parts in zip(*tasks, strict=True)))


def alike(tasks: Sequence[Task]) -> bool:
    """Have all tasks the same shapes, so that they can run together?"""
    return len({tuple(part.shape for part in task) for task in tasks}) == 1
