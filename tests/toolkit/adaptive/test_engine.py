"""The engine on eager networks: against a GFNet and an MSDNet that are written out apart, exits, and their cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit import capture, catalog
from acmix.toolkit.adaptive import host
from acmix.toolkit.adaptive.artifact import exit_macs
from acmix.toolkit.adaptive.cascade import cascade
from acmix.toolkit.adaptive.engine import Engine, Network
from acmix.toolkit.adaptive.export import AdaptiveRequest, export_adaptive, loaded_eager
from acmix.toolkit.adaptive.find import find_adaptive
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage, Zeros, check_stages, zoo
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.models._gfnet_networks import CascadedHead, Focus, Glance, Policy
from acmix.toolkit.models.msdnet import MSDNet
from acmix.toolkit.models.msdnet_exits import in_blocks
from acmix.toolkit.policy import policy_of
from acmix.toolkit.request import ExportRequest
from acmix.toolkit.spec import ModelSpec, TensorSpec, imagenet_preprocess
from acmix.toolkit.target import Array


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


def seeded_network(kind: type[nn.Module], *arguments: object) -> nn.Module:
    """A network with the weights that seed 0 gives it."""
    torch.manual_seed(0)
    return kind(*arguments).eval()


def glance_and_focus(image: Tensor) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """The paper's pipeline for MobileNetV3-Large 1.00 at 96 px, in torch alone: logits and corners of three exits."""
    glance, focus = seeded_network(Glance, 1.0), seeded_network(Focus, 1.0)
    policy, heads = seeded_network(Policy, 960, 3), [seeded_network(CascadedHead, step) for step in (2, 3)]
    logits, embedding, state = glance(F.interpolate(image, (96, 96), mode="bicubic", align_corners=True))
    found, corners, embeddings, hidden = [logits], [], [embedding], torch.zeros(1, 256)
    for head in heads:
        action, hidden = policy(state, hidden)
        top, left = torch.floor(action[0] * (224 - 96)).int().tolist()
        embedding, state = focus(image[:, :, top : top + 96, left : left + 96])
        embeddings.append(embedding)
        found.append(head(*embeddings))
        corners.append((top, left))
    return found, corners


def test_glance_and_focus_is_the_pipeline_written_out_in_torch() -> None:
    spec = find_adaptive("gfnet_100")
    with loaded_eager(spec, "random", 0) as (loaded, networks):
        assert all(network.weights.is_random for network in networks.values())
        seen = set()
        for photo in SeededPhotos(4, 2):
            trace = loaded.every_stage(photo)
            image = host.normalised(host.fitted(photo, spec.preprocess), spec.preprocess)
            logits, corners = glance_and_focus(torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))))
            assert [c for stage in trace.stages for c in stage.corners.values()] == corners
            for stage, wanted in zip(trace.stages, logits, strict=True):
                largest = float(wanted.abs().max())
                np.testing.assert_allclose(stage.logits / largest, wanted[0].numpy() / largest, atol=2e-4)
            seen |= set(corners)
        assert len(seen) > 4


def test_the_exits_of_glance_and_focus_cost_what_the_authors_count() -> None:
    spec = find_adaptive("gfnet_100")
    macs = {name: capture.count_macs(capture.build(source, "random")) for name, source in spec.networks.items()}
    assert [round(total / 1e6, 1) for total in exit_macs(spec.stages, macs)] == [43.1, 88.1, 134.5]


def small_msdnet() -> AdaptiveSpec:
    """Every layer of step 4, a quarter as wide, at 64 px."""
    inputs = (TensorSpec("image", (1, 3, 64, 64), layout="nchw"),)
    whole = ModelSpec("whole", lambda: MSDNet(4, 8, 4, 10), inputs, preprocess=imagenet_preprocess(64))
    return in_blocks("small_msdnet", whole, 4, 8, 4, 10)


def test_msdnets_stages_are_the_whole_network() -> None:
    spec = small_msdnet()
    check_stages(spec.stages, set(spec.networks))
    whole = seeded_network(MSDNet, 4, 8, 4, 10)
    with loaded_eager(spec, "random", 0) as (loaded, _):
        for photo in SeededPhotos(2):
            image = host.normalised(host.fitted(photo, spec.preprocess), spec.preprocess)
            wanted = whole(torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))))
            for stage, logits in zip(loaded.every_stage(photo).stages, wanted, strict=True):
                np.testing.assert_allclose(stage.logits, logits[0].numpy(), rtol=1e-4, atol=1e-5)


