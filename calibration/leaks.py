"""Whether evaluation samples were calibrated on: by the bytes of files, by arrays, and by tiny pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from acmix.calibration.checks import SAME_PICTURE, Finding
from acmix.calibration.photos import PhotoFolder, decode
from acmix.calibration.statistics import Float64, thumbnail
from acmix.toolkit.samples import Samples, digest_of

DRAFT = (256, 256)
"""At least this large is a JPEG decoded for its tiny picture. Smaller is faster, and loses fine textures."""


def leaks(calibration: Samples, evaluation: Samples) -> tuple[Finding, ...]:
    """The evaluation samples that are also among the calibration's.

    Of photo folders the files are compared: equal bytes under any name, and copies in another size or encoding
    by their tiny pictures.  Other samples are compared by the arrays that the network gets.
    """
    if isinstance(calibration, PhotoFolder) and isinstance(evaluation, PhotoFolder):
        equal, alike = _shared_files(calibration.files, evaluation.files)
    else:
        known = {digest_of([sample]) for sample in calibration}
        found = [digest_of([sample]) in known for sample in evaluation]
        equal, alike = [i for i, leaked in enumerate(found) if leaked], []
    shared = sorted({*equal, *alike})
    if not shared:
        return ()
    names = [evaluation.identifiers[i] for i in shared]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    copies = f", {len(alike)} of them as copies of another size or encoding" if alike else ""
    sentence = (
        f"{len(shared)} of the {len(evaluation)} samples of {evaluation.name} were calibrated on{copies}: {shown}. "
        "What they score says less about new photos."
    )
    figures: dict[str, float] = {"evaluated": len(evaluation), "shared": len(shared), "copies": len(alike)}
    return (Finding("leak", "warn", sentence, figures),)


def _shared_files(calibration: tuple[Path, ...], evaluation: tuple[Path, ...]) -> tuple[list[int], list[int]]:
    """Positions in evaluation: of files equal byte for byte, and of copies."""
    known = {_file_digest(file) for file in calibration}
    equal = [i for i, file in enumerate(evaluation) if _file_digest(file) in known]
    pictures = np.stack([_small(file) for file in calibration])
    rest = sorted(set(range(len(evaluation))) - set(equal))
    alike = [i for i in rest if float((pictures @ _small(evaluation[i])).max()) >= SAME_PICTURE]
    return equal, alike


def _file_digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def _small(file: Path) -> Float64:
    """The whole photo as a thumbnail; a JPEG is decoded small."""
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", DRAFT)
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        # decode says what is wrong with it.
        image = decode(file)
    planes = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float64).transpose(2, 0, 1)
    return thumbnail(planes)
