"""GFNet: the official keys, outputs and sums of costs, one file for all its networks, and the exact resize."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit import capture
from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._gfnet_networks import Policy, UnrolledPolicy
from acmix.toolkit.models._gfnet_resize import AlignedBicubic, aligned_bicubic_matrix
from acmix.toolkit.models.gfnet import MODELS, PARTS
from acmix.toolkit.models.mobilenet_v3 import MODELS as MOBILENETS
from acmix.toolkit.models.mobilenet_v3 import MobileNetV3
from acmix.toolkit.source import ModelSource
from acmix.toolkit.weights import load_weights

Fill = Callable[[nn.Module], None]
Golden = Callable[[str], dict[str, Any]]
Manifest = Callable[[str], dict[str, list[Any]]]
Input = Callable[[tuple[int, ...]], Tensor]

OFFICIAL = {
    "glance_100": "backbone_mobilenetv3_large_100_96",
    "glance_125": "backbone_mobilenetv3_large_125_96",
    "focus_100": "backbone_mobilenetv3_large_100_96",
    "focus_125": "backbone_mobilenetv3_large_125_96",
    "policy_100": "policy_mobilenetv3_large_100_96",
    "policy_100_128": "policy_mobilenetv3_large_100_128",
    "policy_125": "policy_mobilenetv3_large_125_128",
}


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


def network(name: str) -> nn.Module:
    """A model of the family, random but the same every time."""
    torch.manual_seed(0)
    return MODELS[f"gfnet_{name}"].build().eval()


def noise(*shape: int) -> Tensor:
    """Normal float64 values, the same every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def agrees(found: Tensor, expected: dict[str, Any], tolerance: float = 2e-5) -> None:
    """Compare with a reference output: its first values, sum, norm and largest entry."""
    first = torch.tensor(expected["first8"])
    assert found.shape == (expected["out_len"],)
    assert float((found[: len(first)] - first).abs().max() / found.abs().max()) < tolerance
    assert float(found.sum()) == pytest.approx(expected["sum"], rel=1e-4)
    assert float(found.norm()) == pytest.approx(expected["l2"], rel=1e-5)
    assert int(found.argmax()) == expected["argmax"]


@pytest.mark.parametrize(("name", "reference"), list(OFFICIAL.items()))
def test_the_keys_and_shapes_are_those_of_the_official_files(name: str, reference: str, manifest: Manifest) -> None:
    state = network(name).state_dict()
    found = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()}
    assert found == manifest(f"gfnet_{reference}")


@pytest.mark.parametrize("width", ["100", "125"])
@pytest.mark.parametrize("step", [2, 3])
def test_a_head_is_one_layer_of_the_official_classifiers(width: str, step: int, manifest: Manifest) -> None:
    state = network(f"head{step}_{width}").state_dict()
    official = manifest(f"gfnet_fc_mobilenetv3_large_{width}")
    assert set(state) == {f"fc_{step}.weight", f"fc_{step}.bias"}
    assert all(list(value.shape) == official[key][0] for key, value in state.items())


@pytest.mark.parametrize("name", ["glance_100", "focus_100"])
def test_the_embedding_is_the_reference_output(name: str, fill: Fill, golden: Golden, golden_input: Input) -> None:
    module = network(name)
    fill(module)
    embedding, state = module.eval()(golden_input((1, 3, 96, 96)))[-2:]
    assert state.shape == (1, 960, 3, 3)
    agrees(embedding[0], golden("gfnet_backbone_mobilenetv3_large_100_96"))


@pytest.mark.parametrize(
    ("channels", "side", "reference"), [(960, 3, "100_96"), (960, 4, "100_128"), (1200, 3, "125_96")]
)
@pytest.mark.parametrize("form", [lambda policy: policy, UnrolledPolicy], ids=["published", "unrolled"])
def test_the_actions_of_two_steps_are_the_reference_output(
    channels: int,
    side: int,
    reference: str,
    form: Callable[[Policy], nn.Module],
    fill: Fill,
    golden: Golden,
    golden_input: Input,
) -> None:
    policy = Policy(channels, side)
    fill(policy)
    module = form(policy).eval()
    state = golden_input((1, channels, side, side))
    first, hidden = module(state, torch.zeros(1, 256))
    second, _ = module(-state, hidden)
    agrees(torch.cat((first[0], second[0])), golden(f"gfnet_policy_mobilenetv3_large_{reference}"), tolerance=3e-6)