def test_the_published_msdnet_splits_into_blocks_whose_maps_fit() -> None:
    spec = find_adaptive("msdnet_step4_exits")
    whole = dict(MSDNet(4).state_dict())
    keys: set[str] = set()
    with torch.device("meta"):
        for source in spec.networks.values():
            block = source.spec
            assert block.adapt_checkpoint is not None
            own = set(block.adapt_checkpoint(whole))
            module = block.build().eval()
            assert own == set(module.state_dict())
            assert not own & keys
            keys |= own
            outputs = module(*(torch.zeros(one.shape) for one in block.inputs))
            assert len(outputs) == len(block.outputs)
    assert keys == set(whole)


def constant_engine(rows: list[list[float]], image: tuple[int, int] = (32, 32)) -> Engine:
    """Stages whose networks say the same of every photo."""
    preprocess = imagenet_preprocess(32)
    assert preprocess.crop == image
    spec = (TensorSpec("image", (1, 3, *image), layout="nchw"),)
    networks, stages = {}, []
    for number, row in enumerate(rows, 1):
        answer = np.asarray([row], np.float32)

        def run(arrays: object, answer: Array = answer) -> list[Array]:
            return [answer]

        networks[f"n{number}"] = Network(spec, (TensorSpec("logits", answer.shape),), run)
        steps = (Photo(preprocess, f"i{number}"), Run(f"n{number}", (f"i{number}",), (f"l{number}",)))
        stages.append(Stage(f"n{number}", steps, f"l{number}"))
    return Engine(stages, networks, "nchw")


def test_a_photo_ends_at_the_first_stage_that_is_sure(seeded: list[Array]) -> None:
    engine = constant_engine([[1, 0], [0, 4], [0, 9]])
    sure = 1 / (1 + np.exp(-1))
    stages = ["n1", "n2", "n3"]
    for thresholds, wanted in (((sure - 1e-6, 0), 0), ((sure + 1e-6, 0.9), 1), ((0.99, 0.99), 2)):
        trace = engine(seeded[0], policy_of("max_softmax", stages, thresholds, None))
        assert (trace.exit, trace.label) == (wanted, min(wanted, 1))
        assert len(trace.stages) == wanted + 1
    assert len(engine(seeded[0], None).stages) == 3


def test_logits_that_are_no_numbers_stop_the_run(seeded: list[Array]) -> None:
    engine = constant_engine([[float("nan"), 0], [0, 4]])
    with pytest.raises(GateError, match="the confidence of stage 'n1' is nan"):
        engine(seeded[0], policy_of("max_softmax", ["n1", "n2"], (0.5,), None))


def test_stages_that_do_not_fit_together_are_refused() -> None:
    photo = Photo(imagenet_preprocess(32), "image")
    run = Run("net", ("image",), ("logits",))
    good = Stage("one", (photo, run), "logits")
    check_stages((good,), {"net"})
    cases = [
        ((), {"net"}, "one stage at least"),
        ((Stage("one", (photo, Run("net", ("picture",), ("logits",))), "logits"),), {"net"}, "reads 'picture' before"),
        ((Stage("one", (photo, run), "scores"),), {"net"}, "'scores', which nothing made"),
        ((good, Stage("two", (run,), "logits")), {"net"}, "makes 'logits' a second time"),
        ((good, Stage("one", (Run("net", ("image",), ("more",)),), "more")), {"net"}, "the same name"),
        ((good,), {"net", "other"}, "the stages run net; there are net, other"),
        ((Stage("one", (Zeros((1, 2), "image"), run), "logits"),), {"net"}, "needs a step 'photo'"),
    ]
    for stages, networks, message in cases:
        with pytest.raises(UsageError, match=message):
            check_stages(stages, networks)


def test_stages_of_other_classes_are_refused(tmp_path: Path) -> None:
    spec = cascade("cascade:efficientnet_lite0@32,mobilenet_v2@32")
    inputs = spec.networks["mobilenet_v2_32"].spec.inputs
    ten = ModelSpec("ten", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), inputs)
    networks = {**spec.networks, "mobilenet_v2_32": zoo(ten)}
    base = ExportRequest(zoo(ten), catalog.load_recipe("float32"), (), tmp_path / "build")
    mixed = AdaptiveSpec(spec.name, spec.reference, networks, spec.stages)
    request = AdaptiveRequest(mixed, base, SeededPhotos(1), lambda *_: policy_of("margin", ["a"], (), None))
    with pytest.raises(UsageError, match=r"different numbers of classes.*1000.*10"):
        export_adaptive(request, lambda *_: None)
    assert not (tmp_path / "build").exists()
