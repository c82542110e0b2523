"""fashion-mnist of Debian's dataset-fashion-mnist: trains the small MSDNet and lays its photos out as a user has them.

python tests/end_to_end/fashion.py FOLDER

FOLDER gets fashion_net.py, fashion.pt, and the 10000 photos that training does not see: calibration/ and others/.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from fashion_net import PREPROCESS, blocks
from PIL import Image
from torch import Tensor, nn

DATA = Path("/usr/share/datasets/fashion-mnist")
MISSING = f"{DATA} is not here: apt-get install dataset-fashion-mnist"
CALIBRATION = 2000
BATCH, EPOCHS, RATE, DECAY = 128, 1, 0.01, 0.02
THREADS = 1
"""More than one wait for each other where the other core is busy, and the layers are too small to gain much."""

Bytes = npt.NDArray[np.uint8]


def read(part: str) -> tuple[Bytes, Bytes]:
    """Images [N, 28, 28] and labels [N] of 'train' or 't10k'."""
    pixels = gzip.decompress((DATA / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DATA / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def train() -> nn.ModuleList:
    """All exits together, on the 60000 photos, half of them mirrored; the same weights for the same seed."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    pixels, labels = (torch.from_numpy(part.copy()) for part in read("train"))
    images = ((pixels.float() - PREPROCESS.mean[0]) / PREPROCESS.std[0])[:, None]
    net = blocks().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    for step, chosen in enumerate(batches(len(images))):
        seen = images[chosen].flip(3) if step % 2 else images[chosen]
        loss = exit_loss(net, seen.expand(-1, 3, -1, -1), labels[chosen].long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net


def batches(count: int) -> list[Tensor]:
    """The positions of every batch, shuffled anew for each epoch."""
    orders = [torch.randperm(count)[: count - count % BATCH] for _ in range(EPOCHS)]
    return [batch for order in orders for batch in order.split(BATCH)]


def exit_loss(net: nn.ModuleList, images: Tensor, labels: Tensor) -> Tensor:
    """The sum of the cross-entropies of all exits."""
    loss = torch.zeros(())
    seen: tuple[Tensor, ...] = (images,)
    for block in net:
        logits, *maps = block(*seen)
        seen = tuple(maps)
        loss = loss + nn.functional.cross_entropy(logits, labels)
    return loss


def write_photos(folder: Path, pixels: Bytes, labels: Bytes) -> None:
    """PNG files, and labels.csv."""
    folder.mkdir()
    names = [f"{number:05d}.png" for number in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(folder / name, compress_level=1)
    rows = [f"{name},{label}" for name, label in zip(names, labels.tolist(), strict=True)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n", encoding="utf-8")


def prepare(folder: Path) -> None:
    """Everything that the module's docstring names."""
    if not DATA.is_dir():
        raise SystemExit(MISSING)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(train().state_dict(), folder / "fashion.pt")
    shutil.copy(Path(__file__).with_name("fashion_net.py"), folder)
    pixels, labels = read("t10k")
    write_photos(folder / "calibration", pixels[:CALIBRATION], labels[:CALIBRATION])
    write_photos(folder / "others", pixels[CALIBRATION:], labels[CALIBRATION:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    prepare(parser.parse_args().folder)
