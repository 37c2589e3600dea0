"""Classify text with a small BERT and the Hugging Face Trainer, by any method.

    python examples/transformers_text.py --method agnostic-sam --epochs 10

From which package of Python's standard library does a docstring come? The text is at hand wherever
Python is, the model comes from a configuration, its words from the training texts: nothing is
downloaded. With a checkpoint of the hub, `AutoTokenizer` and `AutoModelForSequenceClassification`
take the places of `Words` and `bert`.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plain import arguments
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification
from transformers_digits import accuracy, arguments_of

from flatmin.integrations.transformers import SharpnessAwareTrainer

PACKAGES = ("asyncio", "email", "logging", "unittest")
LENGTH = 24  # words of a text that are looked at
PAD, UNKNOWN = 0, 1


def docstrings(package: str) -> Iterator[str]:
    for path in sorted((Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def texts() -> tuple[list[tuple[list[str], int]], list[tuple[list[str], int]]]:
    """Words and package, to train and to test on."""
    found = {
        (tuple(words), label)
        for label, package in enumerate(PACKAGES)
        for text in docstrings(package)
        if len(words := re.findall(r"[a-z_]+", text.lower())[:LENGTH]) >= 4
    }
    every = [(list(words), label) for words, label in sorted(found)]
    random.Random(0).shuffle(every)
    return every[: len(every) * 4 // 5], every[len(every) * 4 // 5 :]


class Words(Dataset[dict[str, Tensor]]):
    """Texts as numbers of words, with the arguments of the model by name."""

    def __init__(self, data: list[tuple[list[str], int]], known: dict[str, int]) -> None:
        numbers = [[known.get(word, UNKNOWN) for word in words] for words, _ in data]
        rows = [row + [PAD] * (LENGTH - len(row)) for row in numbers]
        self.words, self.labels = torch.tensor(rows), torch.tensor([label for _, label in data])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        words = self.words[index]
        return {
            "input_ids": words,
            "attention_mask": (words != PAD).long(),
            "labels": self.labels[index],
        }


def bert(words: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=words,
            num_labels=len(PACKAGES),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            pad_token_id=PAD,
            initializer_range=0.1,
            attn_implementation="eager",
        )
    )


def trainer_of(method: str, folder: str, **options: Any) -> SharpnessAwareTrainer:
    train, test = texts()
    counted = Counter(word for words, _ in train for word in words)
    frequent = [word for word, count in counted.most_common() if count > 1]
    known = {word: number for number, word in enumerate(frequent, UNKNOWN + 1)}
    return SharpnessAwareTrainer(
        bert(len(known) + 2),
        arguments_of(folder, per_device_train_batch_size=32, **options),
        train_dataset=Words(train, known),
        eval_dataset=Words(test, known),
        compute_metrics=accuracy,
        method=method,
    )


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(args.method, folder, num_train_epochs=args.epochs)
        trainer.train()
        correct = trainer.evaluate()["eval_accuracy"]
    print(f"{args.method}: {100 * correct:.1f} % of the test texts")
