"""Recipe section of `stillhouse compress`: which forms of the student are made, and what they must
keep.

Knows names of formats and which students they fit; not how they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from pydantic import Field, field_validator

from stillhouse.core.heads import Head
from stillhouse.core.optional import EXTRAS, available
from stillhouse.core.recipe_section import Section

Format = Literal[
    "onnx",
    "onnx-int8",
    "onnx-int8-static",
    "onnx-mobile",
    "executorch",
    "gguf-f16",
    "gguf-q8_0",
    "gguf-q4",
    "genai-int8",
    "genai-int4",
    "compressed-tensors-w8a16",
    "compressed-tensors-w4a16",
    "compressed-tensors-fp8",
    "torchao-int8",
    "torchao-int4",
]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)


class _Family(NamedTuple):
    """What the formats of one writer share: the students' heads, and the extra that makes and runs
    them."""

    heads: tuple[Head, ...]
    extra: str


# By the beginning of a format's name, the longer one first.
_FAMILIES: Final[Mapping[str, _Family]] = {
    "onnx-mobile": _Family(("label",), "onnx"),
    "onnx": _Family(("label", "tags"), "onnx"),
    "executorch": _Family(("label",), "executorch"),
    "gguf": _Family(("text",), "gguf"),
    "genai": _Family(("text",), "genai"),
    "compressed-tensors": _Family(("text",), "cuda"),
    "torchao": _Family(("text",), "cuda"),
}


def _family(name: Format) -> _Family:
    return next(family for start, family in _FAMILIES.items() if name.startswith(start))


HEADS: Final[Mapping[Format, tuple[Head, ...]]] = {name: _family(name).heads for name in FORMATS}
CALIBRATED: Final[frozenset[Format]] = frozenset({"onnx-int8-static"})
# Label and tag students whose weights and activations are integers of ONNX_INT8's grid.
INT8: Final[tuple[Format, ...]] = ("onnx-int8", "onnx-int8-static", "onnx-mobile")
# Made where they are named alone: another packing of a graph, another machine's format.
NAMED_ALONE: Final[frozenset[Format]] = frozenset(
    {
        "onnx-mobile",
        "executorch",
        *(n for n in FORMATS if n.startswith(("genai", "compressed-tensors", "torchao"))),
    }
)


class CompressSection(Section):
    """The forms a trained student is brought into, and the gate that each must pass
    (docs/compress.md)."""

    formats: tuple[Format, ...] | None = Field(
        default=None,
        description="What to make. null: all that fit the student's head and whose extra is "
        "installed (label and tags: onnx, onnx-int8, onnx-int8-static; text: gguf-f16, gguf-q8_0, "
        "gguf-q4). "
        "Made where they are named: onnx-mobile and executorch, a label student in one file; "
        "genai-int8 and genai-int4, a text student in ONNX; "
        "compressed-tensors-w8a16, -w4a16, -fp8, torchao-int8, torchao-int4, a text student for a "
        "GPU.",
    )
    calibration: str | None = Field(
        default=None,
        description="Queries (JSONL, as traffic.path) by which static INT8 sets its ranges; null: "
        "the training examples.",
    )
    calibration_samples: int = Field(
        default=256, ge=1, description="How many of them, chosen by the recipe's seed."
    )
    margin_teacher: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Non-inferiority margin against the teacher, absolute; null: evaluate.margin.",
    )
    margin_student: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="The same against the float student: what compressing may cost on top.",
    )
    min_speedup: float = Field(
        default=1.0,
        gt=0,
        description="Below so many times the float student's speed, an artefact counts as slower.",
    )
    max_size_mb: float | None = Field(
        default=None,
        gt=0,
        description="An artefact of more megabytes (10^6 bytes) is refused; null: no limit.",
    )
    speed_by: Literal["latency", "throughput"] = Field(
        default="latency",
        description="What min_speedup is of: the median latency of one query at a time, or "
        "queries/s with all submitted at once.",
    )
    speed_repeats: int = Field(
        default=5, ge=1, description="Turns in which all are timed on evaluate.speed_queries."
    )
    latency_queries: int = Field(
        default=100, ge=1, description="Queries asked one at a time, for p50 and p95."
    )
    cold_starts: int = Field(
        default=3, ge=1, description="Fresh processes that are started, each to its first answer."
    )
    float_device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu",
        description="Where the float student runs beside its artefacts. Those run on the "
        "processor; GPU formats (compressed-tensors, torchao) where the float student does.",
    )

    quantization_aware: Literal["auto", False] = Field(
        default="auto",
        description="auto: where an INT8 form falls below its gate, the student is distilled "
        "further with rounded weights and activations, exported and gated again beside it. false: "
        "it is refused, no more.",
    )

    @field_validator("formats")
    @classmethod
    def _named_once(cls, formats: tuple[Format, ...] | None) -> tuple[Format, ...] | None:
        if formats is not None and not formats:
            raise ValueError("names nothing to make; leave it out for all that fit")
        if formats is not None and len(set(formats)) < len(formats):
            raise ValueError("names a format twice")
        return formats

    def problem(self, head: Head) -> str | None:
        """What does not fit a student of this head, or `None`."""
        for name in self.formats or ():
            if head not in HEADS[name]:
                own = ", ".join(one for one in FORMATS if head in HEADS[one])
                heads = " and ".join(HEADS[name])
                return f"formats: {name} is for {heads} students; for this one: {own}"
        return None

    def wanted(self, head: Head) -> tuple[Format, ...]:
        """The formats to make: those named, else those that fit and can be made here."""
        if self.formats is not None:
            return self.formats
        return tuple(one for one in fitting(head) if installed(one))


def fitting(head: Head) -> tuple[Format, ...]:
    """The formats of a head that are made where a recipe names none."""
    return tuple(one for one in FORMATS if head in HEADS[one] and one not in NAMED_ALONE)


def extra_of(name: Format) -> str:
    """The extra that makes and runs a format."""
    return _family(name).extra


def installed(name: Format) -> bool:
    """Whether the packages of a format's extra are there."""
    return all(available(module) for module in EXTRAS[extra_of(name)])
