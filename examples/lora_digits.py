"""Fine-tune a small language model by adapters (LoRA of PEFT), with SAM on the adapters alone.

    pip install peft transformers
    python examples/lora_digits.py --method friendly-sam --epochs 10

An image is a text: 16 patches of 2 × 2 pixels, row by row, in 17 letters of grey. The model, a
GPT-2 of two layers, comes from a configuration with random weights, so nothing is downloaded; they
stay as they are. The optimizer holds the adapters and the new head, and so these alone are
perturbed, copied and stepped: of the frozen weights SAM keeps nothing.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, TaskType, get_peft_model
from plain import accuracy, arguments, digits, loader_of
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2ForSequenceClassification

import flatmin


def texts(data: TensorDataset) -> TensorDataset:
    """A letter in place of each patch."""
    images, labels = data.tensors
    return TensorDataset((avg_pool2d(images, 2).flatten(1) * 16).round().long(), labels)


class Scores(nn.Module):
    """A classifier of texts whose output is the scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        plain = GPT2ForSequenceClassification(
            GPT2Config(
                vocab_size=17,
                n_positions=16,
                n_embd=64,
                n_layer=2,
                n_head=4,
                num_labels=10,
                pad_token_id=0,
                initializer_range=0.2,
            )
        )
        adapters = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=16,
            target_modules=["c_attn", "c_fc", "c_proj"],
            fan_in_fan_out=True,
        )
        self.model = get_peft_model(plain, adapters)

    def forward(self, letters: Tensor) -> Tensor:
        # all letters count: padding has no letter here
        return self.model(input_ids=letters, attention_mask=torch.ones_like(letters)).logits


def train(method: str, epochs: int) -> nn.Module:
    data = texts(digits()[0])
    model = Scores()
    adapters = [p for p in model.parameters() if p.requires_grad]
    pairs = flatmin.paired(loader_of(data), fraction=0.25)
    row = flatmin.methods.find(method)
    base = torch.optim.AdamW(adapters, lr=1e-2)
    optimizer = row.build(base, total_steps=epochs * len(pairs), model=model)

    def loss_on(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    for epoch in range(epochs):
        model.train()
        pairs.set_epoch(epoch)
        for primary, auxiliary in pairs:
            second = (lambda: loss_on(auxiliary),) if row.auxiliary else ()
            optimizer.step(lambda: loss_on(primary), *second)
    trained = sum(p.numel() for p in adapters)
    print(f"{trained:,} of {sum(p.numel() for p in model.parameters()):,} weights were trained")
    return model


if __name__ == "__main__":
    args = arguments(__doc__)
    model = train(args.method, args.epochs)
    right = accuracy(model, texts(digits()[1]))
    print(f"{args.method}: {100 * right:.1f} % of the test digits")
