"""Probes: the same everywhere, varied, and right for each input type."""

from __future__ import annotations

import numpy as np

from acmix.toolkit.samples import Probes, digest_of
from acmix.toolkit.spec import TensorSpec

IMAGE = TensorSpec("image", (1, 3, 8, 8), layout="nchw")


def test_probes_cover_zeros_and_a_large_range() -> None:
    probes = dict(zip(Probes((IMAGE,)).identifiers, Probes((IMAGE,)), strict=True))
    assert not probes["zeros"][0].any()
    assert np.abs(probes["large"][0]).max() > 2 * np.abs(probes["noise"][0]).max()


def test_probes_repeat_for_a_seed_and_differ_for_another() -> None:
    assert Probes((IMAGE,), 3).digest == Probes((IMAGE,), 3).digest
    assert Probes((IMAGE,), 3).digest != Probes((IMAGE,), 4).digest


def test_probes_never_change_between_releases() -> None:
    """Stored reference outputs belong to these very inputs: a change here needs a new manifest version."""
    assert Probes((IMAGE,)).digest == "b13c64dbe35c8797b9b8161a6b0fd5a4026d64414fba48bf4232806d65c3c5ed"


def test_each_probe_has_the_shape_and_type_of_its_input() -> None:
    ids = TensorSpec("ids", (1, 5), "int64")
    for image, indices in Probes((IMAGE, ids)):
        assert (image.shape, image.dtype) == (IMAGE.shape, np.float32)
        assert (indices.shape, indices.dtype) == (ids.shape, np.int64)
        assert indices.min() >= 0


def test_the_digest_sees_shapes_and_types() -> None:
    assert digest_of([(np.zeros((2, 3)),)]) != digest_of([(np.zeros((3, 2)),)])
    assert digest_of([(np.zeros(2, np.int32),)]) != digest_of([(np.zeros(2, np.float32),)])
