"""The run of finetune_bert.py with LoRA adapters instead of all weights, to lay the two side by side.

Same texts, same split, same seed and so the same probe: the charts of the two can be laid over each other.
"""

from __future__ import annotations

import argparse
from functools import partial

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from finetune_bert import parser, run


def with_adapters(model: PreTrainedModel, *, rank: int) -> PeftModel:
    """Freeze the model but for its classifier and add adapters where peft puts them for this architecture."""
    adapted = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=2 * rank))
    trained, every = adapted.get_nb_trainable_parameters()
    print(f"Trained parameters: {trained:,} of {every:,} ({trained / every:.1%})")
    return adapted


def main() -> None:
    options = parser(__doc__, learning_rate=1e-3)
    options.add_argument("--lora-rank", type=int, default=8, help="rank of the update of each adapted weight")
    args: argparse.Namespace = options.parse_args()
    run(args, "finetune_lora", partial(with_adapters, rank=args.lora_rank))


if __name__ == "__main__":
    main()
