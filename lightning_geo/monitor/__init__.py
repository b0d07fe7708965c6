"""Decides when and on which ranks samples are taken, and keeps their state over restarts."""
