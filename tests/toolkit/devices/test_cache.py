"""What a device keeps of pushed files, here kept by this machine's own shells."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from acmix.toolkit.device import Completed
from acmix.toolkit.devices import _transfer
from acmix.toolkit.devices._cache import Cache, Kept
from acmix.toolkit.devices._item import PARTS, digest_of
from acmix.toolkit.devices._process import Sink
from acmix.toolkit.errors import GateError


class Shell:
    """A shell of this machine in the device's place. sent: the bytes that it was given."""

    def __init__(self, program: str) -> None:
        self.program, self.sent = program, 0

    def __call__(
        self,
        snippet: str,
        *,
        timeout_s: float,
        stdin: bytes | IO[bytes] = b"",
        limit_bytes: int = 0,
        sink: Sink | None = None,
    ) -> Completed:
        data = stdin if isinstance(stdin, bytes) else stdin.read()
        self.sent += len(data)
        words = [self.program, "-c", f"( {snippet}\n)"]
        done = subprocess.run(words, input=data, capture_output=True, timeout=timeout_s, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest) -> Shell:
    """dash or whatever sh is, and bash."""
    return Shell(request.param)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache of one megabyte."""
    return Cache(str(tmp_path / "kept it's"), 1)


@pytest.fixture
def push(shell: Shell, cache: Cache, tmp_path: Path) -> Callable[[bytes, str], Path]:
    """push(data, folder): the file of a push into a work folder."""

    def send(data: bytes, folder: str) -> Path:
        source = tmp_path / "source.bin"
        source.write_bytes(data)
        return Path(_transfer.push(shell, "board", str(tmp_path / folder), source, "model.bin", cache))

    return send


Push = Callable[[bytes, str], Path]


def files(cache: Cache) -> dict[str, bytes]:
    """Name to bytes."""
    return {file.name: file.read_bytes() for file in Path(cache.folder).iterdir()}


def test_the_next_push_sends_nothing(push: Push, shell: Shell, cache: Cache) -> None:
    data = random.Random(0).randbytes(300_000)
    first = push(data, "one")
    assert shell.sent == len(data)
    assert files(cache) == {digest_of(first): data}
    assert push(data, "two").read_bytes() == data
    assert shell.sent == len(data)
    assert cache.count(shell) == Kept(1, 296)


def test_a_wrong_file_under_a_right_name_is_replaced_and_not_used(push: Push, shell: Shell, cache: Cache) -> None:
    data = b"right" * 1000
    digest = digest_of(push(data, "one"))
    Path(cache.folder, digest).write_bytes(b"wrong" * 1000)
    assert push(data, "two").read_bytes() == data
    assert shell.sent == 2 * len(data) and files(cache) == {digest: data}


def test_what_was_not_used_for_longest_goes_first(push: Push, cache: Cache) -> None:
    one, two, three = (bytes([number]) * 400_000 for number in (1, 2, 3))
    names = {}
    for age, data in ((300, one), (200, two)):
        names[data] = digest_of(push(data, f"made-{age}"))
        os.utime(Path(cache.folder, names[data]), (1e9 - age, 1e9 - age))
    push(one, "again")
    names[three] = digest_of(push(three, "made-0"))
    assert files(cache) == {names[one]: one, names[three]: three}


def test_a_file_larger_than_the_limit_is_not_kept_and_throws_nothing_out(push: Push, cache: Cache) -> None:
    push(b"small", "one")
    assert push(b"x" * (1 << 20 | 1), "two").stat().st_size == 1 << 20 | 1
    assert list(files(cache).values()) == [b"small"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("keep", [True, False])
def test_a_full_disk_is_left_as_it_was_and_what_was_kept_makes_room(
    keep: bool, push: Push, shell: Shell, cache: Cache, tmp_path: Path
) -> None:
    source, data = tmp_path / "new.bin", b"new" * 10_000
    source.write_bytes(data)
    digest, folder = digest_of(source), tmp_path / "full"
    part = folder / PARTS / digest if keep else folder / f"new.bin.{digest[:16]}.part"
    send = partial(_transfer.push, shell, "board", str(folder), source, "new.bin", cache, keep)

    def fill() -> None:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.symlink_to("/dev/full")

    fill()
    with pytest.raises(GateError, match=r"board could not write new\.bin: .*No space left on device"):
        send()
    assert not os.path.lexists(part)
    push(b"old", "one")
    fill()
    assert Path(send()).read_bytes() == data
    assert not Path(cache.folder).exists()


def test_nothing_is_kept_where_nothing_tells_sizes(shell: Shell, cache: Cache, tmp_path: Path) -> None:
    """A device without du."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("mkdir", "cat", "sha256sum", "wc", "chmod", "mv", "rm", "ln", "cp", "touch", "ls"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    source = tmp_path / "source.bin"
    source.write_bytes(b"data")

    def bare(snippet: str, **options: Any) -> Completed:
        return shell(f"PATH={tools}; {snippet}", **options)

    assert (
        Path(_transfer.push(bare, "board", str(tmp_path / "one"), source, "model.bin", cache)).read_bytes() == b"data"
    )
    assert files(cache) == {}


