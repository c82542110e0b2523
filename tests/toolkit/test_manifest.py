"""The manifest's types and the schema that ships in the package."""

from __future__ import annotations

import json
from importlib.resources import files

from acmix.toolkit.manifest import manifest_schema


def test_the_published_schema_is_the_one_of_the_types() -> None:
    """Run `python -m acmix.toolkit.manifest` after changing a type; raise SCHEMA_VERSION for more than an addition."""
    published = json.loads(files("acmix.toolkit").joinpath("manifest.schema.json").read_text(encoding="utf-8"))
    assert published == json.loads(json.dumps(manifest_schema()))
