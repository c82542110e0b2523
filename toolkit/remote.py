"""Artifacts on a device: pushed, proven there on the stored probes, then measured like on this host.

A fast wrong answer is worth nothing: what comes out on the device must hold the artifact's own tolerances first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from acmix.toolkit._remote_runner import RemoteRunner, RunnerBundle, start_runner
from acmix.toolkit.artifact import Artifact, check_digests
from acmix.toolkit.conditions import Conditions, Identity, State
from acmix.toolkit.device import Transport, printable
from acmix.toolkit.devices._guard import guarded_folder
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.execute import Reference, compared, file_inputs
from acmix.toolkit.gate import wait_until_ready
from acmix.toolkit.joining import own_file
from acmix.toolkit.journal import Journal
from acmix.toolkit.measure import Event, Recorder, Timed, Watch, keep, measure
from acmix.toolkit.measurement import Header, Measurement, Subject, assemble
from acmix.toolkit.profile import MOST_PHOTOS, ProfileRequest, inputs_named, interface_of
from acmix.toolkit.reproof import judged, stored_references
from acmix.toolkit.samples import Samples
from acmix.toolkit.state.reading import identify, read_state
from acmix.toolkit.target import Array, to_layout
from acmix.toolkit.verify import Proof

__all__ = ["RunnerBundle", "outputs_on_device", "profile_on_device"]

TIMED_PROBE = "noise"
MOST_THREADS = 256
EMULATED_WARM_UP_S = 0.5


@dataclass(frozen=True)
class _Placed:
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


def profile_on_device(
    transport: Transport,
    artifacts: Sequence[tuple[Artifact, RunnerBundle]],
    request: ProfileRequest,
    report: Callable[[str], None],
    journal: Path | None = None,
    photos: Sequence[Samples] = (),
) -> Measurement:
    """Push, prove and measure artifacts on a device, each with its runner; nothing of ours stays there.

    request.threads: of the runtime.  The device's cores say where a runner is pinned.  journal: a new file that
    takes every sample as it comes.  photos: for each artifact its inputs, one a run in turn, pushed before; without
    them one input of noise is repeated.  Raises UsageError for a changed artifact, GateError when the device fails
    before there was anything to keep, or when an output there is not what it should be.
    """
    if not 1 <= request.threads <= MOST_THREADS:
        raise UsageError(f"--threads {request.threads}: it is a number from 1 to {MOST_THREADS}.")
    for artifact, _ in artifacts:
        check_digests(artifact)
    try:
        report(f"{transport.device.name}: sending")
        bundles = {bundle.name: bundle for _, bundle in artifacts}
        folders = {name: transport.push(bundle.folder, f"runners/{name}") for name, bundle in bundles.items()}
        placed = [
            _place(transport, artifact, bundle, folders[bundle.name], number, photos[number] if photos else None)
            for number, (artifact, bundle) in enumerate(artifacts)
        ]
        for each in placed:
            report(f"{transport.device.name}: proving {each.artifact.name}")
            _hold(transport.device.name, each, _prove(transport, each, request.threads))
        fed = inputs_named(len(placed[0].turns), photos)
        return _measure(transport, placed, request, fed, report, journal)
    finally:
        # A device that is gone removes the folder by itself; why it is gone is told already.
        with contextlib.suppress(GateError):
            transport.remove_work_folder()


def outputs_on_device(
    transport: Transport, artifact: Artifact, bundle: RunnerBundle, threads: int = 1
) -> dict[str, list[Array]]:
    """What a file gives on a device on each of its probes, by probe, in the file's own layout; not judged."""
    folder = transport.push(bundle.folder, f"runners/{bundle.name}")
    placed = _place(transport, artifact, bundle, folder, 0)
    return _run_probes(transport, placed, threads)


def _place(
    transport: Transport,
    artifact: Artifact,
    bundle: RunnerBundle,
    folder: str,
    number: int,
    photos: Samples | None = None,
) -> _Placed:
    """Push the model file, the probes and the photos, for a runner that lies in `folder` there.

    number: of the artifact. Each has a place of its own: the same model file may come with other probes.
    """
    place = f"models/{number}"
    model = own_file(artifact, "a runner on a device")
    file = transport.push(model, f"{place}/{model.name}")
    references = tuple(stored_references(artifact))
    interface, inputs, turns = interface_of(artifact), {}, []
    with guarded_folder("acmix-inputs-") as here:
        for reference in references:
            inputs[reference.identifier] = _write(here, reference.identifier, file_inputs(reference.inputs, interface))
        for turn, sample in enumerate(islice(photos or (), MOST_PHOTOS)):
            turns.append(_write(here, f"photo-{turn}", file_inputs(sample, interface)))
        there = transport.push(here, f"{place}/inputs")
    paths = {identifier: tuple(f"{there}/{name}" for name in names) for identifier, names in inputs.items()}
    fed = tuple(tuple(f"{there}/{name}" for name in names) for names in turns)
    return _Placed(artifact, bundle, folder, file, references, paths, fed or (paths[TIMED_PROBE],))


