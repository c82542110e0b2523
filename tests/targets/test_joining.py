"""Files joined into one: what of their insides is renumbered, and what they say of themselves.

That every network keeps its bits is held for all targets and precisions: tests/contracts/test_targets.py.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from acmix.targets.formats import coreml_package, executorch_runtime, tflite_flatbuffer, tflite_metadata
from acmix.toolkit import catalog
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.join import join
from acmix.toolkit.joining import Function, JoinRequest, Part, open_runners
from acmix.toolkit.spec import TensorSpec, imagenet_preprocess
from acmix.toolkit.target import LoweringJob

Exported = Callable[[str], dict[str, Artifact]]
ROWS, WIDTH = 6, 16


def joined(artifact: Artifact, file: Path, labels: tuple[str, ...] = ()) -> None:
    """The same network twice in one file."""
    manifest = artifact.manifest
    own, sees = str(artifact.model_file), imagenet_preprocess(32)
    parts = tuple(Part(name, own, manifest.file_inputs, manifest.file_outputs, sees) for name in ("one", "two"))
    joining = catalog.load_target(manifest.target.name).joining
    assert joining is not None
    joining.join(JoinRequest("both", str(file), parts, labels))


class Tables(nn.Module):
    """Two lookups, which no delegate takes: their tables are constants of the program itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("own", torch.randn(ROWS, WIDTH, generator=generator))
        self.register_buffer("common", torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH))

    def forward(self, places: Tensor) -> Tensor:
        rows = places.to(torch.int64)
        own, common = self.get_buffer("own"), self.get_buffer("common")
        return nn.functional.embedding(rows, own) + nn.functional.embedding(rows, common)


def test_constants_of_executorch_programs_are_renumbered_and_equal_ones_merged(tmp_path: Path) -> None:
    target = catalog.load_target("executorch")
    inputs, outputs = (TensorSpec("places", (3,)),), (TensorSpec("rows", (3, WIDTH)),)
    places = torch.tensor([0.0, 5.0, 2.0])
    parts, wanted = [], []
    for seed, name in enumerate(("first", "second", "third")):
        net, file = Tables(seed), tmp_path / f"{name}.pte"
        job = LoweringJob("tables", catalog.load_recipe("float32"), inputs, outputs, target.options())
        target.lower(torch.export.export(net, (places,)), job, file)
        parts.append(Part(name, str(file), inputs, outputs))
        wanted.append(net(places).numpy())
    file = tmp_path / "model.pte"
    assert target.joining is not None
    target.joining.join(JoinRequest("tables", str(file), tuple(parts)))
    functions = [Function(part.function, ("places",), ("rows",)) for part in parts]
    with open_runners(target, file, 1, functions, False) as runners:
        for run, rows in zip(runners, wanted, strict=True):
            np.testing.assert_array_equal(run([places.numpy()])[0], rows)
    from executorch.exir._serialize._program import deserialize_pte_binary

    constants = deserialize_pte_binary(file.read_bytes()).program.constant_buffer
    # An own table each, the common one, and the first, which is nobody's.
    assert len(constants) == 5


def test_executorch_keeps_what_each_network_says_of_itself(exported: Exported, tmp_path: Path) -> None:
    file = tmp_path / "model.pte"
    joined(exported("float32")["executorch"], file)
    _, runtime = executorch_runtime.modules()
    program = runtime._load_program(str(file))
    assert program.load_method("two_acmix_model")(()) == ["make_net"]
    with pytest.raises(UsageError, match=r"cannot load model\.pte"):
        executorch_runtime.load(runtime, file, ["three"])


def test_graphs_that_operators_of_tflite_name_are_renumbered(exported: Exported, tmp_path: Path) -> None:
    artifact = exported("float32")["tflite"]
    model = tflite_flatbuffer.read_model(artifact.model_file)
    model.subgraphs.append(copy.deepcopy(model.subgraphs[0]))
    model.subgraphs[0].operators[0].builtinOptions2Type = schema.BuiltinOptions2.StableHLOCompositeOptions
    model.subgraphs[0].operators[0].builtinOptions2 = schema.StableHLOCompositeOptionsT(decompositionSubgraphIndex=1)
    nested = tmp_path / "nested.tflite"
    nested.write_bytes(tflite_flatbuffer.write_model(model))
    manifest = artifact.manifest
    parts = tuple(Part(n, str(nested), manifest.file_inputs, manifest.file_outputs) for n in ("one", "two"))
    joining = catalog.load_target("tflite").joining
    assert joining is not None
    joining.join(JoinRequest("both", str(tmp_path / "model.tflite"), parts))
    whole = tflite_flatbuffer.read_model(tmp_path / "model.tflite")
    named = [graph.operators[0].builtinOptions2 for graph in whole.subgraphs]
    assert [None if one is None else one.decompositionSubgraphIndex for one in named] == [1, None, 3, None]
    assert [(s.signatureKey, s.subgraphIndex) for s in whole.signatureDefs] == [(b"one", 0), (b"two", 2)]


