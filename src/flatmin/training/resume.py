"""What a run needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from flatmin.optimizer import SharpnessAware
from flatmin.schedules import RhoScheduler
from flatmin.training.checkpoints import Checkpoints
from flatmin.training.data.batches import Stream
from flatmin.training.errors import InputError
from flatmin.training.observer import Observer
from flatmin.training.processes import ProcessGroup
from flatmin.training.recorder import Recorder


@dataclass(frozen=True)
class Session:
    """Everything in a run that changes from step to step, and where it is kept.

    Fields:
        checkpoints: where; None to keep nothing.
        group: whose leader reads and writes; each rank has random numbers of its own.
        streams: the primary batches, and the auxiliary ones if there are any.
    """

    checkpoints: Checkpoints | None
    group: ProcessGroup
    model: nn.Module
    optimizer: SharpnessAware
    schedule: LRScheduler
    rho_schedule: RhoScheduler | None
    streams: tuple[Stream, ...]
    recorder: Recorder
    observer: Observer | None = None

    def save(self, epoch: int, curve: list[dict[str, float]]) -> None:
        """Keep the run as it is at the end of `epoch`."""
        if self.checkpoints is None:
            return
        states = self.group.states(self.model, self.optimizer)
        random = self.group.from_all(_random_numbers(self.group.device))
        trouble = None
        if self.group.leads:
            try:
                self.checkpoints.save(
                    epoch,
                    {
                        "model": states[0],
                        "optimizer": states[1],
                        "schedule": self.schedule.state_dict(),
                        "rho_schedule": self.rho_schedule and self.rho_schedule.state_dict(),
                        "streams": [stream.state() for stream in self.streams],
                        "recorder": self.recorder.state(),
                        "observer": None if self.observer is None else self.observer.state(),
                        "random": random,
                        "curve": curve,
                    },
                )
            except InputError as error:
                trouble = str(error)
        trouble = self.group.from_leader(trouble)
        if trouble:
            raise InputError(trouble)

    def resume(self) -> list[dict[str, float]]:
        """Go on from the newest checkpoint, and return the curve so far; empty if there is none."""
        found, trouble = None, None
        if self.checkpoints is not None and self.group.leads:
            try:
                found = self.checkpoints.newest()
            except InputError as error:
                trouble = str(error)
        found, trouble = self.group.from_leader((found, trouble))
        if trouble:
            raise InputError(trouble)
        return self._load(found[1]) if found else []

    def _load(self, state: dict[str, Any]) -> list[dict[str, float]]:
        self.group.load(self.model, self.optimizer, (state["model"], state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        if self.rho_schedule is not None:
            self.rho_schedule.load_state_dict(state["rho_schedule"])
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.load(saved)
        self.recorder.load(state["recorder"])
        if self.observer is not None:
            self.observer.load(state["observer"])
        if len(state["random"]) == self.group.world:  # another number of ranks draws afresh
            _set_random_numbers(self.group.device, state["random"][self.group.rank])
        return state["curve"]


def _random_numbers(device: torch.device) -> list[Tensor]:
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def _set_random_numbers(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
