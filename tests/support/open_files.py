"""Which files this process holds open."""

from __future__ import annotations

from pathlib import Path


def open_files(directory: Path) -> list[str]:
    """Files of this process below a directory."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        found += [target] if target.startswith(f"{directory}/") else []
    return found
