"""What every room's tests share: the tiny network, exported once a run for each precision."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import catalog, pipeline, warm
from acmix.toolkit.artifact import Artifact, open_artifact

# To look for garbage among what the collection imports, then and ever after, takes a tenth of a worker's time.
gc.disable()

ROOT = Path(__file__).parent.parent
TINY = f"{ROOT / 'tests' / 'tiny_net.py'}:make_net"
PHOTOS = ROOT.parent / "shared" / "data" / "imagenet_sample"


def targets_of(precision: str) -> list[str]:
    """The targets that take a recipe with their default options."""
    targets = map(catalog.load_target, catalog.stems("targets"))
    return [t.name for t in targets if t.refuses(catalog.load_recipe(precision), t.options()) is None]


def no_progress(target: str, stage: pipeline.Stage, seconds: float) -> None:
    """Nobody watches."""


def pytest_collection_finish() -> None:
    """Asked by pytest: what was imported stays, and from now on garbage is collected as always."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _warm_converters() -> Iterator[None]:
    """A worker imports each converter once: half of what a tiny network's conversion costs."""
    with warm.kept_warm():
        yield


@pytest.fixture
def cold_converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that change what a converter imports: none that waits is taken, and none waits for the next test."""
    monkeypatch.setattr(warm, "_STOCK", warm._Stock())


@pytest.fixture(scope="session")
def tiny() -> str:
    """--model for the tiny network."""
    return TINY


@pytest.fixture(scope="session")
def photos() -> Path:
    """500 labelled photos, or a skip."""
    if not PHOTOS.is_dir():
        pytest.skip(f"the labelled photos are not here: {PHOTOS.relative_to(ROOT.parent)}")
    return PHOTOS


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """One folder for the whole run, shared by the workers that pytest-xdist starts."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def exported(run_folder: Path) -> Callable[[str], dict[str, Artifact]]:
    """The tiny network at a precision, on every target that takes it: name to artifact. Do not write into these."""

    @cache
    def export(precision: str) -> dict[str, Artifact]:
        folder = run_folder / f"exported-{precision}"
        with FileLock(f"{folder}.lock"):
            # One worker exports; the others open what it wrote.
            if not folder.exists():
                export_tiny(precision, folder)
        artifacts = [open_artifact(manifest.parent) for manifest in folder.glob("*/manifest.json")]
        return {artifact.manifest.target.name: artifact for artifact in artifacts}

    return export


def export_tiny(precision: str, folder: Path) -> None:
    """Export to a place beside, so that the folder is there only when all of it is."""
    flags = ExportFlags(
        model=TINY,
        target=",".join(targets_of(precision)),
        precision=precision,
        inputs=("1x3x32x32",),
        preprocess="imagenet",
        out=folder.with_suffix(".unfinished"),
        calibration="builtin" if catalog.load_recipe(precision).needs_ranges else None,
        overwrite=True,
    )
    outcomes = pipeline.export(export_request(flags, {}), no_progress)
    assert [o.error for o in outcomes] == [""] * len(outcomes)
    flags.out.rename(folder)


# Their files share neighbours, or artifacts that are not shared between workers.
TOGETHER = ("tests/devices/", "tests/toolkit/adaptive/")
# These have neighbours of their own.
APART = ("tests/devices/test_hostile_device.py", "tests/devices/test_machine.py")
# Few tests that take minutes: begun late they would be waited for.
FIRST = (
    "tests/devices/",
    "tests/end_to_end/",
    "tests/toolkit/adaptive/",
    "tests/toolkit/test_compare.py",
    "tests/toolkit/test_pipeline.py",
    "tests/toolkit/models/test_dvt.py",
)


class FileScheduling(LoadScopeScheduling):
    """With several workers a file stays whole on one of them, and so does a folder of TOGETHER; the longest first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file in APART else next((folder for folder in TOGETHER if file.startswith(folder)), file)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if (first := next((s for part in FIRST for s in self.workqueue if s.startswith(part)), None)) is not None:
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    """Asked by pytest-xdist."""
    return FileScheduling(config, log)
