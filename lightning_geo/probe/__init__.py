"""The fixed inputs: recorded, given by the user, restored from a checkpoint, shared over ranks."""
