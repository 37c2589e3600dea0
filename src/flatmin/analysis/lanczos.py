"""Lanczos with full reorthogonalisation, from as many starts as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import (
    LinearOperator,
    aslinearoperator,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor

from flatmin.analysis.curvature import Curvature, ProgressLine
from flatmin.analysis.second import say_once
from flatmin.analysis.vectors import dot
from flatmin.engine import check

Array: TypeAlias = "NDArray[Any]"

ASYMMETRY = 1e-5
"""More than this, |qᵀHq' - β| / β says that products are not those of one symmetric matrix."""


class Products:
    """Products with any symmetric operator, as tensors in the type of the basis.

    Args:
        operator: one of ours, a scipy `LinearOperator`, a matrix of numpy, scipy or torch.
    """

    def __init__(self, operator: Any) -> None:
        self._operator = operator
        self.device = torch.device("cpu")
        self.dtype = torch.float64
        """The type of the basis: no wider than that of the products."""
        self.progress = ProgressLine(False)
        if isinstance(operator, Curvature):
            self.device = operator.objective.device
            self.progress = operator.progress
            if operator.objective.dtype != torch.float64:
                self.dtype = torch.float32
        elif isinstance(operator, Tensor):
            self._operator = aslinearoperator(operator.detach().double().cpu().numpy())
        elif isinstance(operator, (LinearOperator, np.ndarray)) or sparse.issparse(operator):
            self._operator = aslinearoperator(operator)
            if np.dtype(self._operator.dtype) == np.float32:
                self.dtype = torch.float32
        else:
            raise TypeError(
                "an operator is one of flatmin.analysis, a scipy LinearOperator or a matrix, got "
                + check.describe(operator)
            )
        shape = tuple(cast("Sequence[int]", self._operator.shape))
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"eigenvalues need a square matrix, got the shape {shape}")
        self.size = shape[0]
        self.count = 0

    @property
    def eps(self) -> float:
        """What rounding leaves of a number."""
        return torch.finfo(self.dtype).eps

    def __call__(self, v: Tensor) -> Tensor:
        if isinstance(self._operator, Curvature):
            multiplied = self._operator.times(v).to(self.dtype)
            self.count += 1
            return multiplied
        matrix: Any = self._operator
        product = np.array(matrix.matvec(v.numpy()))
        self.count += 1
        return torch.from_numpy(product.reshape(-1)).to(self.dtype)


