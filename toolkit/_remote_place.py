"""An artifact on a device: pushed with its runner and its inputs, proven there, and run again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from acmix.toolkit._remote_runner import RemoteRunner, RunnerBundle, start_runner
from acmix.toolkit.artifact import Artifact, check_digests
from acmix.toolkit.conditions import Conditions, Gate, Identity, State
from acmix.toolkit.device import Transport, printable
from acmix.toolkit.devices._guard import guarded_folder
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.execute import Reference, compared, file_inputs
from acmix.toolkit.joining import RUNNER, own_file
from acmix.toolkit.measure import Timed
from acmix.toolkit.profile import MOST_PHOTOS, interface_of
from acmix.toolkit.reproof import judged, stored_references
from acmix.toolkit.samples import Samples
from acmix.toolkit.state.reading import identify, read_state
from acmix.toolkit.target import Array, to_layout
from acmix.toolkit.verify import Proof

TIMED_PROBE = "noise"
MOST_THREADS = 256
EMULATED_WARM_UP_S = 0.5
COUNTED_RUNS = 3
FLAG = "counts_instructions"


@dataclass(frozen=True)
class Placed:
    """An artifact on the device: paths there. inputs: by probe, one file an input; turns: those of the timed runs."""

    artifact: Artifact
    bundle: RunnerBundle
    folder: str
    file: str
    references: tuple[Reference, ...]
    inputs: dict[str, tuple[str, ...]]
    turns: tuple[tuple[str, ...], ...]

    def start(self, transport: Transport) -> contextlib.AbstractContextManager[RemoteRunner]:
        return start_runner(transport, self.bundle, self.folder, self.artifact.manifest.file_outputs)


def send_and_prove(
    transport: Transport,
    artifacts: Sequence[tuple[Artifact, RunnerBundle]],
    threads: int,
    report: Callable[[str], None],
    photos: Sequence[Samples] = (),
    counting: bool = False,
) -> list[Placed]:
    """Artifacts and their runners on the device, each proven there. counting: its instructions will be asked for.

    Raises UsageError for a changed artifact and a number of threads that cannot be, GateError when the device fails
    or an output there is not what it should be: a fast wrong answer is worth nothing.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads {threads}: it is a number from 1 to {MOST_THREADS}.")
    for artifact, _ in artifacts:
        check_digests(artifact)
    if counting:
        _refuse_counting(transport.device.name, reader(transport)[0], threads)
    report(f"{transport.device.name}: sending")
    bundles = {bundle.name: bundle for _, bundle in artifacts}
    folders = {name: transport.push(bundle.folder, f"runners/{name}", keep=True) for name, bundle in bundles.items()}
    placed = [
        place(transport, artifact, bundle, folders[bundle.name], number, photos[number] if photos else None)
        for number, (artifact, bundle) in enumerate(artifacts)
    ]
    for each in placed:
        report(f"{transport.device.name}: proving {each.artifact.name}")
        _hold(transport.device.name, each, _prove(transport, each, threads))
    return placed


def place(
    transport: Transport,
    artifact: Artifact,
    bundle: RunnerBundle,
    folder: str,
    number: int,
    photos: Samples | None = None,
) -> Placed:
    """Push the model file, the probes and the photos, for a runner that lies in `folder` there.

    number: of the artifact. Each has a place of its own: the same model file may come with other probes.
    """
    below = f"models/{number}"
    model = own_file(artifact, RUNNER)
    file = transport.push(model, f"{below}/{model.name}", keep=True)
    references, interface = tuple(stored_references(artifact)), interface_of(artifact)
    probes = {one.identifier: file_inputs(one.inputs, interface) for one in references}
    inputs = _push_inputs(transport, f"{below}/inputs", probes.items(), keep=True)
    # A user's photos do not stay there.
    fed = ((f"photo-{i}", file_inputs(each, interface)) for i, each in enumerate(islice(photos or (), MOST_PHOTOS)))
    turns = tuple(_push_inputs(transport, f"{below}/photos", fed, keep=False).values()) if photos is not None else ()
    return Placed(artifact, bundle, folder, file, references, inputs, turns or (inputs[TIMED_PROBE],))


def _push_inputs(
    transport: Transport, name: str, fed: Iterable[tuple[str, Sequence[Array]]], keep: bool
) -> dict[str, tuple[str, ...]]:
    """Inputs by their stems, pushed under `name`; the paths there."""
    with guarded_folder("acmix-inputs-") as here:
        names = {stem: write_inputs(here, stem, arrays) for stem, arrays in fed}
        there = transport.push(here, name, keep)
    return {stem: tuple(f"{there}/{each}" for each in files) for stem, files in names.items()}


def write_inputs(folder: Path, stem: str, arrays: Sequence[Array]) -> tuple[str, ...]:
    """The raw little-endian bytes of inputs, one file each; their names."""
    names = tuple(f"{stem}.{i}.bin" for i in range(len(arrays)))
    for name, array in zip(names, arrays, strict=True):
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        (folder / name).write_bytes(np.ascontiguousarray(little).tobytes())
    return names


