"""Evidence about an attention call: axes, masks, positions and tokens, one source per file."""
