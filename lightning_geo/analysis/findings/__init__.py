"""Findings: something that a run's records say is wrong or unusual, where, since when, and what to do."""