@pytest.mark.parametrize("width", ["100", "125"])
def test_the_second_heads_logits_are_the_reference_output(
    width: str, fill: Fill, golden: Golden, golden_input: Input
) -> None:
    backbone, head = MOBILENETS[f"mobilenet_v3_large_{width}"].build(), network(f"head2_{width}")
    assert isinstance(backbone, MobileNetV3)
    fill(backbone)
    # Among the eight sorted keys of the official file, those of head 2 come first: the fill is the same.
    fill(head)
    vector = backbone.eval().embedding(golden_input((1, 3, 96, 96)))
    agrees(head(vector, vector / 2)[0], golden(f"gfnet_fc_mobilenetv3_large_{width}"))


def test_a_head_reads_the_glance_first_and_the_last_patch_last() -> None:
    head = network("head3_100").double()
    layer = head.get_submodule("fc_3")
    assert isinstance(layer, nn.Linear)
    vectors = noise(3, 1280)
    parts = (layer.weight[:, start : start + 1280] for start in (0, 1280, 2560))
    wanted = sum(part @ vector for part, vector in zip(parts, vectors, strict=True)) + layer.bias
    assert torch.allclose(head(*vectors.unsqueeze(1))[0], wanted, rtol=0, atol=1e-12)


def test_glance_and_focus_are_the_plain_backbone_read_at_three_places() -> None:
    glance = network("glance_125").double()
    plain = MOBILENETS["mobilenet_v3_large_125"].build().double().eval()
    plain.load_state_dict(glance.state_dict())
    assert isinstance(plain, MobileNetV3)
    x = noise(1, 3, 64, 64)
    logits, embedding, state = glance(x)
    assert torch.equal(logits, plain(x))
    assert torch.equal(embedding, plain.embedding(x))
    assert torch.equal(state, plain.feature_map(x))
    focus = network("focus_125").double()
    focus.load_state_dict(glance.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(focus(x), (embedding, state), strict=True))


