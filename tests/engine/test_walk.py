"""Weights leave home and come back bit for bit, however far they got."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flatmin.engine.space import LARGE, Space
from flatmin.engine.vec import Term, Vector
from flatmin.engine.walk import Walk

SHAPES = ((3, 2), (2 * LARGE,), (2, LARGE), (4,), (LARGE + 1,))
"""One block of small tensors, and three large ones."""


def moved(space: Space) -> list[Tensor]:
    return [torch.randn_like(x) for x in space.join(space.pieces)]


@pytest.mark.parametrize("reached", range(4))
@torch.no_grad()
def test_a_walk_that_breaks_off_is_undone(reached: int):
    """Some blocks have moved by then, and the others have no copy of this step yet."""
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    space = Space([params])
    walk = Walk(space, [params])
    walk.begin()
    walk.go(Vector(Term(moved(space))))
    walk.back()
    for p in params:  # the base optimizer's step
        p.add_(1.0)

    def breaks(j: int) -> float:
        if j == reached:
            raise MemoryError
        return 2.0

    walk.begin()
    before = [p.clone() for p in params]
    with pytest.raises(MemoryError):
        walk.go(Vector(Term(moved(space), 1.0, breaks)))
    walk.back()
    assert all(map(torch.equal, params, before))
    walk.go(Vector(Term(moved(space))))
    assert not any(map(torch.equal, params, before))
    walk.back()
    assert all(map(torch.equal, params, before))


@torch.no_grad()
def test_a_second_perturbation_is_from_home_and_not_from_the_first():
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    space = Space([params])
    walk = Walk(space, [params])
    walk.begin()
    far, near = (Vector(Term(moved(space))) for _ in range(2))
    walk.go(near)
    alone = [p.clone() for p in params]
    walk.back()
    walk.go(1e6 * far)
    walk.go(near)
    assert all(map(torch.equal, params, alone))
