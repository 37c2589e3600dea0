"""Train a small vision transformer on real digits with the Hugging Face Trainer, by any method.

    python examples/transformers_digits.py --method agnostic-sam --epochs 10

The model comes from a configuration, so nothing is downloaded. Each image of 8 × 8 pixels is 16
patches of 2 × 2.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from plain import arguments, digits
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from transformers import EvalPrediction, TrainingArguments, ViTConfig, ViTForImageClassification

from flatmin.integrations.transformers import SharpnessAwareTrainer


class Images(Dataset[dict[str, Tensor]]):
    """What the Trainer wants: every sample a dict of the model's arguments."""

    def __init__(self, data: TensorDataset) -> None:
        self.images, self.labels = data.tensors

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def vision_transformer(seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_dropout_prob=0.1,
            initializer_range=0.2,
            attn_implementation="eager",
        )
    )


def arguments_of(folder: str, **options: Any) -> TrainingArguments:
    """What does not depend on the model; `options` go before it."""
    given: dict[str, Any] = {
        "per_device_train_batch_size": 64,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        **options,
    }
    return TrainingArguments(folder, **given)


def accuracy(seen: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((seen.predictions.argmax(-1) == seen.label_ids).mean())}


def trainer_of(
    method: str, folder: str, rho: float | None = None, **options: Any
) -> SharpnessAwareTrainer:
    train, test = digits()
    return SharpnessAwareTrainer(
        vision_transformer(),
        arguments_of(folder, **options),
        train_dataset=Images(train),
        eval_dataset=Images(test),
        compute_metrics=accuracy,
        method=method,
        rho=rho,
    )


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(args.method, folder, num_train_epochs=args.epochs)
        trainer.train()
        correct = trainer.evaluate()["eval_accuracy"]
    print(f"{args.method}: {100 * correct:.1f} % of the test digits")