def _write(folder: Path, stem: str, arrays: Sequence[Array]) -> tuple[str, ...]:
    """The raw little-endian bytes of inputs, one file each; their names."""
    names = tuple(f"{stem}.{i}.bin" for i in range(len(arrays)))
    for name, array in zip(names, arrays, strict=True):
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        (folder / name).write_bytes(np.ascontiguousarray(little).tobytes())
    return names


def _run_probes(transport: Transport, placed: _Placed, threads: int) -> dict[str, list[Array]]:
    with placed.start(transport) as runner:
        runner.load(placed.file, threads)
        return {identifier: runner.run(files)[1] for identifier, files in placed.inputs.items()}


def _prove(transport: Transport, placed: _Placed, threads: int) -> Proof:
    """What reproof asks on this host, asked on the device."""
    interface = interface_of(placed.artifact)
    found, rows = _run_probes(transport, placed, threads), []
    for reference in placed.references:
        pairs = zip(found[reference.identifier], interface.file_outputs, interface.outputs, strict=True)
        rows.append(compared(reference, [to_layout(array, have, wanted) for array, have, wanted in pairs]))
    return judged(placed.artifact, rows)


def _hold(device: str, placed: _Placed, proof: Proof) -> None:
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


def _measure(
    transport: Transport,
    placed: Sequence[_Placed],
    request: ProfileRequest,
    fed: str,
    report: Callable[[str], None],
    journal: Path | None,
) -> Measurement:
    name = transport.device.name
    report(f"{name}: looking at the device")
    identity, read = _reader(transport)
    if identity.emulation:
        # A steady state of an emulator means nothing: do not wait for it.
        request = replace(request, warm_up_limit_s=min(request.warm_up_limit_s, EMULATED_WARM_UP_S))
    gate = wait_until_ready(lambda: read(False), request.wait_s, lambda said: report(f"{name}: {said}"))
    conditions = Conditions(
        request.threads, transport.device.cores, _governor(read(False), transport.device.cores),
        _described(transport, placed, identity), identity, gate,
    )  # fmt: skip
    header = Header(tuple(map(_subject, placed)), request.plan, fed, conditions)
    with contextlib.ExitStack() as stack:
        recorder = Recorder(len(placed), _opened(stack, journal, header))
        told = Watch(read, lambda said: report(f"{name}: {said}"))
        try:
            cut = keep(recorder, lambda: _measure_processes(transport, placed, request, recorder, told))
        finally:
            if journal and not recorder.has_samples:
                journal.unlink()
        # A device that vanished in mid-run tells nothing of its state afterwards: unknown.
        with contextlib.suppress(GateError):
            recorder.note(Event(after=read(True)))
    return assemble(header, recorder, cut)


def _measure_processes(
    transport: Transport, placed: Sequence[_Placed], request: ProfileRequest, recorder: Recorder, watch: Watch
) -> None:
    for _ in range(request.processes):
        with contextlib.ExitStack() as stack:
            runners = [stack.enter_context(each.start(transport)) for each in placed]
            lanes = [_RemoteLane(runner, each, request.threads) for runner, each in zip(runners, placed, strict=True)]
            measure(lanes, request.plan.share, recorder, watch)


class _RemoteLane:
    """One artifact in a runner on a device."""

    def __init__(self, runner: RemoteRunner, placed: _Placed, threads: int) -> None:
        self.runner, self.placed, self.threads = runner, placed, threads
        self.runs = 0

    def load(self) -> Timed:
        return self.runner.load(self.placed.file, self.threads)

    def run(self) -> Timed:
        turns, number = self.placed.turns, self.runs
        self.runs += 1
        if number == 0:
            return self.runner.run(turns[0])[0]
        return self.runner.time(turns[number % len(turns)] if len(turns) > 1 else ())


def _reader(transport: Transport) -> tuple[Identity, Callable[[bool], State]]:
    """What the device is, and how its state is read: thoroughly or between two runs."""
    identity = identify(transport.read_text, transport.run)

    def read(thorough: bool) -> State:
        return read_state(identity, transport.read_text, transport.run, thorough=thorough, remote=True)

    return identity, read


def _governor(state: State, cores: Sequence[int]) -> str:
    """Of the processors that are used, of all when the system chooses; 'unknown' where none is told."""
    clocks = [c for c in state.clocks or () if not cores or set(c.cpus) & set(cores)]
    names = dict.fromkeys(printable(c.governor, 40) for c in clocks if c.governor)
    return ", ".join(names) or "unknown"


def _described(transport: Transport, placed: Sequence[_Placed], identity: Identity) -> dict[str, str]:
    device = transport.device
    model = " ".join(word for word in (identity.model, identity.soc) if word)
    return {
        "device": device.name,
        "transport": device.transport,
        "cpu": printable(model) or device.name,
        "system": printable(identity.system or ""),
        "runtime": "; ".join(dict.fromkeys(each.bundle.runtime for each in placed)),
    }


def _subject(placed: _Placed) -> Subject:
    m = placed.artifact.manifest
    return Subject(placed.artifact.name, m.target.name, m.recipe.name, m.files[0].sha256)


def _opened(stack: contextlib.ExitStack, file: Path | None, header: Header) -> Journal | None:
    if file is None:
        return None
    journal = Journal(file)
    stack.callback(journal.close)
    journal.write(header)
    return journal
