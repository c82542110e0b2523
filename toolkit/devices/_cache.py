"""Files that stay on a device for the next call: in one folder beside the work folders, each named by its SHA-256.

A file appears in it by a rename, whole. Nothing in it is believed all the same: it is linked into the work folder of
the connection, and used there when the device finds its digest right; a wrong one is sent again and replaced.
Where a push was cut, what had come lies there as <digest>.part, and only the next push of the same bytes takes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from acmix.toolkit.devices._framing import quote
from acmix.toolkit.devices._item import Execute, Item

FOLDER = "acmix-cache"
MOST_FILES = 1000
"""A shell there looks at each of them with every file that is sent."""
TIMEOUT_S = 30.0
COUNTED = re.compile(rb"([0-9]{1,9}) ([0-9]{1,12})\n")
# Android forbids hard links, and a network file system may: then it is a copy. `ours`: not what somebody else has put
# there for us to link, and not where nothing tells sizes. mksh counts in 32 bits: sizes are in KiB. `du` lists its
# arguments in their order, the newest first.
FUNCTIONS = """
ours() {{ [ -d "$c" ] && [ ! -L "$c" ] && [ -O "$c" ] && command -v du >/dev/null; }}
same() {{ ln "$1" "$2" 2>/dev/null || cp "$1" "$2" 2>/dev/null; }}
take() {{
    if [ -f "$c/$1" ] && [ ! -e "$2" ]; then
        if same "$c/$1" "$2"; then touch "$c/$1"; chmod "$4" "$2"; else rm -f "$2"; fi
    fi
    if [ -f "$c/$1.part" ] && [ ! -e "$3" ]; then mv "$c/$1.part" "$3"; fi
}}
put() {{
    same "$1" "$c/$2.$$.new" && mv -f "$c/$2.$$.new" "$c/$2"
    rm -f "$c/$2.$$.new"
}}
listed() {{
    set -f
    set -- $(ls -t)
    [ $# = 0 ] || du -k -- "$@"
}}
trim() {{ (
    cd "$c" || exit
    kb=0 files=0
    listed | while read -r size name; do
        files=$((files + 1)) kb=$((kb + size))
        if [ $kb -gt "$1" ] || [ $files -ge {most} ]; then rm -f -- "$name"; fi
    done
) }}
count() {{ (
    cd "$c" || exit
    kb=0 files=0
    listed | {{ while read -r size name; do kb=$((kb + size)) files=$((files + 1)); done; echo $files $kb; }}
) }}
c={folder}
"""


@dataclass(frozen=True)
class Kept:
    """What a device keeps."""

    files: int
    kb: int

    @property
    def mb(self) -> float:
        """With one decimal."""
        return round(self.kb / 1024, 1)


@dataclass(frozen=True)
class Cache:
    """The folder of one device. folder: its absolute path there; limit_mb: above 0."""

    folder: str
    limit_mb: int

    @property
    def functions(self) -> str:
        """For the beginning of a snippet."""
        return FUNCTIONS.format(folder=quote([self.folder]), most=MOST_FILES)

    @property
    def limit_kb(self) -> int:
        """In KiB."""
        return self.limit_mb << 10

    def taking(self, items: Sequence[Item]) -> str:
        """A snippet that makes the folder, and links what it has of these into the work folder."""
        takes = "\n".join(
            f"take {quote([item.digest, item.remote, item.part, item.mode])}" for item in items if item.kept
        )
        return f'{self.functions}(umask 077; mkdir -p "$c")\nif ours; then\n{takes}\nfi' if takes else ":"

    def making_room(self, item: Item) -> str:
        """A snippet that throws out what was not used for longest, until the item has room."""
        return f"{self.functions}if ours; then trim {self.limit_kb - item.kb}; fi"

    def putting(self, item: Item) -> str:
        """A snippet, behind the last one, that keeps an item which has arrived whole. It is no error if it cannot."""
        return f"if ours; then put {quote([item.remote, item.digest])}; fi"

    def taking_over(self, parts: str) -> str:
        """A snippet that keeps what came of pushes that were cut. parts: their folder, quoted for a shell."""
        return (
            f"{self.functions}if ours; then\n"
            f'for p in {parts}/*; do [ ! -s "$p" ] || mv -f "$p" "$c/${{p##*/}}.part"; done\n'
            f"trim {self.limit_kb}\nfi"
        )

    def count(self, execute: Execute) -> Kept:
        """What there is."""
        done = execute(f"{self.functions}if ours; then count; fi", timeout_s=TIMEOUT_S)
        found = COUNTED.search(done.stdout)
        return Kept(int(found[1]), int(found[2])) if found else Kept(0, 0)

    def empty(self, execute: Execute) -> bool:
        """Remove all of it; whether there was anything."""
        if not self.count(execute).files:
            return False
        return execute(f'{self.functions}if ours; then rm -rf "$c"; fi', timeout_s=TIMEOUT_S).code == 0
