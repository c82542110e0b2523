"""DVT: a reading of its checkpoint by the keys alone, the resizes spelled out, one file for all transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit import capture, catalog, pipeline
from acmix.toolkit.adaptive.find import find_adaptive
from acmix.toolkit.adaptive.unrolled import unrolled
from acmix.toolkit.checkpoint import read_checkpoint
from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._dvt_layers import MatrixResize, TokenResize, Transformer, Width
from acmix.toolkit.models.dvt import MODELS, PARTS, build_transformer, coarse_to_fine, transformer
from acmix.toolkit.request import ExportRequest, TargetRequest
from acmix.toolkit.source import ModelSource
from acmix.toolkit.spec import Claims, ModelSpec
from acmix.toolkit.weights import load_weights

Fill = Callable[[nn.Module], None]
TINY = Width(channels=24, heads=2, depth=2, classes=10)
SIDE = 96


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


def tiny_specs() -> tuple[ModelSpec, ...]:
    """The three transformers, narrow, at 3x3, 4x4 and 6x6 patches."""
    claims = Claims(macs_note="tiny")
    return tuple(transformer(f"tiny_dvt_{number}", number, claims, TINY, SIDE) for number in range(3))


def tiny(number: int) -> Transformer:
    """One of them in float64, random."""
    torch.manual_seed(number)
    built = tiny_specs()[number].build()
    assert isinstance(built, Transformer)
    return built.double().eval()


def noise(*shape: int) -> Tensor:
    """Normal float64 values, the same every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def finer(square: Tensor, after: int) -> Tensor:
    """[s, s] to [after, after]: every pixel doubled, then the mean of each window that adaptive pooling takes."""
    before = len(square)
    doubled = torch.stack([square[i // 2][torch.arange(2 * before) // 2] for i in range(2 * before)])
    rows = [(i * 2 * before // after, math.ceil((i + 1) * 2 * before / after)) for i in range(after)]
    return torch.stack([torch.stack([doubled[a:b, c:d].mean() for c, d in rows]) for a, b in rows])


def norm(state: Mapping[str, Tensor], key: str, x: Tensor) -> Tensor:
    """A layer norm spelled out."""
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / spread * state[f"{key}.weight"] + state[f"{key}.bias"]


def affine(state: Mapping[str, Tensor], key: str, x: Tensor) -> Tensor:
    return x @ state[f"{key}.weight"].flatten(1).t() + state[f"{key}.bias"]


def mlp(state: Mapping[str, Tensor], key: str, x: Tensor) -> Tensor:
    return affine(state, f"{key}.fc2", F.gelu(affine(state, f"{key}.fc1", x)))


def relations_by_keys(state: Mapping[str, Tensor], found: Tensor, after: int) -> Tensor:
    """[maps, N, N] to [maps, N', N']: mixed at each pair of tokens, then each row's keys and each column's queries."""
    pairs = found.permute(1, 2, 0)
    inner = F.gelu(affine(state, "relation_reuse_conv.0", pairs))
    mixed = affine(state, "relation_reuse_conv.2", inner).permute(2, 0, 1)
    side = math.isqrt(mixed.shape[1] - 1)

    def longer(row: Tensor) -> Tensor:
        return torch.cat((row[:1], finer(row[1:].reshape(side, side), after).flatten()))

    wide = torch.stack([torch.stack([longer(row) for row in one]) for one in mixed])
    return torch.stack([torch.stack([longer(column) for column in one.t()]).t() for one in wide])


def block_by_keys(
    state: Mapping[str, Tensor], key: str, x: Tensor, heads: int, features: Tensor | None, reused: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Tokens [N, C] through one block; a loop over heads."""
    qkv = affine(state, f"{key}.attn.qkv", norm(state, f"{key}.norm1", x)).chunk(3, 1)
    size, relations, seen = x.shape[1] // heads, [], []
    for head in range(heads):
        query, keys, value = (part[:, head * size : (head + 1) * size] for part in qkv)
        logits = query @ keys.t() / math.sqrt(size)
        logits = logits if reused is None else logits + reused[head]
        relations.append(logits)
        seen.append(torch.softmax(logits, 1) @ value)
    x = x + affine(state, f"{key}.attn.proj", torch.cat(seen, 1))
    wide = x
    if features is not None:
        narrow = norm(state, f"{key}.feature_resuse_mlp.0", features)
        narrow = mlp(state, f"{key}.feature_resuse_mlp.1", narrow)[1:]
        side, after = math.isqrt(len(narrow)), math.isqrt(len(x) - 1)
        maps = [finer(one.reshape(side, side), after).flatten() for one in narrow.t()]
        wide = torch.cat((x, F.pad(torch.stack(maps, 1), (0, 0, 1, 0))), 1)
    return x + mlp(state, f"{key}.mlp", norm(state, f"{key}.norm2", wide)), relations


def by_keys(
    state: Mapping[str, Tensor], image: Tensor, patch: tuple[int, int], seen: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One published transformer as a function of its checkpoint, without any of our classes."""
    side, padding = patch
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = F.conv2d(image, weight, bias, stride=side, padding=padding)[0].flatten(1).t()
    x = torch.cat((state["cls_token"][0], patches)) + state["pos_embed"][0]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    reused: list[Tensor | None] = [None] * depth
    if seen is not None:
        made = relations_by_keys(state, seen[1][0], math.isqrt(len(x) - 1))
        reused = list(made.chunk(depth))
    found: list[Tensor] = []
    for number in range(depth):
        features = None if seen is None else seen[0][0]
        x, relations = block_by_keys(state, f"blocks.{number}", x, TINY.heads, features, reused[number])
        found += relations
    logits = affine(state, "head", norm(state, "norm", x)[:1])
    return logits, x.unsqueeze(0), torch.stack(found).unsqueeze(0)


def test_three_transformers_follow_from_the_keys_of_the_checkpoint(fill: Fill) -> None:
    image, seen, wanted_seen = noise(1, 3, SIDE, SIDE), (), None
    for number, patch in enumerate(((32, 0), (23, 3), (16, 0))):
        module = tiny(number)
        fill(module)
        found = module(image, *seen)
        wanted = by_keys(module.state_dict(), image, patch, wanted_seen)
        for a, b in zip(found, wanted, strict=False):
            assert a.shape == b.shape
            assert float((a - b).abs().max() / b.abs().max()) < 1e-11
        assert len(found) == (1 if number == 2 else 3)
        seen, wanted_seen = found[1:], wanted[1:]


@pytest.mark.parametrize(("before", "after"), [(7, 10), (10, 14)])
@pytest.mark.parametrize("keeps_class", [True, False])
def test_tokens_are_doubled_and_pooled_and_a_matrix_does_the_same(before: int, after: int, keeps_class: bool) -> None:
    published = TokenResize(before, after, keeps_class)
    tokens = noise(2, 3, 1 + before**2)
    found = published(tokens)
    assert found.shape == (2, 3, 1 + after**2)
    wanted = finer(tokens[1, 2, 1:].reshape(before, before), after).flatten()
    torch.testing.assert_close(found[1, 2, 1:], wanted, rtol=0, atol=1e-14)
    assert torch.equal(found[..., 0], tokens[..., 0] if keeps_class else torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(MatrixResize(published, torch.float64)(tokens), found, rtol=0, atol=1e-13)


def test_the_keys_are_the_authors() -> None:
    state = MODELS["dvt_deit_small_10x10"].build().state_dict()
    shapes = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 101, 384),
        "patch_embed.proj.weight": (384, 3, 23, 23),
        "blocks.0.attn.qkv.bias": (1152,),
        "blocks.11.attn.proj.weight": (384, 384),
        "blocks.3.norm2.weight": (432,),
        "blocks.3.mlp.fc1.weight": (1536, 432),
        "blocks.3.feature_resuse_mlp.0.weight": (384,),
        "blocks.3.feature_resuse_mlp.1.fc1.weight": (128, 384),
        "blocks.3.feature_resuse_mlp.1.fc2.weight": (48, 128),
        "relation_reuse_conv.0.weight": (216, 72, 1, 1),
        "relation_reuse_conv.2.bias": (72,),
        "norm.bias": (384,),
        "head.weight": (1000, 384),
    }
    assert {key: tuple(state[key].shape) if key in state else None for key in shapes} == shapes
    # 12 blocks of 12 tensors and 6 of feature reuse; 8 of the frame and 4 of relation reuse.
    assert len(state) == 12 * 18 + 12
    assert len(MODELS["dvt_deit_small_7x7"].build().state_dict()) == 12 * 12 + 8


def test_one_official_file_holds_all_transformers_and_its_thresholds(tmp_path: Path) -> None:
    specs, file = tiny_specs(), tmp_path / "dvt.pth.tar"
    modules = [spec.build() for spec in specs]
    state = {f"{p}.{key}": v for p, m in zip(PARTS, modules, strict=True) for key, v in m.state_dict().items()}
    table = torch.tensor([[0.9, 0.8, -1e8]]).repeat(59, 1)
    torch.save({"model_state_dict": state, "flops": [1.0, 2.0, 3.0], "dynamic_threshold": table}, file)
    for spec, source in zip(specs, modules, strict=True):
        fresh = spec.build()
        assert load_weights(fresh, spec, read_checkpoint(file)).complete
        assert all(
            torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), source.state_dict().values(), strict=True)
        )
    adaptive = find_adaptive("dvt_deit_small")
    assert adaptive.threshold_table is not None
    rows = adaptive.threshold_table(str(file))
    assert len(rows) == 59 and rows[0] == pytest.approx((0.9, 0.8))
    with pytest.raises(UsageError, match="does not fit"):
        load_weights(
            specs[1].build(), specs[1], {f"less_less_token.{k}": v for k, v in modules[0].state_dict().items()}
        )


def test_what_one_transformer_finds_is_what_the_next_one_takes() -> None:
    for before, after in zip(MODELS.values(), list(MODELS.values())[1:], strict=False):
        number = list(MODELS.values()).index(before)
        assert before.outputs[1:] == ("found_features", "found_relations")
        tokens = 1 + (7, 10)[number] ** 2
        assert [spec.shape for spec in after.inputs[1:]] == [(1, tokens, 384), (1, 72, tokens, tokens)]
    assert build_transformer(0).pos_embed.shape[1] == 50


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> list[pipeline.Outcome]:
    """The three transformers as one graph, on every target."""
    source = unrolled(coarse_to_fine("tiny_dvt", tiny_specs()))
    targets = tuple(TargetRequest(name, catalog.load_target(name).options()) for name in catalog.stems("targets"))
    out = tmp_path_factory.mktemp("dvt")
    with torch.enable_grad():
        return pipeline.export(ExportRequest(source, catalog.load_recipe("float32"), targets, out), lambda *_: None)


def test_every_target_proves_all_three_exits(tiny_files: list[pipeline.Outcome]) -> None:
    assert [outcome.error for outcome in tiny_files] == [""] * 4
    for outcome in tiny_files:
        assert outcome.artifact is not None
        proof = outcome.artifact.manifest.proof
        assert proof.verdict == "passed"
        assert [a.output for a in proof.agreements] == ["logits_1", "logits_2", "logits_3"]
        assert all(a.asked_db == 70.0 for a in proof.agreements)


def test_the_inference_form_is_the_same_transformer() -> None:
    from acmix.toolkit.prepare import prepare

    spec = tiny_specs()[2]
    network = capture.build(ModelSource(spec.name, "zoo", spec), "random")
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    for form in prepare(network.module, spec, ["executorch"]).values():
        assert form.error_float64 is not None and form.error_float64 < 1e-12
        assert not any(isinstance(layer, TokenResize) for layer in form.module.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())