def run_probes(transport: Transport, placed: Placed, threads: int) -> dict[str, list[Array]]:
    """What the file gives there on each of its probes, by probe, in the file's own layout."""
    with placed.start(transport) as runner:
        runner.load(placed.file, threads)
        return {identifier: runner.run(files)[1] for identifier, files in placed.inputs.items()}


def count_instructions(transport: Transport, placed: Sequence[Placed], threads: int) -> dict[int, tuple[int, ...]]:
    """What an inference of each takes, by place; GateError where the device cannot count."""
    name, found = transport.device.name, {}
    for number, each in enumerate(placed):
        with each.start(transport) as runner:
            runner.load(each.file, threads)
            runner.run(each.turns[0])
            try:
                found[number] = runner.count(COUNTED_RUNS)
            except GateError as error:
                cure = f"Without a counter, boot qemu-system with -icount shift=1, or take {FLAG} out of {name}.toml."
                raise GateError(f"{error}\n{cure}") from error
    return found


def _refuse_counting(name: str, identity: Identity, threads: int) -> None:
    """GateError where the count would mean nothing: no emulated device, for all that is known, or several threads."""
    if not identity.emulation:
        what = (
            "is no emulated device: it has a latency" if identity.emulation == () else "does not say whether it is real"
        )
        raise GateError(f"{name} {what}.\nTake {FLAG} out of {name}.toml.")
    if threads != 1:
        raise GateError(f"{name} counts the instructions of one thread, not of --threads {threads}.\nUse --threads 1.")


def _prove(transport: Transport, placed: Placed, threads: int) -> Proof:
    """What reproof asks on this host, asked on the device."""
    interface = interface_of(placed.artifact)
    found, rows = run_probes(transport, placed, threads), []
    for reference in placed.references:
        pairs = zip(found[reference.identifier], interface.file_outputs, interface.outputs, strict=True)
        rows.append(compared(reference, [to_layout(array, have, wanted) for array, have, wanted in pairs]))
    return judged(placed.artifact, rows)


def _hold(device: str, placed: Placed, proof: Proof) -> None:
    """GateError with the worst output when the device computes something else."""
    failed = [one for one in (*proof.agreements, *proof.conversion) if not one.passed]
    if not failed:
        return
    worst = min(failed, key=lambda one: -1e9 if one.snr_db is None else one.snr_db)
    ratio = "nothing" if worst.snr_db is None else f"{worst.snr_db:.1f} dB"
    raise GateError(
        f"{placed.artifact.name} gives wrong outputs on {device}: {worst.output} keeps {ratio} on the probe "
        f"{worst.worst_sample}, {worst.asked_db:.0f} dB are asked; it was not measured.\n"
        f"`acmix verify` tells whether the file is right here; then the runtime there is at fault "
        f"({placed.bundle.runtime})."
    )


class RemoteLane:
    """One artifact in a runner on a device. profiled: with the kernels of every run timed."""

    def __init__(self, runner: RemoteRunner, placed: Placed, threads: int, profiled: bool = False) -> None:
        self.runner, self.placed, self.threads, self.profiled = runner, placed, threads, profiled
        self.runs = 0

    def load(self) -> Timed:
        return self.runner.load(self.placed.file, self.threads, self.profiled)

    def run(self) -> Timed:
        turns, number = self.placed.turns, self.runs
        self.runs += 1
        if number == 0:
            return self.runner.run(turns[0])[0]
        return self.runner.time(turns[number % len(turns)] if len(turns) > 1 else ())


def reader(transport: Transport) -> tuple[Identity, Callable[[bool], State]]:
    """What the device is, and how its state is read: thoroughly or between two runs."""
    identity = identify(transport.read_text, transport.run)

    def read(thorough: bool) -> State:
        return read_state(identity, transport.read_text, transport.run, thorough=thorough, remote=True)

    return identity, read


def described(transport: Transport, placed: Sequence[Placed], identity: Identity) -> dict[str, str]:
    """The device and the runtimes on it, for people."""
    device = transport.device
    model = " ".join(word for word in (identity.model, identity.soc) if word)
    return {
        "device": device.name,
        "transport": device.transport,
        "cpu": printable(model) or device.name,
        "system": printable(identity.system or ""),
        "runtime": "; ".join(dict.fromkeys(each.bundle.runtime for each in placed)),
    }


def conditions_of(
    transport: Transport, placed: Sequence[Placed], threads: int, identity: Identity, state: State, gate: Gate
) -> Conditions:
    """What is known before the first run. state: a reading of now."""
    cores = transport.device.cores
    return Conditions(threads, cores, _governor(state, cores), described(transport, placed, identity), identity, gate)


def _governor(state: State, cores: Sequence[int]) -> str:
    """Of the processors that are used, of all when the system chooses; 'unknown' where none is told."""
    clocks = [c for c in state.clocks or () if not cores or set(c.cpus) & set(cores)]
    names = dict.fromkeys(printable(c.governor, 40) for c in clocks if c.governor)
    return ", ".join(names) or "unknown"
