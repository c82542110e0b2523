"""Networks that share weights in one file: what is stored, that the numbers stay, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from acmix.apps import adaptive
from acmix.apps.adaptive_flags import unrolled_flags
from acmix.apps.adaptive_tables import summary
from acmix.apps.requests import ExportFlags
from acmix.calibration.aims import parse_aim
from acmix.targets.formats import tflite_flatbuffer
from acmix.toolkit import catalog
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive
from acmix.toolkit.adaptive.export import AdaptiveRequest, export_adaptive
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.reference import reprove_adaptive
from acmix.toolkit.adaptive.runner import load_adaptive
from acmix.toolkit.adaptive.sharing import Shelf, function_names, nothing_in_common, refuse_other_numbers, share_weights
from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage, own
from acmix.toolkit.artifact import Artifact, check_digests, open_artifact
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.joining import open_runners, own_file
from acmix.toolkit.reproof import reprove
from acmix.toolkit.request import ExportRequest, TargetRequest
from acmix.toolkit.spec import ModelSpec, TensorSpec, imagenet_preprocess

FLOAT32 = schema.TensorType.FLOAT32
SIDES = {"small": 32, "large": 48}
Exported = Callable[[str], dict[str, Artifact]]


class Net(nn.Module):
    """Takes any size; most of its weights are one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8, 2000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.stem(x)).mean((2, 3)))
        return logits


def two_sizes() -> AdaptiveSpec:
    """One module that looks twice, the second time closer."""
    torch.manual_seed(2)
    net = Net()
    networks, stages = {}, []
    for name, side in SIDES.items():
        image = TensorSpec("image", (1, 3, side, side), layout="nchw")
        networks[name] = own(ModelSpec(f"net_{side}", lambda: net, (image,), ("logits",), imagenet_preprocess(side)))
        steps = (Photo(imagenet_preprocess(side), f"image_{name}"), Run(name, (f"image_{name}",), (f"logits_{name}",)))
        stages.append(Stage(name, steps, f"logits_{name}"))
    return AdaptiveSpec("two_sizes", "two_sizes", networks, tuple(stages))


