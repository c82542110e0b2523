"""cascade:...: models at other sizes, and what cannot stand in one."""

from __future__ import annotations

import pytest

from acmix.toolkit.adaptive.cascade import cascade
from acmix.toolkit.adaptive.find import adaptive_names, find_adaptive, names_adaptive
from acmix.toolkit.adaptive.spec import Photo, check_spec, check_stages
from acmix.toolkit.errors import UsageError


def test_a_size_scales_resize_and_crop_together() -> None:
    spec = cascade("cascade:efficientnet_lite0@128,efficientnet_lite2@260")
    photos = [step for stage in spec.stages for step in stage.steps if isinstance(step, Photo)]
    assert [(photo.preprocess.resize_short, photo.preprocess.crop) for photo in photos] == [
        (round(256 * 128 / 224), (128, 128)),
        (292, (260, 260)),
    ]
    assert list(spec.networks) == ["efficientnet_lite0_128", "efficientnet_lite2_260"]
    assert [source.spec.inputs[0].shape[2] for source in spec.networks.values()] == [128, 260]
    check_stages(spec.stages, set(spec.networks))


def test_without_a_size_a_model_keeps_its_own() -> None:
    spec = cascade("cascade:efficientnet_lite0,efficientnet_lite1@240")
    assert [source.spec.inputs[0].shape[2] for source in spec.networks.values()] == [224, 240]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("cascade:", "a part of the cascade is empty"),
        ("cascade:efficientnet_lite0@128,", "a part of the cascade is empty"),
        ("cascade:@128", "a part of the cascade is empty"),
        ("cascade:efficientnet_lite0@big", "'big' is no input size"),
        ("cascade:efficientnet_lite0@16", "'16' is no input size"),
        ("cascade:efficientnet_lite0@-64", "'-64' is no input size"),
        ("cascade:efficientnet_litt0@128", "no model is called 'efficientnet_litt0'"),
        ("cascade:efficientnet_lite0@128,efficientnet_lite0@128", "twice"),
        ("cascade:imdn_x2@64", "takes|gives|fixed"),
        ("cascade:gfnet_policy_100", "takes 2 inputs"),
        ("cascade:gfnet_policy_100@96", "fixed by its ModelSpec"),
        ("cascade:msdnet_step4", "not one row of class scores"),
        ("cascade:gfnet_focus_100", "not one row of class scores"),
    ],
)
def test_what_cannot_stand_in_a_cascade_is_refused(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cascade(reference)


def test_a_network_of_ones_own_needs_a_preprocessing(tiny: str) -> None:
    with pytest.raises(UsageError, match=r"has no preprocessing.*\n.*--preprocess imagenet"):
        cascade(f"cascade:{tiny}@32")
    assert cascade(f"cascade:{tiny}@32", imagenet=True).preprocess.crop == (32, 32)


def test_every_adaptive_model_of_the_zoo_is_found_and_fits_together() -> None:
    assert {"gfnet_100", "msdnet_step4_exits"} <= set(adaptive_names())
    for name in adaptive_names():
        assert names_adaptive(name)
        spec = find_adaptive(name)
        assert spec.name == name
        check_spec(spec)


def test_an_unknown_adaptive_model_is_refused() -> None:
    assert not names_adaptive("efficientnet_lite0")
    with pytest.raises(UsageError, match="no adaptive model is called 'gfnet_10'"):
        find_adaptive("gfnet_10")
