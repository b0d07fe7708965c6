"""Train a small vision transformer on handwritten digits, from scratch: subspaces form out of noise.

The digits come with scikit-learn: 1,797 images of 8 x 8 pixels, cut into 16 patches of 2 x 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Subset
from transformers import ViTConfig, ViTForImageClassification

from common import options, train


def digits(seed: int, limit: int | None, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation images, one fifth of each digit held out."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 8.0 - 1.0).astype(np.float32).reshape(-1, 1, 8, 8)
    rows: Any = [
        {"pixel_values": torch.from_numpy(image), "labels": int(label)}
        for image, label in zip(pixels, labels, strict=True)
    ]
    indices = range(len(rows))
    training, validation = train_test_split(indices, test_size=0.2, random_state=seed, stratify=labels)
    return (
        DataLoader(Subset(rows, training[:limit]), batch_size, shuffle=True),
        DataLoader(Subset(rows, validation[: limit and limit // 4]), batch_size),
    )


def small_vit() -> ViTForImageClassification:
    """4 layers of 4 heads, width 64: 0.2 million weights."""
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=8,
            patch_size=2,
            num_channels=1,
            id2label={digit: str(digit) for digit in range(10)},
        )
    )


def main() -> None:
    parser = options(__doc__, epochs=40, learning_rate=2e-3)
    parser.set_defaults(every_n_steps=40, batch_size=32)
    args = parser.parse_args()
    pl.seed_everything(args.seed)
    train(args, "finetune_vit", small_vit(), digits(args.seed, args.limit, args.batch_size))


if __name__ == "__main__":
    main()
