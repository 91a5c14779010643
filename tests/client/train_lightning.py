"""A small training by Lightning on the processor; run by a test with the package's name and a folder.

Its last line says what it did: steps, tokens, FLOPs, validations, checkpoints.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from flopwatch.hooks.lightning import callback

WIDTH, VOCABULARY, TOKENS, BATCH, STEPS = 32, 50, 16, 4, 6


def main(package: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    framework = importlib.import_module(package)

    class Model(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=WIDTH)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(self.embedding(ids)).chunk(3, dim=-1)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            result: torch.Tensor = self.head(mixed)
            return result

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            logits = self(batch["input_ids"])
            return nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"].flatten())

        def validation_step(self, batch: Any, number: int) -> None:
            self(batch["input_ids"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    rows = [{"input_ids": torch.randint(VOCABULARY, (TOKENS,))} for _ in range(BATCH * STEPS * 2)]
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=BATCH)  # type: ignore[arg-type]
    checkpoints = importlib.import_module(f"{package}.callbacks").ModelCheckpoint(
        dirpath=folder, every_n_train_steps=3, save_top_k=-1
    )
    trainer = framework.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2,
        val_check_interval=6,
        num_sanity_val_steps=0,
        limit_val_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback(seq_len=TOKENS, job="toy"), checkpoints],
    )
    trainer.fit(Model(), loader, loader)
    tokens = STEPS * 2 * BATCH * TOKENS
    parameters = 3 * WIDTH**2 + VOCABULARY * WIDTH
    did = {
        "steps": STEPS,
        "tokens": tokens,
        "flops": tokens * (6 * parameters + 6 * WIDTH * TOKENS),
        "validations": 2,
        "checkpoints": 2,
    }
    sys.stdout.write(json.dumps(did) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
