"""Images from .npz files, whole in memory, and the part of them that nobody learns.

Knows arrays; knows no net. Legend: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.errors import DataError


class ImageSet(NamedTuple):
    """Images and their classes."""

    pixels: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64

    def of(self, index: Tensor) -> ImageSet:
        """Some of them. Shape of index: [M] int64."""
        return ImageSet(self.pixels[index], self.labels[index])


def read_images(path: Path, field: str) -> ImageSet:
    """Read `images` ([N, H, W] or [N, H, W, C], uint8) and `labels` ([N], from 0) of an .npz file.

    Raises:
        DataError: names the field, the file and what is wrong with it.
    """

    def wrong(problem: str, action: str) -> DataError:
        return DataError(field, problem, value=str(path), action=action)

    try:
        with np.load(path, allow_pickle=False) as whole:
            if not {"images", "labels"} <= set(whole.files):
                raise wrong("holds no arrays `images` and `labels`", "write it with numpy.savez")
            images, labels = whole["images"], whole["labels"]
    except FileNotFoundError:
        raise wrong("is not there", "check the path") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise wrong(f"cannot be read as .npz: {error}", "write it with numpy.savez") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise wrong(
            f"images are {images.dtype} {list(images.shape)}",
            "give uint8 [N, H, W] or [N, H, W, C]",
        )
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise wrong(
            f"labels are {labels.dtype} {list(labels.shape)} for {len(images):,} images",
            "give one whole number an image",
        )
    if not len(images) or labels.min() < 0:
        raise wrong("holds no image, or a label below 0", "number the classes from 0")
    if images.ndim == 3:
        images = images[..., None]
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)))


class Parts(NamedTuple):
    """What is learnt, what is looked at to choose, what is scored, and the number of classes."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: int


def parts_of(
    train: ImageSet, test: ImageSet, *, share: float, limit: int | None, seed: int
) -> Parts:
    """Divide the training images, by the seed.

    Raises:
        DataError: test images of another size or of a class that is never shown, or too few images.
    """
    classes = int(train.labels.max()) + 1
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise DataError(
            "images.test",
            f"has images of {list(test.pixels.shape[1:])}, and train of "
            f"{list(train.pixels.shape[1:])} (channels, height, width)",
            action="bring both to one size",
        )
    if int(test.labels.max()) >= classes:
        raise DataError(
            "images.test",
            f"has the class {int(test.labels.max())}, which images.train never shows",
            action="leave it out, or add images of it",
        )
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))[:limit]
    held = int(len(order) * share)
    if held < 2 or len(order) - held < 2:
        raise DataError(
            "images.train",
            f"has {len(order):,} images, of which {held:,} would be for validation",
            action="give more, or raise images.validation",
        )
    return Parts(train.of(order[held:]), train.of(order[:held]), test, classes)
