"""Two processes under a trainer equal one process on the joined batch, and decide together.

Run by `torchrun`, this file is what each of the two processes does.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tables import IMAGES, LABELS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, TensorDataset
from torchrun import launched, read

import flatmin

TRAINERS = ["accelerate", "lightning", "transformers"]
METHODS = ["sam", "agnostic-sam"]
STEPS, BATCH = 4, 32
DATA = TensorDataset(IMAGES[: STEPS * BATCH], LABELS[: STEPS * BATCH])

Batch = tuple[Tensor, Tensor]


class Network(nn.Module):
    """Says inf on request, with gradients as if nothing had happened."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10))
        self.calls = 0
        self.infinite_at = -1

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = cross_entropy(self.net(images), labels)
        if self.calls == self.infinite_at:
            loss = loss + torch.tensor(torch.inf)
        self.calls += 1
        return {"loss": loss}


def optimizer_of(method: str, model: nn.Module) -> flatmin.SharpnessAware:
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    build = flatmin.methods.find(method).build
    return build(base, 0.1, total_steps=STEPS, model=model)


def loader_of(rank: int, world: int) -> DataLoader[Any]:
    sampler = DistributedSampler(DATA, num_replicas=world, rank=rank, shuffle=False)
    return DataLoader(DATA, BATCH // world, sampler=sampler)


def plain(method: str) -> Network:
    model = Network()
    optimizer = optimizer_of(method, model)

    def look(batch: Batch) -> Tensor:
        loss = model(*batch)["loss"]
        loss.backward()
        return loss

    for batch in loader_of(0, 1):
        parts = flatmin.split(batch) if method == "agnostic-sam" else [batch]
        optimizer.step(*(partial(look, part) for part in parts))
    return model


def by_accelerate(method: str, model: Network, rank: int) -> flatmin.SharpnessAware:
    from accelerate import Accelerator

    from flatmin.integrations import accelerate as flat

    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    optimizer = accelerator.prepare(optimizer_of(method, prepared))

    def loss_on(batch: Batch) -> Tensor:
        return prepared(*batch)["loss"]

    for batch in loader_of(rank, 2):
        parts = flatmin.split(batch) if method == "agnostic-sam" else [batch]
        closures = [flat.accumulated(accelerator, prepared, loss_on, [part]) for part in parts]
        flat.step(accelerator, optimizer, *closures)
    return optimizer.optimizer


def by_lightning(method: str, model: Network, rank: int) -> flatmin.SharpnessAware:
    import lightning.pytorch as lightning

    from flatmin.integrations.lightning import SharpnessAwareModule

    class Digits(SharpnessAwareModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batch) -> Tensor:
            return self.model(*batch)["loss"]

        def configure_optimizers(self) -> Any:
            return optimizer_of(method, self.model)

    module = Digits()
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader_of(rank, 2))  # fmt: skip
    return module.trainer.optimizers[0]


def by_transformers(method: str, model: Network, rank: int) -> flatmin.SharpnessAware:
    from transformers import TrainingArguments

    from flatmin.integrations.transformers import SharpnessAwareTrainer

    class Digits(SharpnessAwareTrainer):
        def get_train_dataloader(self) -> Any:
            def collate(rows: Any) -> dict[str, Tensor]:
                images, labels = (torch.stack(column) for column in zip(*rows, strict=True))
                return {"images": images, "labels": labels}

            loader = loader_of(rank, 2)
            loader.collate_fn = collate
            return loader

    arguments = TrainingArguments(
        "unused", per_device_train_batch_size=BATCH // 2, num_train_epochs=1, max_grad_norm=0.0,
        lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, average_tokens_across_devices=False,
    )  # fmt: skip
    made = optimizer_of(method, model)
    trainer = Digits(
        model, arguments, train_dataset=DATA, optimizers=(made, None), auxiliary="split"
    )
    trainer.train()
    return made


