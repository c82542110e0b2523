"""A work folder on a device, held by a shell there: it removes the folder when this program ends, however it ends.

The shell's input is a pipe of ours. SIGKILL closes that too, and so does a cable that is pulled. Which of the two it
was cannot be told there, so the folder waits a few seconds for us to come back: a push that was cut can go on then.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Callable

from acmix.toolkit.device import printable
from acmix.toolkit.devices import _process
from acmix.toolkit.devices._framing import frame, quote, unframe
from acmix.toolkit.devices._lines import ProcessLines
from acmix.toolkit.errors import GateError

GRACE_S = 3
START_TIMEOUT_S = 15.0
HELD = b"held\n"
BYE = b"bye\n"
# The folder above is shared with other runs on the same device: only an empty one is removed, and one may vanish
# while we make ours in it.
SCRIPT = """
umask 077
d={folder}
mkdir -p "$d" 2>/dev/null || {{ sleep 1; mkdir -p "$d"; }} || exit 1
echo {token} >"$d/.keeper" && echo held || exit 1
trap '' HUP INT TERM PIPE
word=
read -r word
[ "$word" = bye ] || sleep {grace_s}
[ "$(cat "$d/.keeper" 2>/dev/null)" = {token} ] || exit 0
(
{last}
)
# Under another name first: whoever comes back now makes a folder of his own, which is not ours to remove.
gone=$d.gone
mv "$d" "$gone" || exit 1
for pause in 0 1 1 2 4; do
    sleep $pause
    rm -rf "$gone"
    [ -e "$gone" ] || break
done
rmdir "${{d%/*}}" 2>/dev/null
[ ! -e "$gone" ]
"""


class Keeper:
    """One folder and the shell that holds it. folder: an absolute path on the device.

    last: a shell snippet that runs there before the folder goes.
    """

    def __init__(self, device: str, argv: Callable[[str], list[str]], folder: str, last: str = ":") -> None:
        self.device, self.argv, self.folder, self.last = device, argv, folder, last
        self._lines: ProcessLines | None = None

    def hold(self) -> None:
        """Make the folder, or take it over from a shell whose connection broke; GateError when it cannot be made."""
        if self._lines is not None:
            if self._lines.process.poll() is None:
                return
            _process.end(self._lines.process)
        token = secrets.token_hex(8)
        script = SCRIPT.format(folder=quote([self.folder]), token=token, grace_s=GRACE_S, last=self.last)
        made = frame(script)
        process = _process.start(self.argv(made.script), stdin=subprocess.PIPE)
        self._lines = ProcessLines(self.device, process, made)
        try:
            said = self._lines.readline(START_TIMEOUT_S, 100)
        except GateError as error:
            words = printable(unframe(made, bytes(self._lines.stderr)).stderr[-400:])
            self._end()
            raise GateError(f"{self.device}: no work folder at {self.folder}: {words or 'no answer'}") from error
        if said != HELD:
            self._end()
            raise GateError(f"{self.device}: no work folder at {self.folder}: its shell says {printable(said, 60)!r}")

    def release(self, timeout_s: float) -> bool:
        """Have the folder removed; whether the shell there says that it is gone.

        GateError when the shell says nothing in time: whoever asks again would wait as long for nothing.
        """
        lines = self._lines
        if lines is None:
            return True
        try:
            with contextlib.suppress(GateError):
                lines.write(BYE)
            code = lines.wait(timeout_s)
            if code is None and lines.process.poll() is None:
                raise GateError(
                    f"{self.device}: no answer within {timeout_s:g} s whether {self.folder} is removed: the device "
                    "hangs, or its disk is slow.\nIts own shell removes the folder when it goes on; "
                    "`acmix devices clean` does it later."
                )
            return code == 0
        finally:
            self._end()

    def _end(self) -> None:
        if self._lines is not None:
            with contextlib.suppress(OSError):
                _process.end(self._lines.process)
            self._lines = None
