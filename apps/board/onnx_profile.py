"""ONNX Runtime's own profile, read on a board beside python_runner.py: Python 3.8, no package."""

from __future__ import annotations

import json
import mmap
from array import array
from bisect import bisect_right
from typing import IO, Any, Dict, Iterable, Iterator, List, Tuple  # noqa: UP035 - boards have Python 3.8

CHUNK = 1 << 20
"""Characters of a profile in memory at once."""
KERNEL = "_kernel_time"
GRAPH, NODE, NODE_OUTPUT, NODE_NAME = 7, 1, 2, 3
"""Fields of ModelProto, GraphProto and NodeProto (onnx.proto)."""
VARINT, LENGTH_FIRST, FIXED_BYTES = 0, 2, {1: 8, 5: 4}
"""How protobuf writes a field: its wire types."""


def read(profile: str, graph: str) -> Dict[str, Any]:  # noqa: UP006
    """Kernels and runs, as runner.c tells them. graph: the file of the network as ONNX Runtime ran it."""
    with open(profile, encoding="utf-8") as file:  # noqa: PTH123
        return notes_of(events_of(file), results_of(graph))


def events_of(file: IO[str]) -> Iterator[Dict[str, Any]]:  # noqa: UP006
    """The objects of a JSON list, one after another: a profile of many runs has hundreds of megabytes."""
    decoder, text, last = json.JSONDecoder(), "", False
    while not last:
        chunk = file.read(CHUNK)
        text, at, last = text + chunk, 0, not chunk
        while True:
            while at < len(text) and text[at] in "[, \t\r\n":
                at += 1
            try:
                event, at = decoder.raw_decode(text, at)
            except ValueError:
                # It goes on in the next chunk, or this is the list's end.
                break
            yield event
        text = text[at:]
    if text.strip() != "]":
        raise ValueError("ONNX Runtime's profile ends in the middle")


def notes_of(events: Iterable[Dict[str, Any]], makes: Dict[str, str]) -> Dict[str, Any]:  # noqa: UP006
    """Kernels and runs out of ONNX Runtime's profile; a run that it does not tell to its end is left out."""
    whole: List[Tuple[int, int]] = []  # noqa: UP006
    keys: Dict[Tuple[str, ...], int] = {}  # noqa: UP006
    # Of all kernels of all runs three numbers each, not their words.
    began, took, which = array("q"), array("q"), array("l")
    for event in events:
        if event["name"] == "model_run":
            whole.append((event["ts"], event["ts"] + event["dur"]))
        elif event["name"].endswith(KERNEL):
            told = event["args"]
            key = (event["name"][: -len(KERNEL)], told["op_name"], told["provider"])
            began.append(int(event["ts"]))
            took.append(event["dur"] * 1000)
            which.append(keys.setdefault(key, len(keys)))
    whole.sort()
    starts, known = [start for start, _ in whole], list(keys)
    table: List[Dict[str, Any]] = []  # noqa: UP006
    places: Dict[int, int] = {}  # noqa: UP006
    runs: List[List[Tuple[int, int]]] = [[] for _ in whole]  # noqa: UP006
    for i in sorted(range(len(began)), key=began.__getitem__):
        run = bisect_right(starts, began[i]) - 1
        if run < 0 or began[i] > whole[run][1]:
            continue
        if which[i] not in places:
            places[which[i]] = len(table)
            name, kind, runs_on = known[which[i]]
            made = {"name": name, "kind": kind, "runs_on": runs_on, "makes": makes.get(name, "")}
            table.append({**made, "delegated": True})
        runs[run].append((places[which[i]], took[i]))
    return {"kernels": table, "runs": runs}


def results_of(file: str) -> Dict[str, str]:  # noqa: UP006
    """The first result of each node of an ONNX file, by the node's name, without the package onnx: boards lack it."""
    with open(file, "rb") as model:  # noqa: PTH123
        data = mmap.mmap(model.fileno(), 0, access=mmap.ACCESS_READ)
    found = {}
    for graph in _fields(data, 0, len(data), GRAPH):
        for node in _fields(data, *graph, NODE):
            names = [data[slice(*next(_fields(data, *node, field), (0, 0)))] for field in (NODE_NAME, NODE_OUTPUT)]
            found[names[0].decode("utf-8", "replace")] = names[1].decode("utf-8", "replace")
    return found


def _fields(data: Any, at: int, end: int, wanted: int) -> Iterator[Tuple[int, int]]:  # noqa: UP006
    """Where the values of one field of a protobuf message begin and end."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == LENGTH_FIRST:
            size, at = _varint(data, at)
            if key >> 3 == wanted:
                yield at, at + size
            at += size
        elif kind == VARINT:
            _, at = _varint(data, at)
        else:
            at += FIXED_BYTES[kind]


def _varint(data: Any, at: int) -> Tuple[int, int]:  # noqa: UP006
    """A number and the place behind it."""
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1