def test_tflite_has_metadata_and_labels_for_all_networks(exported: Exported, tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    labels = tuple(f"class {i}" for i in range(2000))
    joined(exported("float32")["tflite"], file, labels)
    entries = tflite_flatbuffer.metadata_of(tflite_flatbuffer.read_model(file))
    assert json.loads(entries[tflite_metadata.EXTRA_ENTRY])["two"]["acmix.model"] == "make_net"
    assert entries[tflite_metadata.ENTRY][4:8] == b"M001"
    assert entries[tflite_metadata.ENTRY].count(b"labels.txt") == 2
    assert entries["min_runtime_version"]
    with zipfile.ZipFile(file) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(labels)


def test_coreml_seals_the_common_weights_and_gives_the_same_bytes_again(exported: Exported, tmp_path: Path) -> None:
    packages = [tmp_path / name / "model.mlpackage" for name in ("once", "again")]
    for package in packages:
        package.parent.mkdir()
        joined(exported("float32")["coreml"], package)
    files = [[f.read_bytes() for f in sorted(package.rglob("*")) if f.is_file()] for package in packages]
    assert files[0] == files[1]
    described = coreml_package.read_specification(packages[0]).description
    assert [function.name for function in described.functions] == ["one", "two"]
    texts = described.metadata.userDefined
    assert texts["acmix.two.model"] == "make_net"
    weights = packages[0] / coreml_package.WEIGHTS
    assert texts["acmix.weights"].startswith(f"{weights.stat().st_size} ")
    weights.write_bytes(b"".join([weights.read_bytes()[:-1], b"?"]))
    from acmix.targets.mil import load_package

    with pytest.raises(UsageError, match="a byte has changed"):
        load_package(packages[0])


def test_coremls_palettes_are_joined_where_they_were_lowered_for_it(tmp_path: Path) -> None:
    target = catalog.load_target("coreml")
    assert target.joining is not None
    options = target.joining.options(target.options())
    assert options.minimum_deployment == "ios18"
    inputs, outputs = (TensorSpec("image", (1, 64)),), (TensorSpec("logits", (1, 64)),)
    job = LoweringJob("linear", catalog.load_recipe("w4"), inputs, outputs, options)
    alone, file, image = tmp_path / "alone.mlpackage", tmp_path / "model.mlpackage", torch.ones(1, 64)
    target.lower(torch.export.export(nn.Linear(64, 64), (image,)), job, alone)
    parts = tuple(Part(name, str(alone), inputs, outputs) for name in ("one", "two"))
    target.joining.join(JoinRequest("both", str(file), parts))
    functions = [Function(name, ("image",), ("logits",)) for name in ("one", "two")]
    with open_runners(target, file, 1, functions, True) as runners, open_runners(target, alone, 1, (), True) as own:
        for run in runners:
            np.testing.assert_array_equal(run([image.numpy()])[0], own[0]([image.numpy()])[0])
    sizes = [(package / coreml_package.WEIGHTS).stat().st_size for package in (alone, file)]
    assert sizes[0] == sizes[1]


def test_a_file_that_is_none_is_told_with_a_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"nothing")
    request = JoinRequest("both", str(tmp_path / "model.tflite"), (Part("one", str(broken), (), ()),))
    with pytest.raises(GateError, match=r"the files of tflite could not be joined: ValueError: not a TFLite model"):
        join("tflite", request, tmp_path / "log")
    assert "ValueError" in (tmp_path / "log").read_text("utf-8")
    with pytest.raises(UsageError, match="files of onnx hold one network each"):
        join("onnx", request, tmp_path / "log")
    assert not (tmp_path / "model.tflite").exists()
