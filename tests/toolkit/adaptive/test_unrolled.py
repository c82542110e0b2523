"""All stages as one network: equal to the adaptive model without exits, in eager, in float64 and as a saved file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from acmix.apps import adaptive
from acmix.apps.adaptive_flags import unrolled_flags
from acmix.apps.requests import ExportFlags, export_request
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import capture, catalog, evaluate, pipeline
from acmix.toolkit.adaptive import host
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact
from acmix.toolkit.adaptive.find import find_adaptive
from acmix.toolkit.adaptive.graph import OneHotCut, Unrolled
from acmix.toolkit.adaptive.observe import every_stage
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.proof import margins
from acmix.toolkit.adaptive.runner import eager_model, load_adaptive, load_single, without_exits
from acmix.toolkit.adaptive.spec import AdaptiveSpec, Crop, Run, Step
from acmix.toolkit.adaptive.unrolled import OWN_WEIGHTS, join_origins, unrolled
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.conditioning import attainable
from acmix.toolkit.errors import UsageError
from acmix.toolkit.manifest import WeightsOrigin
from acmix.toolkit.prepare import prepare
from acmix.toolkit.request import ExportRequest, TargetRequest, refuse_early
from acmix.toolkit.source import find_model

SIDE, PATCH = 48, 32


def image_of(photo: np.ndarray, spec: AdaptiveSpec) -> np.ndarray:
    """A decoded photo as the unrolled network takes it."""
    image = host.normalised(host.fitted(photo, spec.preprocess), spec.preprocess)
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2))


@pytest.fixture(scope="session")
def tiny_unrolled(tiny_spec: AdaptiveSpec, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The pipeline as one TFLite file. Do not write into it."""
    targets = (TargetRequest("tflite", catalog.load_target("tflite").options()),)
    out = tmp_path_factory.mktemp("unrolled")
    request = ExportRequest(unrolled(tiny_spec), catalog.load_recipe("float32"), targets, out)
    (outcome,) = pipeline.export(request, lambda *_: None)
    assert not outcome.error and outcome.artifact is not None
    return outcome.artifact


