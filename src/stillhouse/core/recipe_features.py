"""Recipe sections of what a student is compared by beyond its answers: `train.terms`, how their
weights go (`train.balancing`), and layers that learn one after another (`train.progressive`).

Knows no model: which layers there are is checked where the models are read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.core.recipe_section import Section

LayerRule = Literal["skip", "first", "last"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ScheduleSection(Section):
    """A factor of a term's weight, over the share of the optimizer steps that are done."""

    shape: Literal["linear", "cosine", "steps"]
    start: float = Field(default=0.0, ge=0, le=1, description="linear, cosine: where it begins.")
    end: float = Field(default=1.0, ge=0, le=1, description="linear, cosine: where it ends.")
    before: float = Field(default=0.0, ge=0, description="linear, cosine: the factor up to start.")
    after: float = Field(default=1.0, ge=0, description="linear, cosine: the factor from end on.")
    at: tuple[tuple[Fraction, Annotated[float, Field(ge=0)]], ...] = Field(
        default=(), description="steps: [share, factor] pairs; each holds from its share on."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> ScheduleSection:
        if self.shape == "steps":
            shares = [share for share, _ in self.at]
            if not shares or shares[0] != 0 or shares != sorted(set(shares)):
                raise ValueError("at: must be [share, factor] pairs in rising order, from 0")
        elif self.at:
            raise ValueError(f"at: is for shape: steps, not {self.shape}")
        elif self.start >= self.end:
            raise ValueError("start must be below end")
        return self

    def ever_on(self, since: float = 0.0) -> bool:
        """Whether the factor is above 0 anywhere in the shares from `since` up to the last step,
        which begins before share 1."""
        if self.shape != "steps":
            return self.after > 0 or (self.before > 0 and since < self.end)
        until = [*(share for share, _ in self.at[1:]), 1.0]
        return any(
            value > 0 and share < 1 and since < end
            for (share, value), end in zip(self.at, until, strict=True)
        )


class TermSection(Section):
    """What all terms have."""

    weight: float = Field(default=1.0, gt=0, description="Of the term in the sum.")
    schedule: ScheduleSection | None = Field(
        default=None, description="A factor of the weight over training; null: 1 throughout."
    )


class ResponseTerm(TermSection):
    """The response loss (`train.alpha`, `train.distillation_temperature`); it is always there,
    and listed where it has a weight or schedule of its own."""

    kind: Literal["response"]


class LayeredTerm(TermSection):
    """Compares layers of the student with layers of the teacher."""

    layers: LayerRule | tuple[tuple[int, int], ...] = Field(
        default="skip",
        description="skip: each student layer with one of the teacher's, evenly spaced; first, "
        "last: that many; or [student, teacher] pairs, from 0.",
    )
    count: int | None = Field(
        default=None, ge=1, description="Pairs of first or last; null: all the student's layers."
    )

    @model_validator(mode="after")
    def _pairs_make_sense(self) -> LayeredTerm:
        if not isinstance(self.layers, str):
            if not self.layers or len(set(self.layers)) < len(self.layers):
                raise ValueError("layers: must be distinct [student, teacher] pairs")
            if any(number < 0 for pair in self.layers for number in pair):
                raise ValueError("layers: layers count from 0")
        if self.count is not None and self.layers not in ("first", "last"):
            raise ValueError("count: is for layers: first or last")
        return self


class HiddenTerm(LayeredTerm):
    """Hidden states of every token, after a learned linear map where widths differ."""

    kind: Literal["hidden"]
    loss: Literal["mse", "cosine"] = "mse"
    embeddings: bool = Field(default=False, description="Also what enters the first layer.")
    projector: Literal["auto", "linear"] = Field(
        default="auto", description="auto: a linear map where widths differ; linear: always."
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Rate of the linear maps, which start at random."
    )


class AttentionTerm(LayeredTerm):
    """Attention maps of every token and head."""

    kind: Literal["attention"]
    loss: Literal["kl", "mse"] = "kl"
    heads: Literal["each", "mean"] = Field(
        default="each", description="each: head by head, equally many; mean: their mean map."
    )


class ActivationTerm(LayeredTerm):
    """Where in a text the hidden states are large (Zagoruyko & Komodakis 2017)."""

    kind: Literal["activation"]


class RelationTerm(LayeredTerm):
    """How queries, keys or values relate to each other (MiniLM, Wang et al. 2020, 2021)."""

    kind: Literal["relation"]
    layers: LayerRule | tuple[tuple[int, int], ...] = Field(
        default="last", description="As for other terms; last with count 1 is MiniLM's own."
    )
    of: tuple[Literal["queries", "keys", "values"], ...] = Field(
        default=("values",), min_length=1, description="queries, keys, values: which relations."
    )
    relation_heads: int | None = Field(
        default=None, ge=1, description="Relation heads; null: as many as the teacher's heads."
    )

    @model_validator(mode="before")
    @classmethod
    def _last_is_one(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("layers", "last") == "last":
            return {"count": 1, **raw}
        return raw


class SampleTerm(TermSection):
    """Compares texts with texts, by one vector each: what is not comparable token by token."""

    layers: tuple[int, int] | None = Field(
        default=None, description="[student, teacher] layer, from 0; null: the last of both."
    )
    pool: Literal["mean", "first", "last"] = Field(
        default="mean", description="A text's vector: the mean, the first or the last token's."
    )


class GeometryTerm(SampleTerm):
    """Distances or angles between texts (RKD, Park et al. 2019), or their similarities
    (Tung & Mori 2019)."""

    kind: Literal["rkd_distance", "rkd_angle", "similarity"]


class ContrastiveTerm(SampleTerm):
    """Which student vector belongs to which teacher vector (CRD, Tian et al. 2020)."""

    kind: Literal["contrastive"]
    width: int = Field(default=128, ge=1, description="Of the space both are mapped into.")
    temperature: float = Field(default=0.07, gt=0, description="tau of the critic.")
    negatives: Literal["others", "other_labels"] = Field(
        default="others", description="Other texts of the batch, or those of another label."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Rate of the linear maps.")


Terms = Annotated[
    ResponseTerm
    | HiddenTerm
    | AttentionTerm
    | ActivationTerm
    | RelationTerm
    | GeometryTerm
    | ContrastiveTerm,
    Field(discriminator="kind"),
]


class BalanceSection(Section):
    """How `train.balance` works, and over what gradient norms are taken."""

    learning_rate: float = Field(default=0.025, gt=0, description="Rate of the learned weights.")
    alpha: float = Field(
        default=1.5, ge=0, description="gradient_norm: how much slower terms are favoured."
    )
    norms_over: Literal["last_shared", "all"] = Field(
        default="last_shared",
        description="Gradient norms are those of the last layer that all terms reach, or of all "
        "the student's weights.",
    )


class ProgressiveSection(Section):
    """Layers learn one after another, from the lowest (MobileBERT, Sun et al. 2020)."""

    until: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="The share of the steps that the stages take, equally long; all learn after.",
    )
