"""What ``on_gpu.py`` measures on a CUDA device: one stage a file."""
