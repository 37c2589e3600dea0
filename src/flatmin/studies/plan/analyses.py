"""What a recipe can have looked at beside a training, and what of it its table can show.

    analysis: {eigenvalues: 5, images: 1000}

A further look is an option here, its measures and its cost, and what does it in
`flatmin.studies.run.looks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from flatmin.studies.plan.schema import Strict, first_of
from flatmin.training.errors import InputError

DISTRIBUTION = "gradient-norms@"
"""Before a share of the epochs: the squared norms of batch gradients there, one by one."""

GRID = "surface@"
"""Before a number of points to a side: the losses of a surface, row after row."""

NOISE = ("gradient-variance", "batch-gradient", "full-gradient")
NORMS = ("gradient-norms", "normality", "normality-p", "skewness")
ALIGNMENT = (
    "cosine-before",
    "cosine-after",
    "cosine-difference",
    "cosine-change",
    "cosine-lowered",
    "cosine-so-far",
    "lowered-so-far",
)
COMPONENTS = ("cosine-batch-full", "cosine-batch-mean", "cosine-mean-full", "mean-error")

THEOREM = ("theorem-conditions", "theorem-conclusion", "theorem-broken")

SURFACE = ("surface-rise",)

AT_LOSS = ("eigenvalue-1", "surface-rise", "cosine-before", "cosine-lowered")
"""What is also given at one training loss, the same for every method, as `<name>-at-loss`."""

EACH_EPOCH = (*NOISE, *ALIGNMENT, *COMPONENTS, *THEOREM)
"""Measures with a number for each epoch, of which there are curves."""

SENTENCES: Mapping[str, str] = {
    "gradient-variance": "E‖∇L_B − ∇L‖² over a partition into batches",
    "batch-gradient": "E‖∇L_B‖² over a partition into batches",
    "full-gradient": "‖∇L‖² over the training images",
    "cosine-before": "median over the measured steps of the epoch, before the update",
    "cosine-after": "the same batches after the update",
    "cosine-difference": "after − before, the median",
    "cosine-change": "(after − before) / after, the median",
    "cosine-lowered": "% of measured updates that lower the cosine",
    "cosine-so-far": "median before the update over all steps measured so far",
    "lowered-so-far": "% of all updates measured so far that lower the cosine",
    "cosine-batch-full": "of batch and full gradient, the mean over measured steps",
    "cosine-batch-mean": "of batch gradient and running mean",
    "cosine-mean-full": "of running mean and full gradient",
    "mean-error": "‖m − ∇L‖ of the running mean",
    "theorem-conditions": "% of the steps measured so far whose step sizes are small enough",
    "theorem-conclusion": "% of the steps measured so far where the inequality holds",
    "theorem-broken": "% of those with small steps where it does not hold",
}
"""What the curves are, by measure."""


def _several(shares: Any) -> Any:
    """One share is a list of one."""
    return [shares] if isinstance(shares, int | float) else shares


class AnalysisOptions(Strict):
    """What is looked at beside a training.

    Fields:
        eigenvalues: how many of the Hessian's largest by magnitude, of the final model in
            evaluation mode; 0 for none.
        gradient_noise: "each epoch", the variance of batch gradients, the mean of their squared
            norms and the squared norm of the full gradient, over a partition of the training
            images; "never".
        gradient_norms: of how many batches the squared norms are kept one by one; 0 for none.
        at: when, as shares of the epochs.
        alignment: the cosine of primary and auxiliary gradient before and after every so many
            steps; 0 for none. Of an epoch it is the median.
        components: batch, running-mean and full gradient every so many steps; 0 for none.
        theorem: conditions and conclusion of Agnostic-SAM's Theorem 2 every so many steps, with
            the radius of the training as both of its radii; 0 for none. Of a method that looks at
            an auxiliary batch.
        at_loss: a loss on `images`, in evaluation mode, at which eigenvalue, rise of the surface
            and cosines are given besides: a network that has been trained further looks flatter
            for that alone. Between the two epochs around it they are interpolated, in the
            logarithm of the loss; a run that never gets there has none. None to leave it out.
        images: training images, drawn once and not augmented, that eigenvalues, noise, surfaces
            and full gradients are taken on, in whole batches; 0 for all.
        surface: points to a side of the loss surface around the final weights, odd; 0 for none.
            Its measure is the rise half way to the border, the mean over both directions and ways.
        extent: how far the surface goes in both directions, in filter-normalised units.
        mode: of the model for gradient noise and norms: "train", as a policy sees them, or "eval".
    """

    eigenvalues: int = Field(0, ge=0)
    gradient_noise: Literal["each epoch", "never"] = "never"
    gradient_norms: int = Field(0, ge=0)
    at: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        BeforeValidator(_several),
    ] = (1.0,)
    alignment: int = Field(0, ge=0)
    components: int = Field(0, ge=0)
    theorem: int = Field(0, ge=0)
    at_loss: float | None = Field(None, gt=0)
    images: int = Field(0, ge=0)
    surface: int = Field(0, ge=0)
    extent: float = Field(1.0, gt=0)
    mode: Literal["train", "eval"] = "train"

    @classmethod
    def of(cls, given: object) -> AnalysisOptions:
        """Those that a recipe has under `analysis:`. Raises InputError, in one line."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InputError(f"analysis: {first_of(error)}") from None

    @model_validator(mode="after")
    def _enough(self) -> AnalysisOptions:
        if 0 < self.gradient_norms < 3:
            raise InputError("gradient_norms: a distribution is told from 3 batches on")
        if self.surface and (self.surface < 3 or self.surface % 2 == 0):
            raise InputError(
                f"surface {self.surface}: an odd number from 3 on, so that the weights themselves "
                f"are one of the points"
            )
        return self

    @property
    def pairs(self) -> tuple[tuple[str, Any], ...]:
        """What is not as usual, as a training holds it."""
        return tuple(sorted(self.model_dump(exclude_defaults=True).items()))

    @property
    def measures(self) -> tuple[str, ...]:
        """What a table can show of it, behind `analysis:`."""
        found: list[str] = []
        if self.eigenvalues:
            numbers = range(1, self.eigenvalues + 1)
            found += [f"eigenvalue-{i}" for i in numbers]
            found += [f"ratio-{i}" for i in numbers if i > 1]
            found += ["eigenvalue-error"]
        found += SURFACE if self.surface else ()
        found += NOISE if self.gradient_noise != "never" else ()
        found += NORMS if self.gradient_norms else ()
        found += ALIGNMENT if self.alignment else ()
        found += COMPONENTS if self.components else ()
        found += THEOREM if self.theorem else ()
        if self.at_loss:
            found += [f"{name}-at-loss" for name in AT_LOSS if name in found]
        return tuple(found)

    def samples(self, epochs: int, images: int, batch: int, fraction: float) -> float:
        """Forward-and-backward passes over single images that it takes, roughly.

        Args:
            epochs: of the training.
            images: that it trains on.
            batch: of a step.
            fraction: of an auxiliary batch to a primary one.
        """
        some = min(self.images or images, images)
        steps = epochs * (images // batch)
        products = self.eigenvalues + 15 if self.eigenvalues else 0
        total = 3.3 * products * some
        total += self.surface**2 * some / 3  # a forward pass is a third of both
        total += epochs * some if self.gradient_noise != "never" else 0
        total += len(self.at) * self.gradient_norms * batch
        # SAM has to evaluate the auxiliary batch four times more, others twice
        total += steps / self.alignment * batch * (1 + 4 * fraction) if self.alignment else 0
        total += steps / self.components * some if self.components else 0
        total += steps / self.theorem * batch * 4.3 * (1 + fraction) if self.theorem else 0
        return total


def asked(analysis: Mapping[str, Any] | tuple[tuple[str, Any], ...]) -> AnalysisOptions:
    """The options that a training holds."""
    return AnalysisOptions.of(dict(analysis))
