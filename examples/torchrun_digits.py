"""Train by several processes, each with a copy of the model (DDP) or a shard of it (FSDP2).

    torchrun --nproc-per-node 2 examples/torchrun_digits.py --method agnostic-sam --epochs 10
    torchrun --nproc-per-node 2 examples/torchrun_digits.py --shard

Started by python alone, it is the one process of its world.
"""

from __future__ import annotations

import os

import torch.distributed as dist
from plain import BATCH, accuracy, arguments, digits, network, optimizer_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import flatmin


def train(method: str, epochs: int, *, shard: bool) -> nn.Module:
    data, _ = digits()
    net = network()  # from the same seed in every process
    net = fully_shard(net) if shard else net
    model = net if shard else DistributedDataParallel(net)
    each = BATCH // dist.get_world_size()
    loader = DataLoader(data, each, sampler=DistributedSampler(data), drop_last=True)
    pairs = flatmin.paired(loader, fraction=0.25, seed=dist.get_rank())
    optimizer = optimizer_of(method, model, total_steps=epochs * len(pairs))

    def loss_on(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    for epoch in range(epochs):
        pairs.set_epoch(epoch)
        for primary, auxiliary in pairs:
            second = (lambda: loss_on(auxiliary),) if flatmin.methods.find(method).auxiliary else ()
            optimizer.step(lambda: loss_on(primary), *second)
    whole = network()
    whole.load_state_dict(get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)))
    return whole


if __name__ == "__main__":
    args = arguments(__doc__, "--shard")
    if "RANK" in os.environ:  # torchrun has started it
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trained = train(args.method, args.epochs, shard=args.shard)
        if dist.get_rank() == 0:
            print(f"{args.method}: {100 * accuracy(trained, digits()[1]):.1f} % of the test digits")
    finally:
        dist.destroy_process_group()
