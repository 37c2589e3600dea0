"""Run by torchrun: trains as each line of its first argument says, and writes what rank 0 found."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from flatmin.training import InputError, Training, load, processes, train

torch.set_num_threads(1)

with processes.started():
    rank = dist.get_rank()
    for line in json.loads(sys.argv[1]):
        training = Training.of(line["training"])
        data = load(training.data, limit=training.limit)
        folder = line.get("checkpoints")

        def run(folder=folder, data=data, training=training, line=line):
            try:
                found = train(training, data, checkpoints=folder, parallel=line["parallel"])
            except InputError as refusal:
                return str(refusal)
            values = asdict(found)
            for epoch in values["epochs"]:
                del epoch["seconds"]
            return values

        first = again = run()
        if folder:
            if rank == 0:
                (Path(folder) / f"epoch-{training.epochs:06d}.pt").unlink()
            dist.barrier()
            again = run()
        everywhere = [None, None]
        dist.all_gather_object(everywhere, repr(first))
        if rank == 0:
            same = {"again": repr(first) == repr(again), "ranks": everywhere[0] == everywhere[1]}
            Path(line["out"]).write_text(json.dumps({"found": first, "same": same}))

if rank == 0 and sys.platform == "linux":
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    Path(sys.argv[2]).write_text(json.dumps([name for name in names if "gloo" in name]))