@pytest.mark.parametrize("name", ["focus_100", "policy_100", "policy_125"])
def test_the_inference_form_is_equal_and_leaves_its_source_alone(name: str) -> None:
    spec, module = MODELS[f"gfnet_{name}"], network(name).double()
    before = copy.deepcopy(module.state_dict())
    assert spec.for_inference is not None
    form = spec.for_inference(module, "onnx")
    inputs = [noise(*each.shape) for each in spec.inputs]
    for found, wanted in zip(form(*inputs), module(*inputs), strict=True):
        assert float((found - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())
    assert not form.training
    for parameter in form.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_nothing_that_inference_does_not_read_is_exported() -> None:
    policy, focus = MODELS["gfnet_policy_100"], MODELS["gfnet_focus_100"]
    assert policy.for_inference is not None and focus.for_inference is not None
    kept = policy.for_inference(network("policy_100"), "executorch")
    assert sum(p.numel() for p in kept.parameters()) == 500_227 - 257
    assert not any(isinstance(layer, nn.GRU | nn.Flatten) for layer in kept.modules())
    kept = focus.for_inference(network("focus_100"), "executorch")
    assert sum(p.numel() for p in kept.parameters()) == 5_483_032 - 1_281_000


# Cumulative multiply-accumulates of the authors' table at exits 1, 2 and 3. They count the glance's classifier and
# every head, and neither the focus's classifier nor the shrinking of the image (20.6 M as two matrix products).
@pytest.mark.parametrize(
    ("variant", "heads", "exits"),
    [
        ("100", "100", (43.1, 88.1, 134.5)),
        ("100_128", "100", (73.4, 149.2, 226.2)),
        ("125", "125", (119.5, 241.5, 364.7)),
    ],
)
def test_the_parts_add_up_to_the_published_costs_of_the_exits(
    variant: str, heads: str, exits: tuple[float, ...]
) -> None:
    def cost(name: str) -> int:
        spec = MODELS[f"gfnet_{name}"]
        return capture.count_macs(capture.build(ModelSource(spec.name, "zoo", spec), "random"))

    step = cost(f"policy_{variant}") + cost(f"focus_{variant}")
    first = cost(f"glance_{variant}")
    second = first + step + cost(f"head2_{heads}")
    third = second + step + cost(f"head3_{heads}")
    assert tuple(round(macs / 1e6, 1) for macs in (first, second, third)) == exits


def bundle(prefix: str = "") -> dict[str, Tensor]:
    """The tensors of an official file of width 100 at 96 px, keyed by the part and the part's own key."""
    glance, focus, policy = network("glance_100"), network("focus_100"), network("policy_100")
    for parameter in focus.parameters():
        parameter.add_(1)
    heads = {f"fc.fc_{n}.{kind}": noise(*shape) for n in range(2, 6) for kind, shape in _head_shapes(n)}
    parts = zip(PARTS[:3], (glance, focus, policy), (prefix, prefix, ""), strict=True)
    tensors = {f"{part}.{wrap}{key}": value for part, net, wrap in parts for key, value in net.state_dict().items()}
    return {**tensors, **heads}


def _head_shapes(step: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("weight", (4, step * 1280)), ("bias", (4,))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("name", "part"), list(zip(["glance_100", "focus_100", "policy_100"], PARTS[:3], strict=True)))
def test_every_network_finds_its_part_of_the_one_file(name: str, part: str, prefix: str) -> None:
    state, module = bundle(prefix), network(name)
    for parameter in module.parameters():
        parameter.zero_()
    report = load_weights(module, MODELS[f"gfnet_{name}"], state)
    assert report.complete and not report.ignored
    for key, value in module.state_dict().items():
        assert torch.equal(value, state.get(f"{part}.{key}", state.get(f"{part}.module.{key}", torch.tensor(-1))))


@pytest.mark.parametrize("form", ["bundle", "bare"])
def test_a_head_is_found_among_the_four(form: str) -> None:
    state = {key: value for key, value in bundle().items() if key.startswith("fc.")}
    if form == "bare":
        state = {key.removeprefix("fc."): value for key, value in state.items()}
    adapt = MODELS["gfnet_head3_100"].adapt_checkpoint
    assert adapt is not None
    found = adapt(state)
    assert set(found) == {"fc_3.weight", "fc_3.bias"}
    assert found["fc_3.weight"].shape == (4, 3840)


def test_a_bare_state_dict_loads_and_a_strange_key_is_refused() -> None:
    spec, module = MODELS["gfnet_policy_100"], network("policy_100")
    state = {key: torch.ones_like(value) for key, value in module.state_dict().items()}
    assert load_weights(module, spec, state).complete
    assert all(bool((value == 1).all()) for value in module.state_dict().values())
    with pytest.raises(UsageError, match=r"unexpected: actor\.2\.weight"):
        load_weights(module, spec, {**state, "actor.2.weight": torch.ones(2)})


def test_a_file_without_the_policy_says_what_it_has() -> None:
    state = {key: value for key, value in bundle().items() if not key.startswith(("policy.", "fc."))}
    with pytest.raises(UsageError, match="no 'policy'; it has model_prime_state_dict, model_state_dict"):
        load_weights(network("policy_100"), MODELS["gfnet_policy_100"], state)


def test_a_policy_of_another_patch_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"state_encoder\.3\.weight \[256, 288\] instead of \[256, 512\]"):
        load_weights(network("policy_100_128"), MODELS["gfnet_policy_100_128"], bundle())


bicubic = partial(F.interpolate, mode="bicubic", align_corners=True)


@pytest.mark.parametrize(
    ("source", "target"), [((224, 224), (96, 96)), ((224, 224), (128, 128)), ((9, 31), (17, 8)), ((5, 1), (1, 4))]
)
def test_two_matrices_resize_as_torch_does(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = 2.5 * noise(1, 3, *source).clamp(-1, 1)
    module = AlignedBicubic(source, target)
    assert float((module(x) - bicubic(x, target)).abs().max()) < 1e-12
    # The float32 error of torch's own is as large as ours: 1e-6 of the largest value is for either.
    assert float((module(x.float()) - bicubic(x, target)).abs().max()) < 1e-6 * float(x.abs().max())
    assert module.state_dict() == {}


def test_the_corners_stay_and_every_pixel_weighs_one_in_all() -> None:
    matrix = aligned_bicubic_matrix(224, 96)
    assert torch.allclose(matrix.sum(1), torch.ones(96, dtype=torch.float64), rtol=0, atol=1e-14)
    assert matrix[0, 0] == matrix[-1, -1] == 1
    assert int((matrix != 0).sum(1).max()) <= 4


def test_a_resize_to_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="224 pixels to 0"):
        AlignedBicubic((224, 224), (96, 0))
