"""The tab "Geometry" in TensorBoard. TensorBoard finds it through the entry point ``tensorboard_plugins``."""
