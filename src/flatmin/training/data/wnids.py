"""The 1,000 classes of ImageNet, as WordNet numbers in the order of their labels."""

from __future__ import annotations

from pathlib import Path

WNIDS = tuple(Path(__file__).with_name("imagenet.txt").read_text().split())
