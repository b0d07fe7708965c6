"""The probe's fixed inputs: recorded, passed by the user, restored from a checkpoint, shared over ranks."""
