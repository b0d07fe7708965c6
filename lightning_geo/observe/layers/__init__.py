"""The modules of an observed model: the running ones, and each one's layer and stack."""
