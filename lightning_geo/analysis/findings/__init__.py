"""Findings: what is wrong or unusual in a run's records, where, since when, and how to fix it."""
