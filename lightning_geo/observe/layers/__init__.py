"""The modules of an observed model: which are running, and which layer of which stack each is."""
