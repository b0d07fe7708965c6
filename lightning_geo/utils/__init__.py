"""Shared by all rooms: argument checks, errors, this process among ranks, numbers as text."""
