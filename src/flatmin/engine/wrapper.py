"""An optimizer that shares its parameter groups and its state with the one that it wraps."""

from __future__ import annotations

import difflib
import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from flatmin.engine import check
from flatmin.engine.cost import Cost
from flatmin.engine.memory import KEY

RADIUS = "rho"
"""The entry of every parameter group that holds the radius."""

RADIUS_BESIDE = "sam_rho"
"""The same where the base optimizer has a `rho` of its own (Adadelta, Sophia)."""


class Wrapper(torch.optim.Optimizer):
    """What makes a wrapped optimizer one optimizer: groups and state *are* the base optimizer's.

    Schedulers, checkpoints, `add_param_group`, deepcopy and pickle reach both at once, since there
    is one of everything. `rho` stands in each group, next to `lr`; so do the numbers that are kept.
    What is asked of it and not found is the base optimizer's: `optimizer.eval()`, say.
    """

    base: torch.optim.Optimizer
    defaults: dict[str, Any]
    _apart: MutableMapping[Tensor, dict[str, Any]] | None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups, each with its `rho`."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state: its buffers, and beside them those of the parts."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:  # type: ignore[override]
        self.base.state = state

    @property
    def radius_key(self) -> str:
        """The entry of a parameter group that holds its radius: `rho`.

        It is `sam_rho` over a base optimizer that has a `rho` of its own.
        """
        return RADIUS_BESIDE if RADIUS in self.base.defaults else RADIUS

    @property
    def rho(self) -> float:
        """The radius of all parameter groups; setting it sets them all.

        Raises ValueError where they differ: ask `param_groups`.
        """
        radii = {group[self.radius_key] for group in self.param_groups}
        if len(radii) > 1:
            raise ValueError(
                f"the parameter groups have different radii, {sorted(radii)}: read and set "
                f"group[{self.radius_key!r}] of each"
            )
        return radii.pop() if radii else self.defaults[self.radius_key]

    @rho.setter
    def rho(self, rho: float) -> None:
        check.at_least_zero("rho", rho)
        for group in self.param_groups:
            group[self.radius_key] = rho

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base")
        if base is not None and not name.startswith("_") and hasattr(base, name):
            return getattr(base, name)
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}" + _ELSEWHERE.get(name, "")
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; `param_group` may bring a `rho` of its own."""
        key = self.radius_key
        check.at_least_zero(key, param_group.get(key, self.defaults[key]))
        self.base.add_param_group(param_group)
        self._complete_groups()

    def state_dict(self) -> dict[str, Any]:
        """What the base optimizer saves, and with it the buffers and numbers of the parts.

        In the standard form, if the base optimizer saves in it. If not, its own form stands whole
        under `base`, beside ours.
        """
        for hook in self._hooks("_optimizer_state_dict_pre_hooks"):
            hook(self)
        packed = self.base.state_dict()
        if is_standard(packed, self.base):
            state = dict(packed["state"])
            for i, buffers in self._packed_buffers(_numbers_of(packed)).items():
                state[i] = {**state.get(i, {}), **buffers}
            packed = {**packed, "state": state}
        else:
            numbers = itertools.count()
            groups = [
                {
                    self.radius_key: group[self.radius_key],
                    KEY: group[KEY],
                    "params": [next(numbers) for _ in group["params"]],
                }
                for group in self.param_groups
            ]
            state = self._packed_buffers(_numbers_of({"param_groups": groups}))
            packed = {"state": state, "param_groups": groups, "base": packed}
        for hook in self._hooks("_optimizer_state_dict_post_hooks"):
            packed = hook(self, packed) or packed
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, or what the base optimizer alone has saved."""
        state_dict = dict(state_dict)
        for hook in self._hooks("_optimizer_load_state_dict_pre_hooks"):
            state_dict = hook(self, state_dict) or state_dict
        names = self._buffer_names()
        state: Mapping[int, Any] = state_dict.get("state", {})
        ours = {i: {n: x for n, x in found.items() if n in names} for i, found in state.items()}
        if "base" in state_dict:
            self.base.load_state_dict(state_dict["base"])
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
                group.update({n: x for n, x in saved.items() if n != "params"})
        else:
            theirs = {i: {n: x for n, x in s.items() if n not in names} for i, s in state.items()}
            theirs = {i: found for i, found in theirs.items() if found or not ours[i]}
            self.base.load_state_dict({**state_dict, "state": theirs})
        self._unpack_buffers(ours, _numbers_of(state_dict))
        self._complete_groups()
        self._loaded()
        for hook in self._hooks("_optimizer_load_state_dict_post_hooks"):
            hook(self)

    @property
    def _buffers(self) -> MutableMapping[Tensor, dict[str, Any]]:
        """Where the parts keep their buffers: beside those of the base optimizer, if it lets us."""
        return self.base.state if self._apart is None else self._apart

    def _packed_buffers(self, numbers: Sequence[Any]) -> dict[Any, dict[str, Any]]:
        """Our buffers by the number that a parameter has in a checkpoint."""
        names = self._buffer_names()
        packed: dict[Any, dict[str, Any]] = {}
        for i, p in zip(numbers, self._all_params(), strict=True):
            found = self._buffers.get(p, {})
            mine = {name: found[name] for name in names if name in found}
            if mine:
                packed[i] = mine
        return packed

    def _unpack_buffers(
        self, ours: Mapping[Any, Mapping[str, Any]], numbers: Sequence[Any]
    ) -> None:
        for i, p in zip(numbers, self._all_params(), strict=True):
            for name, value in ours.get(i, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    value = value.to(dtype=p.dtype, device=p.device)
                self._buffers[p][name] = value

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _hooks(self, name: str) -> list[Any]:
        hooks: OrderedDict[int, Any] = self.__dict__.get(name) or OrderedDict()
        return list(hooks.values())

    def _buffer_names(self) -> tuple[str, ...]:
        """Under which names buffers are kept beside the parameters."""
        return ()

    def _loaded(self) -> None:
        """A checkpoint was loaded."""

    def _numbers_at_start(self) -> dict[str, float]:
        """The numbers that are kept in every group, as they are before the first step."""
        return dict(_AT_START)

    def _complete_groups(self) -> None:
        """Give every group its `rho` and the numbers, which others' checkpoints lack."""
        groups, key = self.param_groups, self.radius_key
        numbers = {**self._numbers_at_start(), **groups[0].get(KEY, {})}
        for group in groups:
            check.at_least_zero(key, group.setdefault(key, self.defaults[key]))
            if group.get(KEY, {}).keys() != numbers.keys():
                group[KEY] = dict(numbers)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(dict(state))
        # One that makes its state anew whenever it is asked would lose what we put there.
        if self.base.state is self.base.state:
            self._apart = None
        else:
            self._apart = self.__dict__.get("_apart") or defaultdict(dict)
        self._complete_groups()


_AT_START: Mapping[str, float] = dict(vars(Cost()))
"""Counts before the first step."""

_ELSEWHERE = {
    "first_step": ": one call does both, optimizer.step(closure), where the closure runs forward "
    "and backward and returns the loss; a loop of its own takes optimizer.passes()",
    "second_step": ": one call does both, optimizer.step(closure), where the closure runs forward "
    "and backward and returns the loss; a loop of its own takes optimizer.passes()",
    "base_optimizer": ": it is called base",
}
"""What is asked for by those who come from other libraries."""


def is_standard(packed: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Is this the form in which `torch.optim.Optimizer` saves, parameter by parameter?"""
    if not isinstance(packed, Mapping) or not {"state", "param_groups"} <= packed.keys():
        return False
    content = cast("Mapping[str, Any]", packed)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    try:
        found = [len(group["params"]) for group in content["param_groups"]]
        return found == sizes and all(isinstance(i, int) for i in content["state"])
    except (KeyError, TypeError):
        return False


def _numbers_of(packed: Mapping[str, Any]) -> list[Any]:
    """How a checkpoint numbers the parameters, or names them, in their order."""
    return [number for group in packed["param_groups"] for number in group["params"]]


def check_radius(base: torch.optim.Optimizer, key: str, rho: float) -> None:
    """Raise ValueError if `base` carries another radius from an earlier flatmin optimizer."""
    carried = {group.get(key) for group in base.param_groups if KEY in group}
    if len(carried) == 1 and carried != {rho}:
        raise ValueError(
            f"this base optimizer carries {key}={carried.pop()} from an earlier flatmin optimizer, "
            f"and {key}={rho} would be ignored: build a new base, or set group[{key!r}] in its "
            "param_groups"
        )


def check_call(
    args: Sequence[Any], options: Mapping[str, Any], known: Mapping[str, Any] | None
) -> None:
    """Raise TypeError, with the right call, for calls that other libraries have in this place."""
    rho = args[1] if len(args) > 1 else options.get("rho")
    if isinstance(rho, type):
        raise TypeError(
            f"flatmin takes an optimizer that is built, not the class {rho.__name__}: "
            f"flatmin.SAM(torch.optim.{rho.__name__}(model.parameters(), lr=0.1), rho=0.05)"
        )
    if isinstance(rho, torch.nn.Module):
        raise TypeError(
            "the second argument is the radius rho, and the model is given by its name: "
            "flatmin.SAM(base, rho=0.05, model=model)"
        )
    for name in options.keys() - {"base", "rho"} - (known or {}).keys():
        if name == "adaptive":
            raise TypeError(
                "there is no option adaptive: SAM in the metric of ASAM is flatmin.ASAM(base, "
                "rho=0.5), and any method in it takes geometry=flatmin.geometry.Adaptive()"
            )
        if name in _OF_BASES:
            raise TypeError(
                f"{name} is the base optimizer's: build it with that, as in flatmin.SAM("
                f"torch.optim.SGD(model.parameters(), {name}=...), rho=0.05)"
            )
        near = difflib.get_close_matches(name, [*(known or ()), "rho"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known or ())}"
        raise TypeError(f"unknown option {name!r}: {hint}")


_OF_BASES = (
    "lr",
    "momentum",
    "weight_decay",
    "dampening",
    "nesterov",
    "betas",
    "eps",
    "amsgrad",
    "foreach",
    "fused",
)


def check_base(base: object) -> None:
    """Raise TypeError or ValueError unless `base` can take the steps."""
    if isinstance(base, type):
        raise TypeError(
            f"base must be an optimizer, got the class {base.__name__}: build it first, as in "
            f"base = {base.__name__}(model.parameters(), lr=0.1)"
        )
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(
            f"base must be a torch.optim optimizer, got {check.describe(base)}: build one first, "
            "as in base = torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    if isinstance(base, Wrapper):
        raise ValueError(
            "base is already sharpness-aware, and looking around inside a look around has no "
            "meaning: pass its own base (optimizer.base), and choose the parts together"
        )
    if isinstance(base, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss by itself within a step, so it cannot take the step of "
            "another gradient: use SGD, Adam, AdamW or another optimizer whose step() needs no "
            "closure"
        )
    if isinstance(base, torch.optim.SparseAdam):
        raise ValueError(
            "SparseAdam takes sparse gradients only, and these have no place here: use Adam"
        )
