"""Rows that hold several documents: their boundaries, and whether masks separate them."""
