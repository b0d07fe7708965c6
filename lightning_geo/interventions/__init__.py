"""Acting on heads: ablation, pruning, explanation."""
