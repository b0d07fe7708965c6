"""What is known about an attention call: axes, masks, positions and tokens, each source a file."""
