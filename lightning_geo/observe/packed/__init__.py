"""Rows that hold several documents: where these begin, whether masks keep them apart."""
