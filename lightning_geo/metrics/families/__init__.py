"""The entries of the catalogue, one file a family."""
