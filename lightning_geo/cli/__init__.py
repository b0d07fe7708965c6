"""The commands of ``lightning-geo``, one a file: what each prints, as text."""
