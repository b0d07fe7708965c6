"""Running a model once more without a trace in training."""
