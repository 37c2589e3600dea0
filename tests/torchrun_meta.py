"""What each process of test_meta runs: a few-shot training whose tasks they share."""

import dataclasses
import sys
from pathlib import Path

import torch

from flatmin.studies.meta import training
from flatmin.training import processes

sys.path.insert(0, str(Path(__file__).parent / "studies"))

from test_meta import SMALL, drawn, weights

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    wanted = dataclasses.replace(SMALL, method="sam", level="both", rho=0.05)
    with processes.started():
        group = processes.ProcessGroup.here("cpu")
        learner = training.train(wanted, drawn(), folder / "run", batching="loop", group=group)
        losses = learner.evaluate(drawn().test.batch(0, 8)).losses
        found = {"weights": weights(learner), "losses": losses}
        torch.save(found, folder / f"rank-{group.rank}.pt")