def test_eager_gives_every_exits_logits_and_the_places_of_the_adaptive_model(tiny_spec: AdaptiveSpec) -> None:
    spec = tiny_spec
    networks = {name: capture.build(source, None, 7) for name, source in spec.networks.items()}
    whole = capture.build(unrolled(spec), None, 7)
    assert whole.spec.outputs == ("logits_1", "logits_2", "action")
    photos = list(SeededPhotos(8, 3))
    corners = set()
    for photo, trace in zip(photos, every_stage(eager_model(spec, networks), photos), strict=True):
        first, second, action = whole([image_of(photo, spec)])
        np.testing.assert_allclose(first[0], trace.stages[0].logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(second[0], trace.stages[1].logits, rtol=1e-4, atol=1e-5)
        place = host.corner(action, (SIDE, SIDE), (PATCH, PATCH))
        assert place == trace.stages[1].corners["patch"]
        corners.add(place)
    assert len(corners) > 3


def test_the_graph_cuts_the_pixels_that_the_host_cuts_at_every_corner() -> None:
    cut = OneHotCut((SIDE, SIDE + 5), (PATCH, PATCH - 3))
    image = torch.randn(1, 3, SIDE, SIDE + 5, generator=torch.Generator().manual_seed(0))
    room = (SIDE - PATCH, SIDE + 5 - PATCH + 3)
    # Whole numbers, the last float32 below each, the middle between two, and the far corner.
    steps = [np.float32(row / room[0]) for row in range(room[0] + 1)]
    rows = [*steps, *(np.nextafter(s, np.float32(0)) for s in steps[1:]), np.float32(0.5)]
    for row in rows:
        action = np.asarray([[row, np.float32(1) - row]], np.float32)
        place = host.corner(action, (SIDE, SIDE + 5), (PATCH, PATCH - 3))
        wanted = host.patch(image.numpy(), "nchw", place, (PATCH, PATCH - 3))
        assert np.array_equal(cut(image, torch.from_numpy(action)).numpy(), wanted)


def test_the_one_graph_is_the_published_form_in_float64(tiny_spec: AdaptiveSpec) -> None:
    source = unrolled(tiny_spec)
    network = capture.build(source, None, 1)
    prepared = prepare(network.module, source.spec, catalog.stems("targets"))
    assert all(form.error_float64 is not None and form.error_float64 < 1e-12 for form in prepared.values())
    assert type(network.module) is Unrolled


def test_networks_and_patches_may_be_called_like_attributes_of_torchs_own(tiny_spec: AdaptiveSpec) -> None:
    other = {"policy": "type", "focus": "keys", "glance": "type_", "patch": "training"}

    def renamed(step: Step) -> Step:
        if isinstance(step, Run):
            takes = tuple(other.get(name, name) for name in step.takes)
            return msgspec.structs.replace(step, network=other.get(step.network, step.network), takes=takes)
        return msgspec.structs.replace(step, gives="training") if isinstance(step, Crop) else step

    stages = tuple(msgspec.structs.replace(s, steps=tuple(map(renamed, s.steps))) for s in tiny_spec.stages)
    networks = {other.get(name, name): source for name, source in tiny_spec.networks.items()}
    source = unrolled(replace(tiny_spec, stages=stages, networks=networks))
    network, plain = (capture.build(one, "random", 7) for one in (source, unrolled(tiny_spec)))
    prepared = prepare(network.module, source.spec, ["tflite"])
    assert prepared["tflite"].error_float64 is not None and prepared["tflite"].error_float64 < 1e-12
    image = image_of(next(iter(SeededPhotos(1, 3))), tiny_spec)
    assert all(np.array_equal(a, b) for a, b in zip(network([image]), plain([image]), strict=True))


def test_the_saved_file_agrees_with_eager_at_every_exit(tiny_unrolled: Artifact) -> None:
    manifest = tiny_unrolled.manifest
    assert manifest.proof.verdict == "passed"
    assert [a.output for a in manifest.proof.agreements] == ["logits_1", "logits_2", "action"]
    assert [a.asked_db for a in manifest.proof.agreements][::2] == [70.0, 70.0]
    assert manifest.model.weights.is_random
    assert manifest.model.exits == ("logits_1", "logits_2")
    assert {rule.name for rule in manifest.preparation.rewrites} >= {"bicubic_resize"}


def test_the_adaptive_artifact_and_the_one_file_agree(
    tiny_pipeline: AdaptiveArtifact, tiny_unrolled: Artifact, tiny_spec: AdaptiveSpec
) -> None:
    photos = SeededPhotos(12, 3)
    spec = tiny_spec
    room = margins(spec.stages, 70.0).room["patch"]
    with load_adaptive(tiny_pipeline) as stages, load_single(tiny_unrolled) as whole:
        network = next(iter(whole.engine.networks.values()))
        moved = 0
        for photo in photos:
            trace = stages.every_stage(photo)
            image = image_of(photo, spec)
            fed = image.transpose(0, 2, 3, 1) if network.inputs[0].layout == "nhwc" else image
            first, second, action = network.run([np.ascontiguousarray(fed)])
            np.testing.assert_allclose(first.ravel(), trace.stages[0].logits, rtol=1e-3, atol=1e-4)
            if host.corner(action, (SIDE, SIDE), (PATCH, PATCH)) != trace.stages[1].corners["patch"]:
                exact = action.ravel() * room
                assert np.abs(exact - np.rint(exact)).min() < 70e-3, "a corner moved that was not near a pixel's edge"
                moved += 1
                continue
            np.testing.assert_allclose(second.ravel(), trace.stages[1].logits, rtol=1e-3, atol=1e-4)
            assert whole(photo).label == trace.stages[1].logits.argmax()
    assert moved <= 2


def test_profile_sets_the_stages_beside_the_one_graph(
    tiny_pipeline: AdaptiveArtifact, tiny_unrolled: Artifact, some_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptive.profile([tiny_unrolled.folder, tiny_pipeline.folder], some_photos, 1, True)
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    graph, stages = answer["measurement"]["timings"]
    assert len(graph["latency_ns"]) == len(stages["latency_ns"]) == 10
    # One graph has one way; its published form is all stages.
    assert set(graph["exits"]) == {0} != set(stages["exits"])
    assert stages["mean_macs"] < graph["mean_macs"] == tiny_pipeline.manifest.exit_macs[-1]
    wanted = np.mean(stages["latency_ns"]) / np.mean(graph["latency_ns"])
    assert answer["summary"][1]["ratio"] == pytest.approx(wanted, rel=1e-12)
    assert tiny_unrolled.name in shown.err and tiny_pipeline.name in shown.err


def test_without_exits_every_stage_runs(tiny_pipeline: AdaptiveArtifact) -> None:
    with load_adaptive(tiny_pipeline) as loaded:
        everything = without_exits(loaded)
        photos = list(SeededPhotos(6, 3))
        assert {loaded(photo).exit for photo in photos} == {0, 1}
        for photo in photos:
            trace = everything(photo)
            assert trace.exit == 1
            assert np.array_equal(trace.stages[1].logits, loaded.every_stage(photo).stages[1].logits)


class Edge(torch.nn.Module):
    """A place a given distance, in pixels, above a whole number."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.place = (5 + distance) / (SIDE - PATCH)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, state: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale * torch.full((1, 2), self.place, dtype=state.dtype), hidden


@pytest.mark.parametrize(("distance", "near"), [(1e-4, True), (0.4, False)])
def test_of_a_place_near_the_next_pixel_only_what_eager_keeps_there_is_asked(
    distance: float, near: bool, tiny_spec: AdaptiveSpec
) -> None:
    spec = tiny_spec
    built = {name: capture.build(source, None, 2).module for name, source in spec.networks.items()}
    module = Unrolled(spec.stages, {**built, "policy": Edge(distance)}).eval()
    image = image_of(next(iter(SeededPhotos(1))), spec)
    recipe = catalog.load_recipe("float32")
    with torch.no_grad():
        outputs = [tensor.numpy() for tensor in module(torch.from_numpy(image))]
    first, second, _ = attainable(module, recipe)([image], outputs)
    assert first is not None and second is not None
    # The first exit sees no patch.
    assert recipe.tolerance.asked_db(first) == 70.0
    assert (recipe.tolerance.asked_db(second) < 70.0) is near


OWN = f"{Path(__file__).parents[2] / 'tiny_net.py'}:make_net"


@pytest.mark.parametrize(
    ("changes", "exits", "message"),
    [
        ({"model": "msdnet_step4"}, None, "msdnet_step4 is no adaptive model: its file is one graph already"),
        ({"model": "gfnet_10"}, None, "no adaptive model is called 'gfnet_10'. Did you mean gfnet_100"),
        ({"model": OWN}, None, "its file is one graph already"),
        ({}, "rates=0.5,0.5", "an unrolled graph runs every stage"),
        ({"preprocess": "mine.toml"}, None, "--preprocess of an adaptive model"),
        ({"inputs": ("1x3x160x160",)}, None, "leave --input out"),
        ({"photos": Path("nowhere")}, None, "nowhere"),
    ],
)
def test_what_cannot_be_unrolled_is_refused(
    changes: dict[str, object], exits: str | None, message: str, tmp_path: Path
) -> None:
    flags = replace(ExportFlags(model="gfnet_100", target="tflite", out=tmp_path), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        export_request(unrolled_flags(flags, exits), {})


def test_patches_are_not_cut_at_places_of_8_bits(tmp_path: Path) -> None:
    flags = ExportFlags(model="gfnet_100", target="tflite", precision="w8", out=tmp_path)
    with pytest.raises(UsageError, match="cuts patches at places that it predicts"):
        refuse_early(export_request(unrolled_flags(flags, None), {}))
    # Without a patch there is nothing against integers.
    whole = ExportFlags(model="msdnet_step4_exits", target="tflite", precision="w8", out=tmp_path)
    refuse_early(export_request(unrolled_flags(whole, None), {}))


def test_a_file_for_all_networks_of_a_cascade_is_refused() -> None:
    source = find_model("unrolled:cascade:mobilenet_v3_small_100@64,mobilenet_v3_small_100@96", ())
    assert [spec.shape[2] for spec in source.spec.inputs] == [64, 96]
    with pytest.raises(UsageError, match=r"each network of .* has weights of its own"):
        capture.build(source, "weights.pth")


def test_a_cascade_takes_the_photo_as_each_stage_sees_it(tiny: str, some_photos: Path, tmp_path: Path) -> None:
    reference = f"cascade:{tiny}@32,{tiny}@48"
    bare = ExportFlags(model=reference, target="tflite", photos=some_photos, out=tmp_path)
    with pytest.raises(UsageError, match="--preprocess imagenet"):
        unrolled_flags(bare, None)
    request = export_request(unrolled_flags(replace(bare, preprocess="imagenet"), None), {})
    assert [spec.shape[2] for spec in request.source.spec.inputs] == [32, 48]
    (outcome,) = pipeline.export(request, lambda *_: None)
    assert outcome.artifact is not None and not outcome.error
    manifest = outcome.artifact.manifest
    assert [s.count for s in manifest.proof.samples] == [7, 10]
    folder = read_photo_folder(some_photos, manifest.preprocess, manifest.further_preprocess)
    adaptive = find_adaptive(reference, imagenet=True)
    networks = {name: capture.build(source, None, 0) for name, source in adaptive.networks.items()}
    eager = eager_model(adaptive, networks)
    one = [outcome.artifact]
    (result,), _ = evaluate.evaluate(one, folder, tmp_path / "log", lambda _: None, request.source.reference)
    assert result.agreement == 1.0 and not result.eager_missing
    assert set(result.exit_top1) == {"logits_1", "logits_2"}
    with load_single(outcome.artifact) as whole:
        for photo in SeededPhotos(4, 2):
            wanted = eager.every_stage(photo).stages[-1].logits
            np.testing.assert_allclose(whole.every_stage(photo).stages[0].logits, wanted, rtol=1e-3, atol=1e-4)
    pixels = (TargetRequest("coreml", replace(catalog.load_target("coreml").options(), image_input=True)),)
    with pytest.raises(UsageError, match="looks at the photo in 2 ways"):
        refuse_early(replace(request, targets=pixels))


def test_weights_of_several_origins_are_random_where_those_of_one_are() -> None:
    packaged, other = (WeightsOrigin("packaged", name, name, "Apache-2.0") for name in "ab")
    random = WeightsOrigin("random", "c", seed=3)
    assert join_origins([packaged, other], "d", 3).source == "a, b"
    joined = join_origins([packaged, random], "d", 3)
    assert (joined.is_random, joined.source, joined.seed) == (True, OWN_WEIGHTS, 3)


def test_a_manifest_does_not_choose_which_python_file_is_unrolled(tiny_unrolled: Artifact) -> None:
    model = replace(tiny_unrolled.manifest.model, source="unrolled:cascade:theirs.py:make@32,theirs.py:make@48")
    artifact = replace(tiny_unrolled, manifest=replace(tiny_unrolled.manifest, model=model))
    eager, missing = evaluate.rebuild(artifact)
    assert eager is None and missing.startswith("it was made from unrolled:cascade:theirs.py")


def test_msdnet_unrolled_is_the_whole_network() -> None:
    whole = capture.build(find_model("msdnet_step4", ()), "random", 4)
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    made = capture.build(find_model("unrolled:msdnet_step4_exits", ()), "random", 4)
    for found, wanted in zip(made([image]), whole([image]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
