"""Several base optimizers as one: each steps its own parameters, and everything else is joint."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flatmin.engine.wrapper import check_base, is_standard


class Several(torch.optim.Optimizer):
    """What stands where one base optimizer stands, for `flatmin.SAM([muon, adamw])`.

    Groups, state and `state_dict` are those of one optimizer with the groups of all of them, in
    their order. A group is added to the optimizer that is to step it: `optimizer.base.optimizers`.

    Args:
        optimizers: at least one, none of which shares a parameter with another.

    Raises:
        TypeError, ValueError: one of them cannot be a base, or two hold the same parameter.
    """

    optimizers: list[torch.optim.Optimizer]

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if not optimizers:
            raise ValueError("the list of base optimizers is empty: give one, or several")
        owners: dict[Tensor, torch.optim.Optimizer] = {}
        for each in optimizers:
            check_base(each)
            for p in _params(each):
                if owners.setdefault(p, each) is not each:
                    raise ValueError(
                        f"a parameter of shape {tuple(p.shape)} is held by two of the base "
                        "optimizers: give each parameter to one of them"
                    )
        self.__setstate__({"optimizers": list(optimizers)})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, in their order."""
        return [group for each in self.optimizers for group in each.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # type: ignore[override]
        rest = iter(groups)
        for each in self.optimizers:
            each.param_groups = list(itertools.islice(rest, len(each.param_groups)))

    @property
    def state(self) -> MutableMapping[Tensor, Any]:
        """The state of each parameter, kept by the optimizer that steps it."""
        return self._state

    @state.setter
    def state(self, state: Mapping[Tensor, Any]) -> None:  # type: ignore[override]
        self._state.clear()
        self._state.update(state)

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that all of them have, as the first has them."""
        first, *others = (each.defaults for each in self.optimizers)
        return {name: x for name, x in first.items() if all(name in d for d in others)}

    @torch._disable_dynamo  # pyright: ignore[reportUntypedFunctionDecorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Every optimizer steps."""
        loss = None if closure is None else closure()
        for each in self.optimizers:
            each.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for each in self.optimizers:
            each.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise ValueError(
            "of several base optimizers, which is to step the new group? Add it to that one: "
            "optimizer.base.optimizers[0].add_param_group(...)"
        )

    def state_dict(self) -> dict[str, Any]:
        """In the form of one optimizer; of optimizers with a form of their own, a list."""
        packed = [each.state_dict() for each in self.optimizers]
        if not all(map(is_standard, packed, self.optimizers)):
            return {"optimizers": packed}
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        start = 0
        for each, content in zip(self.optimizers, packed, strict=True):
            state.update({start + i: x for i, x in content["state"].items()})
            groups += (
                {**group, "params": [start + i for i in group["params"]]}
                for group in content["param_groups"]
            )
            start += len(_params(each))
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "optimizers" in state_dict:
            for each, content in zip(self.optimizers, state_dict["optimizers"], strict=True):
                each.load_state_dict(content)
            return
        groups = iter(state_dict["param_groups"])
        for each in self.optimizers:
            mine = [dict(g) for g in itertools.islice(groups, len(each.param_groups))]
            saved = [name for group in mine for name in group["params"]]  # or numbers
            numbers = itertools.count()
            for group in mine:
                group["params"] = [next(numbers) for _ in group["params"]]
            state = {
                i: state_dict["state"][name]
                for i, name in enumerate(saved)
                if name in state_dict["state"]
            }
            each.load_state_dict({"state": state, "param_groups": mine})

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._state = _JointState(state["optimizers"])
        super().__setstate__(dict(state))

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.optimizers))


def joined(base: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimizer, or several as one."""
    if isinstance(base, torch.optim.Optimizer):
        return base
    given: Any = base  # anything, since nobody has looked at it yet
    several = isinstance(given, list | tuple)
    optimizers: list[Any] = list(given) if several else []  # pyright: ignore[reportUnknownArgumentType]
    return Several(optimizers) if any(map(_is_optimizer, optimizers)) else given


class _JointState(MutableMapping[Tensor, Any]):
    """The states of several optimizers: each parameter's is where its optimizer keeps it."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def _of(self, p: Tensor) -> Any:
        for each in self._optimizers:
            if any(p is q for q in _params(each)):
                return each.state
        raise KeyError(p)

    def __getitem__(self, p: Tensor) -> Any:
        for each in self._optimizers:
            if p in each.state:
                return each.state[p]
        return self._of(p)[p]

    def __setitem__(self, p: Tensor, value: Any) -> None:
        self._of(p)[p] = value

    def __delitem__(self, p: Tensor) -> None:
        del self._of(p)[p]

    def __contains__(self, p: object) -> bool:
        return any(p in each.state for each in self._optimizers)

    def get(self, p: Tensor, default: Any = None) -> Any:
        """Not through `self[p]`, which makes an entry as torch's own state does."""
        for each in self._optimizers:
            if p in each.state:
                return each.state[p]
        return default

    def __iter__(self) -> Iterator[Tensor]:
        return itertools.chain.from_iterable(each.state for each in self._optimizers)

    def __len__(self) -> int:
        return sum(len(each.state) for each in self._optimizers)


def _is_optimizer(value: object) -> bool:
    return isinstance(value, torch.optim.Optimizer)


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
