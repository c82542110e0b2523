"""Folders of this machine that go when this program ends, however it ends: SIGKILL too."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

FAREWELL_S = 10.0
# Its input ends when we do. What still writes there may bring the folder back once: a few tries.
SCRIPT = """
folder=$1
shift
read -r _
[ $# = 0 ] || "$@"
for pause in 0 1 1 2 4; do
    [ -e "$folder" ] || break
    sleep $pause
    rm -rf "$folder"
done
"""


@contextlib.contextmanager
def guarded_folder(prefix: str, place: Path | None = None, farewell: Sequence[str] = ()) -> Iterator[Path]:
    """A new private folder, removed when the context closes or this process dies.

    place: where; None for the system's temporary folder.  farewell: a command that is run before, given the folder
    in place of '{folder}'; its output goes nowhere.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place)).resolve()
    try:
        with _guard(folder, [word.replace("{folder}", str(folder)) for word in farewell]):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _guard(folder: Path, farewell: Sequence[str]) -> Iterator[None]:
    if shutil.which("sh") is None:
        yield
        return
    nowhere = subprocess.DEVNULL
    guard = subprocess.Popen(
        ["sh", "-c", SCRIPT, "sh", str(folder), *farewell],
        stdin=subprocess.PIPE,
        stdout=nowhere,
        stderr=nowhere,
        # Ctrl-C and a closed terminal are for us alone.
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert guard.stdin is not None
        with contextlib.suppress(OSError):
            guard.stdin.close()
        try:
            guard.wait(FAREWELL_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
