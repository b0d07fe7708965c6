"""The record of a sample and the files that hold it: written, read back, followed. No torch."""
