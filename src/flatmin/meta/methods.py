"""The named ways of learning to learn: choices of `MetaLearner`'s options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import nn
from typing_extensions import Unpack

from flatmin.meta.batching import Batching
from flatmin.meta.learner import MetaLearner, Perturbation
from flatmin.meta.weights import Loss


class MetaOptions(TypedDict, total=False):
    """What every one takes beside its own.

    `MetaLearner` explains them in full; here is each one's first sentence, for editors.
    """

    adapted: Sequence[str] | None
    """Names of the parameters that inner steps move; default None: all that require a gradient."""

    learned_rates: bool
    """Whether `inner_lr` is a meta-parameter for each weight (Meta-SGD); default False."""

    batching: Batching
    """How the tasks of a meta-batch run: "auto", "loop", "vmap" or so many at once; default
    "auto"."""

    shared: bool
    """Whether the processes of torchrun average their meta-gradients; default False."""


def MAML(
    model: nn.Module,
    loss: Loss,
    inner_lr: float,
    steps: int,
    first_order: bool = False,
    **options: Unpack[MetaOptions],
) -> MetaLearner:
    """Weights from which a few gradient steps fit a new task.

        theta_(k+1) = theta_k - a ∇L(theta_k; support)
        theta <- theta - b ∇ mean L(theta_n; query)

    Args:
        model: any module that normalises by batch statistics, if at all.
        loss: of its outputs and the targets, a number.
        inner_lr: the step size `a`, above 0; 0.01 to 0.4 in the literature.
        steps: inner steps, at least 1; 1 or 5 in the literature.
        first_order: True takes inner gradients for constants, at about half the cost; default
            False.
        options: see `MetaLearner`.

    Cost: `steps + 1` gradients a task, the inner ones differentiated once more.

    Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400.

    Examples:
        >>> import torch, flatmin
        >>> from torch.nn.functional import mse_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))
        >>> learner = flatmin.meta.MAML(model, mse_loss, inner_lr=0.1, steps=1)
        >>> optimizer = learner.optimizer(torch.optim.Adam(learner.parameters(), lr=1e-3))
        >>> x = torch.linspace(-1, 1, 10).unsqueeze(-1)
        >>> tasks = [flatmin.meta.Task(x[::2], k * x[::2], x[1::2], k * x[1::2]) for k in (1, 2)]
        >>> loss = learner.step(optimizer, tasks)
        >>> fitted = learner.adapted(tasks[0].support_x, tasks[0].support_y)
        >>> fitted(x).shape
        torch.Size([10, 1])
    """
    return MetaLearner(model, loss, inner_lr, steps, first_order, **options)


def SharpMAML(
    model: nn.Module,
    loss: Loss,
    inner_lr: float,
    steps: int,
    first_order: bool = False,
    *,
    lower: Perturbation | None = None,
    upper: Perturbation | None = None,
    through_perturbation: bool = True,
    **options: Unpack[MetaOptions],
) -> MetaLearner:
    """MAML that looks around before it steps: in the inner loop, in the outer one, or in both.

        lower:  theta_(k+1) = theta_k - a ∇L(theta_k + eps(theta_k); support)
        upper:  theta <- theta - b ∇M(theta + eps(∇M(theta))),   M the meta-loss

    With `Perturbation.named("agnostic-sam", rho)` below, the support set is both batches, and an
    inner step takes three gradients, as the Agnostic-SAM paper says; Align-SAM likewise.

    Args:
        model: any module that normalises by batch statistics, if at all.
        loss: of its outputs and the targets, a number.
        inner_lr: the step size `a`, above 0; 0.01 to 0.4 in the literature.
        steps: inner steps, at least 1; 1 or 5 in the literature.
        first_order: True takes inner gradients for constants, at about half the cost; default
            False.
        lower: where inner steps look; 0.0005 is Sharp-MAML's radius on Mini-ImageNet. Default None:
            nowhere.
        upper: where meta-steps look: the optimizer that `learner.optimizer(base)` makes. Default
            None: nowhere.
        through_perturbation: whether gradients flow through `eps`, as in the released code;
            False takes it for a constant. Default True.
        options: see `MetaLearner`.

    Raises ValueError where there is neither `lower` nor `upper`.

    Cost: an inner step takes two gradients with SAM below and three with Agnostic-SAM; SAM above
    runs everything twice.

    Reference: Abbas et al., Sharp-MAML, ICML 2022, arXiv:2206.03996; Agnostic-SAM,
    arXiv:2406.07107, tables 6 and 7.

    Examples:
        >>> import torch, flatmin
        >>> from torch.nn.functional import mse_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))
        >>> lower = flatmin.meta.Perturbation.named("agnostic-sam", rho=0.05)
        >>> learner = flatmin.meta.SharpMAML(model, mse_loss, 0.1, 1, lower=lower)
        >>> x = torch.linspace(-1, 1, 10).unsqueeze(-1)
        >>> task = flatmin.meta.Task(x[::2], 3 * x[::2], x[1::2], 3 * x[1::2])
        >>> learner.evaluate([task]).losses.shape
        torch.Size([1])
    """
    if lower is None and upper is None:
        raise ValueError(
            "Sharp-MAML looks in the inner loop, in the outer loop or in both: give lower=, upper="
            " or both, as in lower=Perturbation(0.0005), or use MAML"
        )
    return MetaLearner(
        model,
        loss,
        inner_lr,
        steps,
        first_order,
        lower=lower,
        upper=upper,
        through_perturbation=through_perturbation,
        **options,
    )


def FOMAML(
    model: nn.Module, loss: Loss, inner_lr: float, steps: int, **options: Unpack[MetaOptions]
) -> MetaLearner:
    """MAML with the inner gradients taken for constants (Finn et al. 2017, §5.2).

        theta_(k+1) = theta_k - a ∇L(theta_k; support)
        theta <- theta - b mean ∇L(theta_n; query),   the gradient at theta_n

    Args:
        model: any module that normalises by batch statistics, if at all.
        loss: of its outputs and the targets, a number.
        inner_lr: the step size `a`, above 0; 0.01 to 0.4 in the literature.
        steps: inner steps, at least 1; 1 or 5 in the literature.
        options: see `MetaLearner`.

    Cost: `steps + 1` gradients a task, none of them differentiated again: about half of MAML's.

    Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400.

    Examples:
        >>> import torch, flatmin
        >>> from torch.nn.functional import mse_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))
        >>> learner = flatmin.meta.FOMAML(model, mse_loss, inner_lr=0.1, steps=5)
        >>> learner.first_order
        True
    """
    return MetaLearner(model, loss, inner_lr, steps, first_order=True, **options)


def ANIL(
    model: nn.Module,
    loss: Loss,
    inner_lr: float,
    steps: int,
    first_order: bool = False,
    **options: Unpack[MetaOptions],
) -> MetaLearner:
    """MAML whose inner steps move the last layer alone.

        head_(k+1) = head_k - a ∇_head L(theta_k; support),   the other layers as they are

    The last layer is the module that holds the last parameter; `adapted=` names another choice.

    Args:
        model: any module that normalises by batch statistics, if at all.
        loss: of its outputs and the targets, a number.
        inner_lr: the step size `a`, above 0; 0.01 to 0.4 in the literature.
        steps: inner steps, at least 1; 1 or 5 in the literature.
        first_order: True takes inner gradients for constants; default False.
        options: see `MetaLearner`.

    Cost: as MAML, with an inner loop whose gradients are those of the last layer alone.

    Reference: Raghu et al., Rapid Learning or Feature Reuse?, ICLR 2020, arXiv:1909.09157.

    Examples:
        >>> import torch, flatmin
        >>> from torch.nn.functional import mse_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))
        >>> learner = flatmin.meta.ANIL(model, mse_loss, inner_lr=0.1, steps=1)
        >>> x = torch.ones(4, 1)
        >>> fitted = learner.adapted(x, 2 * x)
        >>> bool((fitted[0].weight == model[0].weight).all())  # the first layer has not moved
        True
    """
    if "adapted" not in options:
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        head = names[-1].rpartition(".")[0] if names else ""
        options["adapted"] = [name for name in names if name.rpartition(".")[0] == head]
    return MetaLearner(model, loss, inner_lr, steps, first_order, **options)


def MetaSGD(
    model: nn.Module,
    loss: Loss,
    inner_lr: float,
    steps: int = 1,
    first_order: bool = False,
    **options: Unpack[MetaOptions],
) -> MetaLearner:
    """MAML that learns a step size for each weight.

        theta_(k+1) = theta_k - a ∇L(theta_k; support),   a of each weight its own, and learned

    They start at `inner_lr`, and are among `learner.parameters()`.

    Args:
        model: any module that normalises by batch statistics, if at all.
        loss: of its outputs and the targets, a number.
        inner_lr: where the step sizes start, above 0; 0.01 to 0.4 in the literature.
        steps: inner steps, at least 1; default 1, as in the paper.
        first_order: True takes inner gradients for constants; default False.
        options: see `MetaLearner`.

    Cost: as MAML, with twice as many meta-parameters.

    Reference: Li et al., Meta-SGD, 2017, arXiv:1707.09835.

    Examples:
        >>> import torch, flatmin
        >>> from torch.nn.functional import mse_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))
        >>> learner = flatmin.meta.MetaSGD(model, mse_loss, inner_lr=0.1)
        >>> learner.rates.numel() == sum(p.numel() for p in model.parameters())
        True
    """
    options["learned_rates"] = True
    return MetaLearner(model, loss, inner_lr, steps, first_order, **options)


__all__ = ["ANIL", "FOMAML", "MAML", "MetaOptions", "MetaSGD", "SharpMAML"]
