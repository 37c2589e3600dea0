"""Along the full gradient or across it: what the directions of F-SAM and its kin are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from flatmin.analysis.objective import Loss, Objective
from flatmin.analysis.parameters import Parameters, Subset
from flatmin.analysis.untouched import Mode
from flatmin.analysis.vectors import cosine, dot, norm
from flatmin.engine import check
from flatmin.optimizer import Closure, SharpnessAware


@dataclass(frozen=True)
class Components:
    """What `components` has found: with g of the batch, G of all data, m a running mean.

    Fields:
        batch: `‖g‖`.
        full: `‖G‖`.
        mean: `‖m‖`; nan where no mean was given, as all that has to do with it.
        batch_full: `cos(g, G)`.
        batch_mean: `cos(g, m)`.
        mean_full: `cos(m, G)`.
        error: `Φ = ‖m - G‖`, how far the running mean is from what it stands for.
        along: by direction, the cosine of it and G: how much of the climb is up the full loss.
        across: by direction, the cosine of it and g: how much of SAM's own direction it is.

    The directions are "SAM" (g), "SAM-full" (cos(G, g) G), "SAM-noise" as printed
    (g - cos(G, g) G) and "SAM-noise, orthogonal" (g - gᵀG/‖G‖² G); with a mean "F-SAM" (g - σ m),
    with another batch "SAM-db" (its gradient), and the larger batches by their names.
    """

    batch: float
    full: float
    mean: float
    batch_full: float
    batch_mean: float
    mean_full: float
    error: float
    along: Mapping[str, float]
    across: Mapping[str, float]

    def __str__(self) -> str:
        rows = [f"‖g‖ {self.batch:.4g}, ‖G‖ {self.full:.4g}, cos(g, G) {self.batch_full:.4f}"]
        if not math.isnan(self.error):
            rows.append(
                f"‖m‖ {self.mean:.4g}, ‖m - G‖ {self.error:.4g}, cos(m, G) {self.mean_full:.4f}, "
                f"cos(g, m) {self.batch_mean:.4f}"
            )
        rows += [
            f"{name}: {self.along[name]:+.4f} along G, {self.across[name]:+.4f} along g"
            for name in self.along
        ]
        return "\n".join(rows)


def components(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    data: Any,
    *,
    mean: Tensor | None = None,
    sigma: float = 1.0,
    other: Any = None,
    larger: Mapping[str, Any] | None = None,
    parameters: Subset = None,
    mode: Mode | None = None,
    dtype: torch.dtype | None = None,
    chunk: int | None = 128,
) -> Components:
    """How the directions that perturb lie to the gradient of all data, at the weights as they are.

    F-SAM's analysis holds that the part of a batch gradient along the full one does no good, and
    that what is across it does. Here is how much of each there is.

    Args:
        model: any module; left as it is.
        loss: `loss(model, batch)`, the mean over the batch, without backward.
        batch: the primary batch, of gradient g.
        data: all of the training data, or a large sample of it, of gradient G.
        mean: m, a running mean of batch gradients as a flat vector, as `ComponentMonitor` keeps it;
            default None.
        sigma: F-SAM's σ; default 1.
        other: another batch, as SAM-db climbs; default None.
        larger: by name, larger batches, which contain the primary one in F-SAM's Figure 2c
            (`{"4 x": ...}`); default None. Batches that contain it are nearer to it than others.
        parameters: which; default None: all that require gradients.
        mode: "eval" or "train"; default None: each module in the mode that it is in.
        dtype: the type to compute in; default None: the model's.
        chunk: most samples evaluated at once; default 128.

    Cost: a gradient on each batch and on all data; a vector for each.

    Raises:
        ValueError: the mean is of another length; and what `Objective` raises.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4 and
    Theorem 1.

    Examples:
        >>> import torch
        >>> from flatmin import analysis
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> def loss(model, x):
        ...     return (x @ model.weight[0]).mean()  # its gradient is the mean of x
        >>> data = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> found = analysis.components(model, loss, data[:1], data)
        >>> round(found.batch_full, 4), round(found.along["SAM-noise, orthogonal"], 4)
        (0.7071, 0.0)
    """

    def gradient(of: Any) -> Tensor:
        return Objective(
            model, loss, of, parameters, mode=mode, dtype=dtype, chunk=chunk
        ).gradient()

    g, G = gradient(batch), gradient(data)
    if mean is not None and mean.shape != g.shape:
        raise ValueError(
            f"a running mean over these parameters has the shape {tuple(g.shape)}, got "
            f"{tuple(mean.shape)}"
        )
    m = None if mean is None else mean.to(g)
    further = {"SAM-db": gradient(other)} if other is not None else {}
    further |= {name: gradient(of) for name, of in (larger or {}).items()}
    return of_gradients(g, G, m, sigma, further)


def of_gradients(
    g: Tensor, G: Tensor, m: Tensor | None, sigma: float, further: Mapping[str, Tensor]
) -> Components:
    """The same from the gradients themselves."""
    c = cosine(g, G)
    directions = {
        "SAM": g,
        "SAM-full": c * G,
        "SAM-noise": g - c * G,
        "SAM-noise, orthogonal": g - dot(g, G) / (norm(G) ** 2 or math.nan) * G,
    }
    if m is not None:
        directions["F-SAM"] = g - sigma * m
    directions |= further
    nan = math.nan
    return Components(
        batch=norm(g),
        full=norm(G),
        mean=nan if m is None else norm(m),
        batch_full=c,
        batch_mean=nan if m is None else cosine(g, m),
        mean_full=nan if m is None else cosine(m, G),
        error=nan if m is None else norm(m - G),
        along={name: cosine(d, G) for name, d in directions.items()},
        across={name: cosine(d, g) for name, d in directions.items()},
    )


class ComponentMonitor:
    """Batch, running-mean and full gradient along training.

        m <- λ m + (1 - λ) ∇L_B(w)

    at every step, from the gradient that the step asks for anyway; and every so often all of
    `components` at the weights before the update.

    Args:
        model: the model that the closures evaluate.
        loss: `loss(model, batch)`, the mean over the batch, without backward.
        data: all of the training data, or a large sample of it.
        every: steps between two measured ones, at least 1; default 100. The first is measured.
        optimizer: whose steps; default None: every pass is taken to be at the unperturbed weights.
        lmbda: λ, the memory of the mean, in [0, 1); default 0.9, that of F-SAM.
        sigma: F-SAM's σ; default 1.
        mode: in which the full gradient is taken; default None: as the modules are.
        chunk: most samples evaluated at once; default 128.

    Attributes:
        steps: the measured ones, from 0.
        found: `Components` of each.
        mean: m, as a flat vector.

    Cost: a gradient on the data a measured step, and two vectors.

    Raises:
        ValueError: a number is out of range; and what `Objective` raises.

    Reference: Li et al., CVPR 2024, arXiv:2403.12350, eq. 10 and Theorem 1.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin import analysis
        >>> model, data = torch.nn.Linear(4, 1), torch.randn(32, 4)
        >>> def loss(model, x):
        ...     return model(x).square().mean()
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> monitor = analysis.ComponentMonitor(model, loss, data, every=2, optimizer=optimizer)
        >>> for batch in data.split(8):
        ...     def closure(batch=batch):
        ...         value = loss(model, batch)
        ...         value.backward()
        ...         return value
        ...     value = optimizer.step(monitor.wrap(closure))
        >>> monitor.steps
        [0, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        every: int = 100,
        *,
        optimizer: Optimizer | None = None,
        lmbda: float = 0.9,
        sigma: float = 1.0,
        mode: Mode | None = None,
        chunk: int | None = 128,
    ) -> None:
        check.positive_int("every", every)
        check.in_range("lmbda", lmbda, 0.0, 1.0, open_high=True)
        self._objective = Objective(model, loss, data, mode=mode, chunk=chunk)
        self._every, self._lmbda, self._sigma = every, lmbda, sigma
        self._optimizer = optimizer
        self._step = 0
        self.steps: list[int] = []
        self.found: list[Components] = []
        self.mean = torch.zeros(
            self.parameters.count, dtype=self.parameters.dtype, device=self.parameters.device
        )

    @property
    def parameters(self) -> Parameters:
        """Over which the vectors are."""
        return self._objective.parameters

    def wrap(self, closure: Closure) -> Closure:
        """The primary closure of one step, tapped: `optimizer.step(monitor.wrap(closure))`."""
        full = None
        if self._step % self._every == 0:
            full = self._objective.gradient()  # here, since within a step the weights move
        tapped = [False]

        def watched(*args: Any) -> Any:
            value = closure(*args)
            if not tapped[0] and self._at_home():
                tapped[0] = True
                self._see(full)
            return value

        self._step += 1
        return watched

    def state_dict(self) -> dict[str, Any]:
        """The running mean and what was measured, for a checkpoint between two steps."""
        found = [asdict(each) for each in self.found]
        return {"step": self._step, "mean": self.mean, "steps": self.steps, "found": found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state`, what `state_dict` gave, was taken."""
        self._step = int(state["step"])
        self.mean = state["mean"].to(self.mean)
        self.steps = list(state["steps"])
        self.found = [Components(**each) for each in state["found"]]

    def _at_home(self) -> bool:
        if not isinstance(self._optimizer, SharpnessAware):
            return True
        looking = self._optimizer.looking
        return looking is not None and not looking.perturbed

    def _see(self, full: Tensor | None) -> None:
        grads: Sequence[Tensor | None] = [p.grad for p in self.parameters.tensors]
        g = self.parameters.flatten([None if x is None else x.detach() for x in grads])
        self.mean.lerp_(g, 1.0 - self._lmbda)
        if full is not None:
            wide = g.double()
            self.steps.append(self._step - 1)
            self.found.append(of_gradients(wide, full, self.mean.double(), self._sigma, {}))


__all__ = ["ComponentMonitor", "Components", "components"]
