"""One file per way in which models compute attention."""
