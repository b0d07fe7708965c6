"""Run a model again without a trace in training."""
