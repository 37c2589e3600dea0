"""Tasks from labelled samples: N classes, K samples of each to adapt to, others to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from flatmin.engine import check
from flatmin.engine.random import uniform
from flatmin.meta.task import Task

Rotations: TypeAlias = Literal["none", "classes", "drawn"]


class EpisodeSampler:
    """N-way K-shot tasks from any labelled set, each fixed by the seed and its number.

    Task 17 is the same however many were drawn before, by whom and on how many processes; so a
    training resumes by knowing the number of its step, and methods are tested on the same tasks.

    Args:
        x: samples `(n, ...)`; images as `(n, channels, height, width)`.
        y: labels `(n,)`, whole numbers of any size.
        ways: classes of a task.
        shots: samples of each class to adapt to.
        queries: further samples of each class to be judged by; default 15, as in the literature.
        seed: of the draws; default 0.
        rotations: of square images by quarter turns: "none" (default); "classes" makes each turn of
            a class a class of its own, four times as many (Santoro et al. 2016); "drawn" turns each
            class of a task by chance, without new classes.
        prepare: from drawn samples to what the model takes, such as uint8 to float; default
            None: as they are.

    Raises:
        ValueError: there are fewer classes than `ways`, or a class has too few samples.

    Examples:
        >>> import torch
        >>> from flatmin.meta import EpisodeSampler
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 6
        >>> sampler = EpisodeSampler(x, y, ways=5, shots=1, queries=3)
        >>> task = sampler[0]
        >>> task.support_x.shape, task.query_y.tolist()
        (torch.Size([5, 8]), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        ways: int,
        shots: int,
        queries: int = 15,
        *,
        seed: int = 0,
        rotations: Rotations = "none",
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            check.positive_int(name, value)
        check.seed(seed)
        check.one_of("rotations", rotations, ("none", "classes", "drawn"))
        if len(x) != len(y):
            raise ValueError(f"{len(x)} samples have {len(y)} labels: give one to each")
        if rotations != "none" and (x.ndim < 3 or x.shape[-1] != x.shape[-2]):
            raise ValueError(
                f"quarter turns need square images, got samples of shape {tuple(x.shape[1:])}: "
                'use rotations="none"'
            )
        self.x, self.ways, self.shots, self.queries = x, ways, shots, queries
        self.seed, self.rotations = seed, rotations
        self._prepare = prepare
        labels = y.cpu()
        names = cast("list[int]", labels.unique().tolist())
        self._members = [(labels == name).nonzero().flatten() for name in names]
        found = self.classes
        if ways > found:
            raise ValueError(
                f"{ways} ways ask for more classes than the {found} there are: lower ways to at "
                f"most {found}"
            )
        least = min(len(members) for members in self._members)
        if shots + queries > least:
            label = names[[len(members) for members in self._members].index(least)]
            raise ValueError(
                f"{shots} shots and {queries} queries take {shots + queries} samples of a class, "
                f"and class {label} has {least}: lower queries to at most {least - shots}"
                if shots < least
                else f"{shots} shots leave no query of class {label}, which has {least} samples: "
                f"lower shots to at most {least - 1}"
            )

    @property
    def classes(self) -> int:
        """How many classes tasks are drawn from, quarter turns included."""
        return len(self._members) * (4 if self.rotations == "classes" else 1)

    def __getitem__(self, number: int) -> Task:
        """Task `number`, from 0."""
        if number < 0:
            raise IndexError("tasks are numbered from 0, without an end")
        source = torch.Generator().manual_seed(
            int(uniform(self.seed, number) * 2**53)  # a seed of 53 bits
        )
        every = cast("list[int]", torch.randperm(self.classes, generator=source).tolist())
        parts: list[tuple[Tensor, Tensor]] = []
        for each in every[: self.ways]:
            members = self._members[each % len(self._members)]
            take = torch.randperm(len(members), generator=source)[: self.shots + self.queries]
            samples = self.x[members[take].to(self.x.device)]
            turn = each // len(self._members)
            if self.rotations == "drawn":
                turn = int(torch.randint(4, (), generator=source))
            if turn:
                samples = samples.rot90(turn, (-2, -1))
            if self._prepare is not None:
                samples = self._prepare(samples)
            parts.append((samples[: self.shots], samples[self.shots :]))
        support, query = (torch.cat(column) for column in zip(*parts, strict=True))
        names = torch.arange(self.ways, device=self.x.device)
        return Task(
            support,
            names.repeat_interleave(self.shots),
            query,
            names.repeat_interleave(self.queries),
        )

    def __iter__(self) -> Iterator[Task]:
        """All tasks, without an end."""
        number = 0
        while True:
            yield self[number]
            number += 1

    def batch(self, step: int, tasks: int) -> list[Task]:
        """The meta-batch of `step`, from 0: the next `tasks` after those of the steps before."""
        return [self[step * tasks + i] for i in range(tasks)]


def refuse_overlap(**parts: Sequence[str]) -> None:
    """Raise ValueError if two of the `parts`, each a list of class names, share a class."""
    names = list(parts)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(set(parts[first]) & set(parts[second]))
            if shared:
                more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
                raise ValueError(
                    f"{first} and {second} share the class {shared[0]}{more}: tasks at test time "
                    "are to be of classes never seen, so give each class to one part"
                )


__all__ = ["EpisodeSampler", "Rotations", "refuse_overlap"]
