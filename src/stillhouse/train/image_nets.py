"""Nets for images: two plain ones, and image classifiers of transformers, all read alike.

Each takes pixels as they are stored, [B, C, H, W] from 0 to 255, and brings them to what its body
was made for. Knows sections and shapes; knows no data and no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils.hub import cached_file

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.recipe_images import NetSection
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.module_weights import save_module

HIDDEN: Final = 256  # between a conv net's last channels and its classes
BODY: Final = "transformers"


class Sizes(NamedTuple):
    """What goes in and comes out."""

    channels: int
    height: int
    width: int
    classes: int


class Net(nn.Module):
    """Pixels to logits: scaled to 0..1, normalised, resized and repeated over channels as the body
    wants them."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.channels, self.size = body, channels, size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        x = inputs.to(self.mean.dtype) / 255
        if self.size is not None and x.shape[-2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        if self.channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        out: Any = self.body((x - self.mean) / self.std)
        logits: Tensor = getattr(out, "logits", out)
        return logits


def build_net(section: NetSection, sizes: Sizes, pixels: Tensor, seed: int) -> Net:
    """A net with its first weights.

    Args:
        section: what it is; one of 0 epochs must be whole, as nothing drawn here is then learned.
        sizes: of the images, and how many classes.
        pixels: images whose mean and spread a new net is normalised by, [N, C, H, W].
        seed: decides all weights that the source does not have.

    Raises:
        UserError: a source that cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if section.source.startswith("hf:"):
            return _of_transformers(section.source, sizes, as_it_is=section.epochs == 0)
        body = _conv(section, sizes) if section.source == "conv" else _mlp(section, sizes)
    scaled = pixels[:10_000].float() / 255
    mean, std = scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3)).clamp_min(1e-3)
    return Net(body, mean.tolist(), std.tolist())


def _conv(section: NetSection, sizes: Sizes) -> nn.Module:
    """Layers of 3 x 3 (the first 5 x 5) and stride 2, then one hidden layer."""
    layers: list[nn.Module] = []
    before, height, width = sizes.channels, sizes.height, sizes.width
    for number, channels in enumerate(section.widths):
        kernel = 5 if number == 0 else 3
        layers += [nn.Conv2d(before, channels, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
        before, height, width = channels, (height + 1) // 2, (width + 1) // 2
    drop = section.dropout
    layers += [nn.Flatten(), nn.Dropout(drop), nn.Linear(before * height * width, HIDDEN)]
    layers += [nn.ReLU(), nn.Dropout(drop), nn.Linear(HIDDEN, sizes.classes)]
    return nn.Sequential(*layers)


def _mlp(section: NetSection, sizes: Sizes) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    before = sizes.channels * sizes.height * sizes.width
    for width in section.widths:
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(section.dropout)]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, sizes.classes))


def _of_transformers(source: str, sizes: Sizes, *, as_it_is: bool) -> Net:
    name = source.removeprefix("hf:")
    builder: Any = AutoModelForImageClassification
    try:
        with quiet_transformers():
            labels = int(AutoConfig.from_pretrained(name).num_labels)
            body, report = builder.from_pretrained(
                name,
                num_labels=sizes.classes,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            source, f"cannot be loaded as an image classifier: {error}", action="check the folder"
        ) from None
    _check_whole(source, body, report, labels, sizes.classes, as_it_is=as_it_is)
    seen = _preprocessing(name)
    channels = int(getattr(body.config, "num_channels", 3))
    mean = seen.get("image_mean") or [0.5] * channels
    std = seen.get("image_std") or [0.5] * channels
    return Net(body, mean, std, channels, _size(seen, body.config))


def _check_whole(
    source: str, body: Any, report: Any, labels: int, classes: int, *, as_it_is: bool
) -> None:
    """Refuse weights that would be drawn at random and never learned, or that are no body's."""
    drawn = {str(key) for key in report["missing_keys"]}
    drawn |= {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]}
    prefix = body.base_model_prefix + "."
    inner: set[str] = set()
    if body.base_model is not body:  # else what is body and what is head is not told apart
        inner = {name for name, _ in body.base_model.named_parameters()}
    lost = sorted(key for key in drawn if key.removeprefix(prefix) in inner)
    if lost:
        raise UserError(
            source, f"does not hold the weights of a {type(body).__name__}", value=lost[0],
            action="give the folder of an image classifier",
        )  # fmt: skip
    if as_it_is and labels != classes:
        raise UserError(
            source,
            f"knows {labels} labels, and the images have {classes}: it cannot be taken as it is",
            action="give it epochs to learn a new head, or a classifier of these labels",
        )
    if as_it_is and drawn:
        raise UserError(
            source,
            f"has no head of its own ({min(drawn)} is not in its files): it cannot be taken as it "
            "is",
            action="give it epochs to learn one",
        )


def _preprocessing(name: str) -> dict[str, Any]:
    path = cached_file(
        name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
    )
    return {} if path is None else dict(read_json(Path(path)))


def _size(seen: dict[str, Any], config: Any) -> tuple[int, int] | None:
    """Height and width that the body was made for: of its preprocessing, else of its config."""
    found: Any = seen.get("size") or getattr(config, "image_size", None)
    if isinstance(found, dict):
        edge = found.get("shortest_edge")
        found = (found.get("height", edge), found.get("width", edge))
    if isinstance(found, int):
        found = (found, found)
    return None if found is None else (int(found[0]), int(found[1]))


def save_net(net: Net, folder: Path) -> None:
    """Write `model.safetensors`, and for a body of transformers its own folder beside it."""
    save_module(net, folder)
    body: Any = net.body
    if hasattr(body, "save_pretrained"):
        with quiet_transformers():
            body.save_pretrained(str(folder / BODY))


@torch.no_grad()
def logits_of(net: nn.Module, pixels: Tensor, batch: int = 256) -> Tensor:
    """[N, classes], float32 on the CPU, in evaluation mode."""
    net.eval()
    device = next(net.parameters()).device
    return torch.cat([net(part.to(device)).float().cpu() for part in torch.split(pixels, batch)])
