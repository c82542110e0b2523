"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path


def write_whole(file: Path, data: bytes) -> Path:
    """Write a file beside its place, readable for all, and put it there; a disk that is full leaves nothing of it."""
    with tempfile.NamedTemporaryFile(dir=file.absolute().parent, prefix=f".{file.name}.", delete=False) as partial:
        place = Path(partial.name)
        try:
            partial.write(data)
            partial.flush()
            place.chmod(0o644)
            return place.replace(file)
        except BaseException:
            place.unlink()
            raise
