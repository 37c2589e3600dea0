"""The metric that knows some of the parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from flatmin.engine import check
from flatmin.geometry.base import Geometry

if TYPE_CHECKING:
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True, eq=False, repr=False)
class Only(Geometry):
    """Perturb some of the parameters and leave the others where they are.

        T = 1 on the parameters chosen, 0 on the rest;   Γ(d) = T d / ‖T d‖

    The norm is over those alone, so that `‖eps‖ = rho`. All parameters are trained. It multiplies
    with other geometries: `Only(adapters) * Adaptive()`.

    Args:
        chosen: parameters, or a function of (name, parameter) that says which; names are those of
            `model=`, without what DDP and torch.compile put before them. Normalisation layers
            alone: `Only(norm_parameters(model))`; adapters alone:
            `Only(lambda name, p: "lora" in name)`. Fewer parameters stand a larger radius.

    Cost: no pass, no copy; nothing where whole tensors of more than 32,768 elements are left out.

    Raises:
        TypeError: `chosen` is neither, or has something else among the parameters.
        ValueError: none of the optimizer's parameters is chosen, or names are needed and `model=`
            was not given.

    Reference: Müller et al., Normalization Layers Are All That Sharpness-Aware Minimization Needs,
    NeurIPS 2023, arXiv:2306.04226 (SAM-ON: normalisation layers only).

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.geometry import Only, norm_parameters
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, 0.5, geometry=Only(norm_parameters(model)))
    """

    chosen: Iterable[Tensor] | Callable[[str, Tensor], bool]

    def __post_init__(self) -> None:
        if callable(self.chosen):
            return
        if isinstance(self.chosen, Tensor) or not hasattr(self.chosen, "__iter__"):
            raise TypeError(
                "Only takes parameters, or a function of (name, parameter), got "
                f"{check.describe(self.chosen)}: write Only([p]) or Only(lambda name, p: ...)"
            )
        params: tuple[Any, ...] = tuple(self.chosen)
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"Only takes parameters, got {check.describe(p)} among them; of "
                    "named_parameters(), leave out the names"
                )
        object.__setattr__(self, "chosen", params)

    def require(self, params: Mapping[str, Tensor]) -> None:
        if callable(self.chosen) and any(name.startswith(" ") for name in params):
            raise ValueError(
                "Only was given a function of names, and names are the model's: pass model= too, "
                "with all parameters of the optimizer in it"
            )
        if not any(self._takes(name, p) for name, p in params.items()):
            raise ValueError(
                "Only chooses none of the parameters of the optimizer: build it from the same "
                "model, after it was moved, sharded or wrapped"
            )

    def metric(self, at: Viewpoint, j: int) -> Tensor | float:
        members = at.members(j)
        taken = [self._takes(at.name(i), at.parameter(i)) for i in members]
        if all(taken) or not any(taken):
            return float(taken[0])
        values = dict(zip(members, map(float, taken), strict=True))
        return at.each(j, values.__getitem__)

    def _takes(self, name: str, p: Tensor) -> bool:
        if callable(self.chosen):
            return bool(self.chosen(name, p))
        return any(p is q for q in self.chosen)

    def __repr__(self) -> str:
        if callable(self.chosen):
            return f"Only({getattr(self.chosen, '__name__', 'a function')})"
        return f"Only({len(cast('tuple[Tensor, ...]', self.chosen))} parameters)"


def norm_parameters(model: nn.Module) -> list[Tensor]:
    """The parameters of a model's normalisation layers: torch's, and any that are called so.

    Args:
        model: any module.

    Examples:
        >>> import torch
        >>> from flatmin.geometry import norm_parameters
        >>> len(norm_parameters(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))))
        2
    """
    layers = (m for m in model.modules() if "norm" in type(m).__name__.lower())
    return [p for layer in layers for p in layer.parameters(recurse=False)]
