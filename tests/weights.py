"""How two trained models differ."""

import torch
from torch import nn


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def deviation(a: nn.Module, b: nn.Module) -> float:
    x, y = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b))
    return float((x - y).norm() / y.norm())
