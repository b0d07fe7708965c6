"""When samples are taken, on which ranks, and what survives a restart."""
