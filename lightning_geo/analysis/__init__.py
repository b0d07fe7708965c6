"""Runs compared and summed up from their records. No torch."""