def sharded(folder: Path, world: int, pieces: int) -> Tensor | None:
    """Weights that the Trainer trains, of a model that transformers shards as it loads it."""
    from transformers import LlamaForCausalLM, TrainingArguments

    from flatmin.integrations.transformers import SharpnessAwareTrainer

    class Ordered(SharpnessAwareTrainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    asked: dict[str, Any] = {}
    if world > 1:
        try:
            from transformers.distributed import DistributedConfig

            asked = {"distributed_config": DistributedConfig(fsdp_size=world)}
        except (ImportError, TypeError):  # older than that
            return None
    model = LlamaForCausalLM.from_pretrained(folder / "model", **asked)
    draw = torch.Generator().manual_seed(1)
    tokens = [torch.randint(32, (8,), generator=draw) for _ in range(32)]
    arguments = TrainingArguments(
        str(folder / "unused"), per_device_train_batch_size=8 // world // pieces,
        gradient_accumulation_steps=pieces, num_train_epochs=1, max_grad_norm=0.5, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", save_strategy="no", report_to="none",
        logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    data = [{"input_ids": t, "labels": t} for t in tokens]
    Ordered(model, arguments, train_dataset=data, method="sam", rho=0.1).train()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    assert (world > 1) == any(w is not p for w, p in zip(whole, model.parameters(), strict=True))
    return torch.cat([p.detach().flatten() for p in whole])


def tiny_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, num_hidden_layers=2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def work(folder: Path) -> None:
    """What each process does: train by every trainer, with sound losses and an infinite one."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    found: dict[str, Any] = {}
    for name in TRAINERS:
        train = globals()[f"by_{name}"]
        for method in METHODS:
            model = Network()
            train(method, model, rank)
            found[f"{name} {method}"] = vector(model)
        model = Network()
        model.infinite_at = 2 if rank == 1 else -1  # the first look of the second step
        cost = train("sam", model, rank).cost
        found[f"{name} inf"] = (vector(model), cost.steps, cost.skipped)
    for pieces in (1, 2):
        found[f"sharded {pieces}"] = sharded(folder, 2, pieces)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    sys.stderr.flush()
    # Gloo's threads, torn down beside the models that trainers have wrapped, abort once in forty.
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    for name in TRAINERS:
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = launched(request, "integrations/" + Path(__file__).name, 2, tiny_llama)
    return [torch.load(path) for path in read(folder, ["0.pt", "1.pt"])]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_equal_one_on_the_joined_batch(
    name: str, method: str, ranks: list[dict[str, Any]]
):
    mine, theirs = (found[f"{name} {method}"] for found in ranks)
    assert torch.equal(mine, theirs)
    joined = vector(plain(method))
    assert (mine - joined).norm() / joined.norm() < 1e-6
    assert (joined - vector(Network())).norm() / joined.norm() > 1e-2


@pytest.mark.parametrize("name", TRAINERS)
def test_an_infinite_loss_on_one_rank_drops_the_step_on_both(
    name: str, ranks: list[dict[str, Any]]
):
    (mine, *counts), (theirs, *their_counts) = (found[f"{name} inf"] for found in ranks)
    assert counts == their_counts == [STEPS - 1, 1]
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, ranks[0][f"{name} sam"])


@pytest.mark.parametrize("pieces", [1, 2])
def test_shards_of_transformers_take_the_steps_of_one_process(
    pieces: int, ranks: list[dict[str, Any]], tmp_path: Path
):
    mine, theirs = (found[f"sharded {pieces}"] for found in ranks)
    if mine is None:
        pytest.skip("this release of transformers does not shard as it loads")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    tiny_llama(tmp_path)
    alone = sharded(tmp_path, 1, 1)
    assert torch.equal(mine, theirs)
    assert (mine - alone).norm() / alone.norm() < 1e-6


if __name__ == "__main__":
    work(Path(sys.argv[1]))