def test_many_files_are_bounded_by_their_number(push: Push, cache: Cache) -> None:
    Path(cache.folder).mkdir()
    for number in range(1005):
        file = Path(cache.folder, f"{number:064x}")
        file.write_bytes(b"")
        os.utime(file, (1e9 + number, 1e9 + number))
    push(b"one more", "one")
    # The newest 999 were left, and one came.
    kept = sorted(files(cache))
    assert len(kept) == 1000 and f"{5:064x}" not in kept and f"{6:064x}" in kept


@pytest.mark.parametrize("beginning", [b"right" * 500, b"wrong" * 500, b"right" * 3000])
def test_a_push_that_was_cut_goes_on_in_the_next_call(
    beginning: bytes, push: Push, shell: Shell, cache: Cache, tmp_path: Path
) -> None:
    data = b"right" * 2000
    whole = push(data, "one")
    parts = tmp_path / "cut" / PARTS
    parts.mkdir(parents=True)
    (parts / digest_of(whole)).write_bytes(beginning)
    Path(cache.folder, digest_of(whole)).unlink()
    assert shell(cache.taking_over(f"'{parts}'"), timeout_s=30).code == 0
    assert files(cache) == {f"{digest_of(whole)}.part": beginning}
    shell.sent = 0
    assert push(data, "two").read_bytes() == data
    assert files(cache) == {digest_of(whole): data}
    # A wrong beginning shows at the end, and then all is sent.
    rest = len(data) - len(beginning)
    wanted = {b"r": rest, b"w": rest + len(data)}[beginning[:1]] if rest > 0 else len(data)
    assert shell.sent == wanted


def test_two_at_once_do_not_disturb_each_other(shell: Shell, cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.bin").write_bytes(bytes([number]) * 300_000)

    def one(number: int) -> None:
        remote = Path(_transfer.push(shell, "board", str(tmp_path / f"run-{number}"), source, "bundle", cache))
        for file in source.iterdir():
            assert (remote / file.name).read_bytes() == file.read_bytes()

    with ThreadPoolExecutor(6) as pool:
        # Together they are larger than the limit: they throw each other's files out, too.
        list(pool.map(one, range(12)))
    kept = files(cache)
    assert kept and all(digest_of(Path(cache.folder, name)) == name for name in kept)


@pytest.mark.parametrize("kind", ["link", "file", "foreign"])
def test_a_folder_that_is_not_ours_is_not_used(
    kind: str, push: Push, shell: Shell, cache: Cache, tmp_path: Path
) -> None:
    place, other = Path(cache.folder), tmp_path / "other"
    if kind == "file":
        place.write_bytes(b"")
    else:
        other.mkdir()
        if kind == "link":
            place.symlink_to(other)
        elif os.geteuid() == 0:
            other.rename(place)
            os.chown(place, 12345, 12345)
        else:
            pytest.skip("only root can give a folder to somebody else")
    for folder in ("one", "two"):
        assert push(b"data", folder).read_bytes() == b"data"
    assert shell.sent == 8 and cache.count(shell) == Kept(0, 0)
    assert kind == "file" or list(place.iterdir()) == []


def test_names_that_no_push_made_do_no_harm(push: Push, cache: Cache, tmp_path: Path) -> None:
    Path(cache.folder).mkdir()
    (tmp_path / "precious").write_bytes(b"x" * (2 << 20))
    for name in ("-rf", "a b", "*", "..."):
        Path(cache.folder, name).write_bytes(b"x" * (2 << 20))
    push(b"data", "one")
    assert (tmp_path / "precious").exists()
    assert set(files(cache)) >= {digest_of(tmp_path / "source.bin")}
