"""Runs of ``transformers.Trainer`` with a ``GeometryCallback``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lightning_geo import GeometryCallback, GeometryHistory, load_history
from support.lit import bert, sequences

METRICS = ["entropy", "subspace"]


def made(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return bert(**options)


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            # with a cache, which the Trainer of transformers 4 leaves on, a row's documents see each other
            use_cache=False,
        )
    )  # fmt: skip


def options(directory: Path, kind: Any = TrainingArguments, **changes: Any) -> Any:
    given = {
        "output_dir": str(directory), "max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2,
    }  # fmt: skip
    return kind(**{**given, **changes})


def callback(**changes: Any) -> GeometryCallback:
    return GeometryCallback(**{"every_n_steps": 2, "metrics": METRICS, "strict": True, **changes})


def fit(directory: Path, *callbacks: Any, model: Any = None, data: Any = None, **changes: Any) -> Trainer:
    resume = changes.pop("resume", None)
    collator = changes.pop("collator", None)
    trainer = Trainer(
        model or made(), options(directory, **changes), collator, data or sequences(),
        eval_dataset=sequences(8, seed=5), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def record(directory: Path, version: int = 0) -> GeometryHistory:
    return load_history(directory / "lightning_geo" / f"version_{version}")


def messages(caught: list[warnings.WarningMessage]) -> str:
    return "\n".join(str(w.message) for w in caught if "GeometryMonitor" in str(w.message))