def asked(*targets: str, out: Path) -> AdaptiveRequest:
    """An export of the two sizes in one file."""
    spec = two_sizes()
    requests = tuple(TargetRequest(name, catalog.load_target(name).options()) for name in targets)
    base = ExportRequest(spec.networks["small"], catalog.load_recipe("float32"), requests, out)
    choose = adaptive.chooser(parse_aim("rates=0.5,0.5"), spec.rule, 0, spec.stage_names)
    return AdaptiveRequest(spec, base, SeededPhotos(4, 3), choose, shared_weights=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> AdaptiveArtifact:
    """The two sizes in one TFLite file. Do not write into it."""
    request = asked("tflite", out=tmp_path_factory.mktemp("shared"))
    (outcome,) = export_adaptive(request, lambda *_: None)
    assert outcome.error == ""
    assert not list(request.base.out.glob("*.log"))
    assert outcome.artifact is not None
    return outcome.artifact


@pytest.fixture
def spoiled(shared: AdaptiveArtifact, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(shared.folder, tmp_path / shared.name))


def twice(artifact: Artifact, folder: Path) -> dict[str, Artifact]:
    """The same network under two names, as two stages of one module are."""
    return {name: open_artifact(Path(shutil.copytree(artifact.folder, folder / name))) for name in SIDES}


def with_other_weights(artifact: Artifact) -> Artifact:
    """A copy of a TFLite network gets noise for its weights."""
    model = tflite_flatbuffer.read_model(artifact.model_file)
    random = np.random.default_rng(0)
    for number in {tensor.buffer for tensor in model.subgraphs[0].tensors if tensor.type == FLOAT32}:
        if (data := model.buffers[number].data) is not None:
            model.buffers[number].data = random.standard_normal(len(data) // 4).astype(np.float32).view(np.uint8)
    artifact.model_file.write_bytes(tflite_flatbuffer.write_model(model))
    return artifact


def test_one_file_holds_both_networks_and_goes_the_way_of_eager(shared: AdaptiveArtifact, tmp_path: Path) -> None:
    artifact = open_adaptive(shared.folder)
    sharing = artifact.manifest.sharing
    assert sharing is not None
    assert sharing.file == "model.tflite"
    assert artifact.size_bytes == sharing.size_bytes < 0.65 * sharing.separate_bytes
    assert [path.name for path in artifact.folder.rglob("*.tflite")] == [sharing.file]
    assert [record.function for record in artifact.manifest.networks] == list(SIDES)
    assert artifact.manifest.proof.verdict == "passed"
    assert "equal weights once" in str(summary(artifact).caption)
    proof = reprove_adaptive(artifact, tmp_path / "log")
    assert [one.verdict for one in proof.networks.values()] == ["passed", "passed"]
    assert proof.way.verdict == "passed"


@pytest.mark.parametrize("name", ["coreml", "executorch"])
def test_a_network_of_one_file_is_still_an_artifact_of_its_own(exported: Exported, name: str, tmp_path: Path) -> None:
    networks = twice(exported("float32")[name], tmp_path)
    suffix = catalog.load_target(name).suffix
    made, sharing = share_weights(networks, Shelf(tmp_path, "both", tmp_path / "log"))
    assert sharing.file == f"model{suffix}"
    assert sharing.size_bytes < 0.65 * sharing.separate_bytes
    assert [path.parent.name for path in tmp_path.rglob(f"*{suffix}")] == [tmp_path.name]
    large = open_artifact(made["large"].folder)
    assert large == made["large"]
    assert reprove(large, tmp_path / "verify.log").verdict == "passed"
    assert "function 'large' of a file of several" in large.manifest.target.notes[-1]
    if name == "coreml":
        (large.model_file / "extra").write_text("?", encoding="utf-8")
        with pytest.raises(UsageError, match=r"model.mlpackage/extra', which was not exported"):
            check_digests(large)
    with pytest.raises(UsageError, match=rf"large is the function 'large' of model{suffix}, .*timing its kernels"):
        own_file(large, "timing its kernels")


def test_a_format_without_functions_keeps_separate_files_and_says_so(
    exported: Exported, shared: AdaptiveArtifact, tmp_path: Path
) -> None:
    networks = twice(exported("float32")["onnx"], tmp_path)
    kept, sharing = share_weights(networks, Shelf(tmp_path, "both", tmp_path / "log"))
    assert kept == networks
    assert (sharing.file, sharing.size_bytes) == ("", 0)
    assert "the format of onnx has no functions that a caller chooses" in sharing.reason
    assert len(list(tmp_path.rglob("*.onnx"))) == 2
    told = replace(shared, manifest=replace(shared.manifest, sharing=sharing))
    assert "weights are not shared: the format of onnx" in str(summary(told).caption)
    functions = [one.function for one in shared.networks.values() if one.function is not None]
    with (
        pytest.raises(UsageError, match="a file of onnx holds one network, and no function 'small'"),
        open_runners(catalog.load_target("onnx"), networks["small"].model_file, 1, functions, False),
    ):
        pass


def test_networks_that_share_nothing_keep_their_files(exported: Exported, tmp_path: Path) -> None:
    networks = twice(exported("float32")["tflite"], tmp_path)
    with_other_weights(networks["large"])
    kept, sharing = share_weights(networks, Shelf(tmp_path, "both", tmp_path / "log"))
    assert kept == networks
    assert sharing.reason.startswith("the networks share next to nothing: one file of all would take")
    assert sharing.size_bytes > 0.8 * sharing.separate_bytes
    assert len(list(tmp_path.rglob("*.tflite"))) == 2
    one = dict(list(networks.items())[:1])
    assert "one network only" in share_weights(one, Shelf(tmp_path, "both", tmp_path / "log"))[1].reason


def test_where_nothing_would_be_shared_core_ml_keeps_its_own_deployment(tmp_path: Path) -> None:
    request = asked("coreml", out=tmp_path)
    shared = {name: source.spec for name, source in request.spec.networks.items()}
    assert nothing_in_common([spec.build() for spec in shared.values()]) == ""
    nets = {name: Net() for name in shared}
    apart = {name: own(replace(spec, build=partial(nets.get, name))) for name, spec in shared.items()}
    request = replace(request, spec=replace(request.spec, networks=apart))
    (outcome,) = export_adaptive(request, lambda *_: None)
    assert outcome.error == "" and outcome.artifact is not None
    sharing = outcome.artifact.manifest.sharing
    assert sharing is not None and (sharing.file, sharing.size_bytes) == ("", 0)
    assert sharing.reason.startswith("the networks share next to nothing: of 145,792 bytes of weights one file would")
    for network in outcome.artifact.networks.values():
        assert network.manifest.target.details["minimum_deployment"] == "ios16"


def test_a_changed_and_an_exchanged_file_are_refused(spoiled: Path) -> None:
    inner = spoiled / "net_32-tflite-float32"
    manifest = inner / "manifest.json"
    text = manifest.read_text("utf-8")
    manifest.write_text(text.replace('"function": "small"', '"function": "large"'), "utf-8")
    with pytest.raises(UsageError, match="this place is for net_32 for tflite"):
        open_adaptive(spoiled)
    for path in ("../../model.tflite", "../../../etc/passwd"):
        manifest.write_text(text.replace("../model.tflite", path), "utf-8")
        with pytest.raises(UsageError, match="outside its own folder"):
            check_digests(open_artifact(inner))
    manifest.write_text(text.replace('"function": "small"', '"function": ""'), "utf-8")
    with pytest.raises(UsageError, match="outside its own folder"):
        check_digests(open_artifact(inner))
    manifest.write_text(text, "utf-8")
    file = spoiled / "model.tflite"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for reading in (lambda: open_adaptive(spoiled), lambda: check_digests(open_artifact(inner))):
        with pytest.raises(UsageError, match="has changed since it was exported"):
            reading()


def test_its_file_is_found_from_within_and_through_a_link(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = spoiled / "net_32-tflite-float32"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(inner)
    monkeypatch.chdir(inner)
    for folder in (Path(), tmp_path / "elsewhere" / "link"):
        artifact = open_artifact(folder)
        check_digests(artifact)
        assert artifact.model_file.samefile(spoiled / "model.tflite")


def test_a_file_without_the_function_fails_with_the_networks_name(shared: AdaptiveArtifact) -> None:
    other = replace(shared.networks["small"].manifest, function="none")
    networks = {**shared.networks, "small": replace(shared.networks["small"], manifest=other)}
    with (
        pytest.raises(GateError, match="net_32-tflite-float32: the runtime of tflite refuses its file"),
        load_adaptive(replace(shared, networks=networks)),
    ):
        pass


def test_other_numbers_from_the_joined_file_are_a_failed_gate(exported: Exported, tmp_path: Path) -> None:
    networks = twice(exported("float32")["tflite"], tmp_path)
    small, large = networks["small"], with_other_weights(networks["large"])
    refuse_other_numbers({"net": small}, {"net": small})
    with pytest.raises(GateError, match="net gives other numbers from the file of all networks than from its own"):
        refuse_other_numbers({"net": small}, {"net": large})


def test_names_become_functions_that_every_format_takes() -> None:
    assert function_names({"early": 0, "late net": 0, "3rd": 0}) == {
        "early": "early",
        "late net": "late_net",
        "3rd": "_3rd",
    }
    with pytest.raises(UsageError, match="'a-b' and 'a b' would both be the function 'a_b'"):
        function_names({"a-b": 0, "a b": 0})


def test_options_that_cannot_be_joined_are_refused_before_any_work(tmp_path: Path) -> None:
    request = asked("coreml", out=tmp_path / "out")
    options = catalog.load_target("coreml").options(minimum_deployment="ios16")
    base = replace(request.base, targets=(TargetRequest("coreml", options),))
    with pytest.raises(UsageError, match=r"--shared-weights on coreml: .*ios18 or later.*says ios16"):
        export_adaptive(replace(request, base=base), lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_shared_weights_belong_to_the_stages_of_adaptive_models(tiny: str, tmp_path: Path) -> None:
    flags = ExportFlags(model=tiny, target="tflite", out=tmp_path)
    with pytest.raises(UsageError, match=r"--shared-weights belongs to adaptive models; .*make_net is none"):
        adaptive.export(flags, {}, None, True, False)
    with pytest.raises(UsageError, match="an unrolled graph is one already"):
        unrolled_flags(replace(flags, model="gfnet_100"), None, True)
