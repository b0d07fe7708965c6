"""The record of a sample and the files that hold it: writing, reading back, following. No torch."""