class Basis:
    """An orthonormal basis `Q` made of Krylov sequences, and `T = Qᵀ H Q`.

    One sequence from one start sees one copy of an eigenvalue, however often it stands. A further
    start, orthogonal to all that came before, sees the next.

    Attributes:
        matrix: the projected matrix, in double precision.
        starts: where in the basis each sequence begins.
        scale: about the largest magnitude of an eigenvalue seen, and no less.
        asymmetry: the largest |qᵀHq' - β| / β seen, beyond what rounding does.
    """

    def __init__(self, products: Products, most: int, seed: int) -> None:
        self.products = products
        self.most = min(most, products.size)
        self.matrix: Array = np.zeros((0, 0))
        self.starts: list[int] = []
        self.asymmetry = 0.0
        self.scale = 0.0
        # on a CPU, pages of it that are never written take no memory
        self._rows = torch.empty(
            self.most, products.size, dtype=products.dtype, device=products.device
        )
        self._random = torch.Generator().manual_seed(seed)
        self._ends: dict[int, Tensor] = {}
        self._ritz: tuple[Any, Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def full(self) -> bool:
        """Does it span the whole space?"""
        return len(self) == self.products.size

    @property
    def exhausted(self) -> bool:
        """Have as many products been taken as it has room for?"""
        return len(self) == self.most

    @property
    def ends(self) -> list[int]:
        """The vectors at which a sequence can go on."""
        return list(self._ends)

    # Grow.

    def start(self) -> None:
        """One product, with a random vector orthogonal to all so far."""
        q = torch.randn(self.products.size, generator=self._random, dtype=self.products.dtype)
        q = q.to(self.products.device)
        for _ in range(2):
            self._remove(q)
        torch.div(q, _norm(q), out=self._rows[len(self)])
        del q  # memory is spent on graphs
        self._grow(None)
        self.starts.append(len(self) - 1)

    def extend(self, end: int) -> None:
        """One product more in the sequence that ends in vector `end`."""
        m = len(self)
        r = self._ends[end]
        self._remove(r)
        beta = _norm(r)
        torch.div(r, beta, out=self._rows[m])
        del r, self._ends[end]  # memory is spent on graphs
        try:
            there = self._grow(end)
        except BaseException:
            self._ends[end] = self._rows[m] * beta
            raise
        self._compare(there, beta)

    def _grow(self, end: int | None) -> float:
        """Multiply the next row, which goes on from `end`. Interrupted, all is as before.

        Returns `q_endᵀ H q`, for comparison: summed in double precision, unlike the others.
        """
        m = len(self)
        w = self.products(self._rows[m])
        there = 0.0 if end is None else dot(self._rows[end], w)
        T = np.zeros((m + 1, m + 1))
        T[:m, :m] = self.matrix
        coefficients = self._remove(w, m + 1)
        coefficients += self._remove(w, m + 1)
        T[:, m] = T[m, :] = coefficients.cpu().numpy()
        self.matrix = T
        self.scale = float(np.abs(T).sum(0).max())
        for r in self._ends.values():  # what is in the basis now is beyond it no more
            r.addcmul_(self._rows[m], self._rows[m] @ r, value=-1.0)
        if _norm(w) > 10 * self.products.eps * self.scale:
            self._ends[m] = w
        self._ritz = None
        return there

    def _remove(self, w: Tensor, count: int | None = None) -> Tensor:
        """Take the basis' part out of `w`; returns the coefficients."""
        rows = self._rows[: len(self) if count is None else count]
        coefficients = rows @ w
        w.addmv_(rows.T, coefficients, alpha=-1.0)
        return coefficients.double()

    def _compare(self, there: float, back: float) -> None:
        """Is `qᵀHq'` what it was from the other side? Else the products are of no one matrix."""
        slack = 100 * self.products.eps * self.scale
        off = max(0.0, abs(there - back) - slack) / back
        self.asymmetry = max(self.asymmetry, off)

    # Look.

    def ritz(self) -> tuple[Any, Any, Any]:
        """Ritz values in descending order, their coefficients by column, and their residuals."""
        if self._ritz is None:
            eigh = cast(Any, np.linalg.eigh)
            ascending, vectors = cast(
                "tuple[Array, Array]", eigh((self.matrix + self.matrix.T) / 2)
            )
            S = cast(Array, vectors[:, ::-1].copy())
            self._ritz = ascending[::-1].copy(), S, np.sqrt(self.shares(S).sum(0))
        return self._ritz

    def shares(self, S: Array) -> Array:
        """Squared residuals by end: what of them going on there would mend, nearly."""
        ends = self.ends
        if not ends:
            return np.zeros((1, S.shape[1]))
        gram = self.gram(ends)
        parts = S[ends]
        return np.maximum(parts * (gram @ parts), 0.0)

    def gram(self, ends: Sequence[int]) -> Array:
        """Inner products of what sequences would go on with."""
        return np.array([[float(self._ends[a] @ self._ends[b]) for b in ends] for a in ends])

    def vectors(self, S: Array) -> Tensor:
        """Vectors with these coefficients, one a column."""
        rows = self._rows[: len(self)]
        return rows.T @ torch.from_numpy(np.ascontiguousarray(S)).to(rows)

    def sequence(self, number: int) -> tuple[Any, Any]:
        """The tridiagonal matrix of one sequence: its diagonal, and what stands beside it."""
        begin = self.starts[number]
        end = [*self.starts, len(self)][number + 1]
        block = cast(Any, self.matrix[begin:end, begin:end])
        return block.diagonal().copy(), np.abs(block.diagonal(1))

    def going_on(self, end: int) -> float:
        """Norm of what the sequence that ends in vector `end` would go on with."""
        return _norm(self._ends[end]) if end in self._ends else 0.0

    def say_asymmetry(self) -> None:
        """Warn where the products were not those of one symmetric matrix."""
        if self.asymmetry > ASYMMETRY:
            say_once(
                f"the products are not those of one symmetric matrix (off by "
                f"{self.asymmetry:.1e}): the loss draws random numbers or depends on what it saw "
                "before, or the operator is not symmetric; what follows from them is not to be "
                "trusted"
            )


def _norm(x: Tensor) -> float:
    return float(cast(Any, torch.linalg).vector_norm(x, dtype=torch.float64))


def could_hide(alpha: Array, beta: Array, end: float, value: float, room: int) -> bool:
    """Could a further eigenvalue `value` have escaped a sequence from a random start?

    A random start in `room` dimensions has a share of about `1/room` in each eigenvector, and less
    than 1.6e-4 of that with a probability of 1 %. With such a share of `value` added, would the
    sequence have shown it? What it does show must be something else: so far from `value` that its
    residual does not reach there.

    Args:
        alpha: diagonal of the sequence's tridiagonal matrix.
        beta: what stands beside it.
        end: norm of what the sequence would go on with.
        value: the eigenvalue in question.
        room: dimensions of the space that the start was drawn from.
    """
    steps = len(alpha)
    sign = 1.0 if value >= 0 else -1.0
    beside = beta[: steps - 1]
    nodes, S = np.linalg.eigh(sign * (np.diag(alpha) + np.diag(beside, 1) + np.diag(beside, -1)))
    seen, residual = float(nodes[-1]), end * abs(float(S[-1, -1]))
    share = 1.6e-4 / room
    weights = np.append(S[0] ** 2 * (1 - share), share)
    ritz, left = _of_measure(np.append(nodes, abs(value)), weights, steps)
    if end < left:  # there is less to go on with than such an eigenvalue alone would leave
        return False
    shown = float(ritz[-1])
    return seen + residual >= abs(value) or shown < seen + (abs(value) - seen) / 4


def _of_measure(nodes: Array, weights: Array, steps: int) -> tuple[Array, float]:
    """Lanczos on a diagonal matrix from a start of such weights: Ritz values, and what is left."""
    q = np.sqrt(weights)
    basis: list[Array] = []
    T = np.zeros((steps, steps))
    for j in range(steps):
        norm = float(np.linalg.norm(q))
        if norm < 1e-300:
            return np.linalg.eigvalsh(T[:j, :j]), 0.0
        basis.append(q / norm)
        w = nodes * basis[-1]
        for _ in range(2):
            for i, b in enumerate(basis):
                c = float(b @ w)
                T[i, j] += c
                w = w - c * b
        T[j, : j + 1] = T[: j + 1, j]
        q = w
    return np.linalg.eigvalsh(T), float(np.linalg.norm(q))


def ordered(values: Sequence[float] | Array, which: str) -> list[int]:
    """Positions of values, the wanted first: "LM" by magnitude, "LA" largest, "SA" smallest."""
    v = np.asarray(values)
    keys = {"LM": -np.abs(v), "LA": -v, "SA": v}
    return cast("list[int]", np.argsort(keys[which], kind="stable").tolist())
