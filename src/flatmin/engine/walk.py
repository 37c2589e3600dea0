"""Weights that leave home and come back bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatmin.engine.space import Space, copy_
from flatmin.engine.vec import Term, Vector

CURRENT_POSITION = Vector()
"""Where the weights stand, for those who no longer know how they came there: known by
identity, since as a vector it would be zero."""


class _Home(Sequence[Tensor]):
    """The blocks of the unperturbed weights, each copied when it is first asked for."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def __getitem__(self, j: Any) -> Any:
        return self._walk.block(j)

    def __len__(self) -> int:
        return len(self._walk.space.blocks)


class Walk:
    """Moves the parameters in place to `w + eps` and copies `w` back afterwards.

    Adding and subtracting a perturbation changes about one weight in a hundred, so `w` is kept:
    one copy of the weights, allocated at the first walk and used again at every later one.
    """

    def __init__(self, space: Space, groups: Sequence[Sequence[Tensor]]) -> None:
        self.space = space
        self._ids = [list(map(id, group)) for group in groups]
        self._copy: list[Tensor] = []
        self._views: list[list[Tensor]] = []
        self._runs: list[list[Tensor]] = []
        self._moved: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._packed: list[bool] = []
        self._home = Vector(Term(_Home(self)))
        self._here: Vector | None = None
        self._in_place: list[Tensor] = []

    def fits(self, groups: Sequence[Sequence[Tensor]]) -> bool:
        """Are these the parameters that it moves, in the form and in the place that it knew?"""
        # The space holds its parameters, so that no id has gone to another tensor.
        same = [list(map(id, group)) for group in groups] == self._ids
        return same and self.space.still_holds()

    def begin(self) -> None:
        """A step begins: the weights are home, and the base optimizer has moved home since."""
        self._packed = [False] * len(self.space.blocks)

    @property
    def home(self) -> Vector:
        """The unperturbed weights, wherever the parameters stand now."""
        return self._home

    def go(self, to: Vector | None) -> None:
        """Stand at `w + to`; None is home."""
        if to is self._here or to is CURRENT_POSITION:
            return
        if to is None:
            self.back()
            return
        if not self._copy:
            self._allocate()
        # Always from `w`, never from where we stand: differences would add up their rounding. At
        # home `w` is read where it is overwritten, which is one sweep over memory less.
        start = self._copy if self._here is not None else self._in_place
        there = Vector(Term(start)) + to
        # Before the first weight moves: whatever is raised from here on, `back` has to undo.
        self._here = to
        for j, b in enumerate(self.space.blocks):
            self.block(j)  # the copy, while there is something to copy
            if b.joined:
                moved, views = self._moved[j]
                there.into(moved, j)
                copy_(self.space.parts[j], views)
            else:
                there.into(self.space.parts[j][0], j)
        self.space.write_evaluated()

    def back(self) -> None:
        if self._here is None:
            return
        self._here = None
        for j, views in enumerate(self._views):
            # Where `go` was interrupted, some blocks have not moved yet, and their copies are those
            # of an earlier step.
            if self._packed[j]:
                copy_(self.space.parts[j], views)
        self.space.write_evaluated()

    def forget_way(self) -> Vector:
        """Forget the way here, and with it the gradients it was made of."""
        self._here = CURRENT_POSITION
        return CURRENT_POSITION

    def pull(self, share: float) -> None:
        """`w + share (w' - w)` from weights `w'` that have moved on since they came home."""
        if share == 1.0:
            return
        # Weights that the base steps left alone stay bit for bit: `inf - inf` would make them nan.
        for j, views in enumerate(self._views):
            for moved, w in zip(self.space.parts[j], views, strict=True):
                moved.copy_(torch.where(moved == w, w, w + share * (moved - w)))

    def distance(self) -> float:
        """`‖eps‖` of the place where the weights stand."""
        if self._here is None:
            return 0.0
        # Measured, since the way here may be forgotten; so it is also what rounding has left of it.
        now, was = Vector(Term(self._now())), Vector(Term(self._copy))
        return float(self.space.norm(now - was))  # host sync: a measurement

    def warn_if_standing_still(self) -> bool:
        """Warn if rounding takes more than half of the perturbation."""
        if self._here is None or not self._here.terms:  # also where the way was forgotten
            return False
        meant = lost = 0.0
        evaluated = [self.space.piece(i, x) for i, x in enumerate(self.space.evaluated)]
        for j, now in enumerate(self.space.join(evaluated)):
            eps = self._here.into(None, j).double()
            # Copies that are rounded for the model can stand still while their masters move.
            seen = now.double() - self._copy[j].to(now.dtype).double()
            meant += float(eps.square().sum())
            lost += float((seen - eps).square().sum())
        if not lost > meant / 4:  # squares: half of the length; also where they are nan
            return False
        dtypes = ", ".join(sorted({str(x.dtype).removeprefix("torch.") for x in evaluated}))
        warnings.warn(
            f"the perturbation, of length {meant**0.5:.3g}, is too small for {dtypes}: rounding "
            f"takes {100 * (lost / meant) ** 0.5:.0f} % of it. Raise rho, or keep the parameters "
            "in a wider type (float32)",
            RuntimeWarning,
            stacklevel=2,
        )
        return True

    def _now(self) -> list[Tensor]:
        return self.space.join(self.space.pieces)

    def block(self, j: int) -> Tensor:
        """Block `j` of the unperturbed weights: copied once a step, when it is first asked for.

        It is then still in the cache for those who ask.
        """
        if not self._copy:
            self._allocate()
        if not self._packed[j]:
            b, parts = self.space.blocks[j], self.space.parts[j]
            if b.runs:
                for run, like in zip(b.runs, self._runs[j], strict=True):
                    torch.cat(parts[run], out=like)
            else:
                copy_(self._views[j], parts)
            self._packed[j] = True  # now that it is whole
        return self._copy[j]

    def _allocate(self) -> None:
        self._copy = [torch.empty_like(x) for x in self._now()]
        self._views = [self.space.split(j, x) for j, x in enumerate(self._copy)]
        self._runs = [self.space.split_by_runs(j, x) for j, x in enumerate(self._copy)]
        # Large tensors move where they are; joined ones are small, and are moved in a copy.
        self._in_place = list(self._copy)
        for j, b in enumerate(self.space.blocks):
            if b.joined:
                moved = torch.empty_like(self._copy[j])
                self._moved[j] = moved, self.space.split(j, moved)
            else:
                self._in_place[j] = self.space.parts[j][0]
