"""float32 masters of parameters that a model holds in a narrower type.

In bfloat16 a weight has 8 bits: most updates, and most perturbations, are rounded away. A master
keeps the rest. The base optimizer steps on masters; the model evaluates rounded copies of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.engine.vec import NARROW

KEY = "master"
"""Where a parameter's state keeps its master, for checkpoints."""


class Masters:
    """Puts masters into a base optimizer's groups, and knows which evaluated copy is whose.

    Raises ValueError if the base optimizer has stepped already, or its parameters are sharded.
    """

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.evaluated: dict[Tensor, Tensor] = {}
        if base.state:
            raise ValueError(
                "the base optimizer has stepped already, on the narrow parameters themselves: "
                "ask for masters=True when it is new"
            )
        for group in base.param_groups:
            self.adopt(group)

    def adopt(self, group: dict[str, Any]) -> None:
        """Replace the narrow parameters of a group by masters."""
        group["params"] = [self._master_of(p) for p in group["params"]]

    def _master_of(self, p: Tensor) -> Tensor:
        if p in self.evaluated or p.dtype not in NARROW:
            return p
        if hasattr(p, "device_mesh"):
            raise ValueError(
                "masters=True is for whole parameters: fully_shard keeps float32 shards by "
                "itself, with MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
            )
        master = nn.Parameter(p.detach().float(), requires_grad=p.requires_grad)
        self.evaluated[master] = p
        return master

    @torch.no_grad()
    def write_evaluated(self) -> None:
        """Round every master into the copy that the model evaluates."""
        for master, rounded in self.evaluated.items():
            rounded.copy_(master)

    def store(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Put the masters where checkpoints find them, where the base optimizer has set up."""
        for master in self.evaluated:
            if state.get(master):
                state[master][KEY] = master.detach()

    @torch.no_grad()
    def load(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Take the masters from a checkpoint; where it has none, from their evaluated copies."""
        for master, rounded in self.evaluated.items():
            kept = state.get(master, {}).get(KEY)
            master.copy_(rounded if kept is None else kept)
        self.store(state)
        self.write_evaluated()
