"""The commands of ``lightning-geo``, one a file: options, work and output together."""
