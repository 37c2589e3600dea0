"""One generator a method: it yields the weights after each step.

Every one takes `L` (with `L.grad(w, batch)`), a base optimizer, `rho` (a number, or one number a
coordinate where parameter groups differ), the first weights `w`, and pairs of batches `(B, A)`.
The bodies repeat each other on purpose: each is its paper's algorithm, and none depends on
another. METHODS.md has the equations.
"""

from __future__ import annotations

import math

import numpy as np

TINY = 1e-12


def norm(x):
    return math.sqrt(x @ x) + TINY


def dot_over_squared(x, y):
    """The coefficient of the projection of `y` on `x`: xᵀy / ‖x‖²."""
    return (x @ y) / norm(x) ** 2


def cos(x, y):
    return (x @ y) / (norm(x) * norm(y))


def climb(d, T=1.0):
    """Γ(d) = T² d / ‖T d‖."""
    return T**2 * d / norm(T * d)


def asam_metric(w, eta=0.01):
    return np.abs(w) + eta


def fisher_metric(g, eta=1.0):
    return 1 / np.sqrt(1 + eta * g**2)


class LargeGradients:
    """AE-SAM's policy; `yes(t, g)` is asked once a step."""

    def __init__(self, total, lambda1, lambda2, delta=0.9):
        self.total, self.lambda1, self.lambda2, self.delta = total, lambda1, lambda2, delta
        self.mu, self.var = 0.0, math.exp(-10)

    def yes(self, t, g):
        s = g @ g
        self.mu = self.delta * self.mu + (1 - self.delta) * s
        self.var = self.delta * self.var + (1 - self.delta) * (s - self.mu) ** 2
        c = t / self.total * self.lambda1 + (1 - t / self.total) * self.lambda2
        return s >= self.mu + c * math.sqrt(self.var)


# --- one direction, one metric, every step


def sam(L, base, rho, w, data):
    for B, _ in data:
        g = L.grad(w, B)
        g_s = L.grad(w + rho * climb(g), B)
        w = base.step(w, g_s)
        yield w


def asam(L, base, rho, w, data, eta=0.01):
    for B, _ in data:
        g = L.grad(w, B)
        g_s = L.grad(w + rho * climb(g, asam_metric(w, eta)), B)
        w = base.step(w, g_s)
        yield w


def fisher_sam(L, base, rho, w, data, eta=1.0):
    for B, _ in data:
        g = L.grad(w, B)
        g_s = L.grad(w + rho * climb(g, fisher_metric(g, eta)), B)
        w = base.step(w, g_s)
        yield w


def friendly_sam(L, base, rho, w, data, sigma=1.0, lmbda=0.9):
    m = np.zeros_like(w)
    for B, _ in data:
        g = L.grad(w, B)
        m = lmbda * m + (1 - lmbda) * g
        g_s = L.grad(w + rho * climb(g - sigma * m), B)
        w = base.step(w, g_s)
        yield w


def friendly_asam(L, base, rho, w, data, sigma=1.0, lmbda=0.9, eta=0.01):
    m = np.zeros_like(w)
    for B, _ in data:
        g = L.grad(w, B)
        m = lmbda * m + (1 - lmbda) * g
        g_s = L.grad(w + rho * climb(g - sigma * m, asam_metric(w, eta)), B)
        w = base.step(w, g_s)
        yield w


def friendly_sam_released(L, base, rho, w, data, sigma=1.0, lmbda=0.9):
    """As in the authors' code: the first step is SAM's, and later ones subtract the mean before it
    is updated."""
    m = None
    for B, _ in data:
        g = L.grad(w, B)
        if m is None:
            d, m = g, g
        else:
            d = g - sigma * m
            m = lmbda * m + (1 - lmbda) * g
        g_s = L.grad(w + rho * climb(d), B)
        w = base.step(w, g_s)
        yield w


def agnostic_sam(L, base, rho, w, data, rho1=None, rho2=None, beta=0.9):
    rho1 = 2 * rho if rho1 is None else rho1
    rho2 = rho if rho2 is None else rho2
    v = np.zeros_like(w)
    for B, A in data:
        g = L.grad(w, B)
        eps_v = rho2 * climb(L.grad(w, A))
        v = beta * v + (1 - beta) * L.grad(w + eps_v, A)
        eps = rho1 * climb(g) - rho2 * climb(v)
        w = base.step(w, L.grad(w + eps, B))
        yield w


def agnostic_asam(L, base, rho, w, data, beta=0.9, eta=0.01):
    v = np.zeros_like(w)
    for B, A in data:
        T = asam_metric(w, eta)
        g = L.grad(w, B)
        eps_v = rho * climb(L.grad(w, A), T)
        v = beta * v + (1 - beta) * L.grad(w + eps_v, A)
        eps = 2 * rho * climb(g, T) - rho * climb(v, T)
        w = base.step(w, L.grad(w + eps, B))
        yield w


def agnostic_sam_previous(L, base, rho, w, data, beta=0.9):
    v = np.zeros_like(w)
    for B, _ in data:
        g = L.grad(w, B)
        eps = 2 * rho * climb(g) - rho * climb(v)
        g_s = L.grad(w + eps, B)
        v = beta * v + (1 - beta) * g_s
        w = base.step(w, g_s)
        yield w


def align_sam(L, base, rho, w, data, lmbda=2.0):
    for B, A in data:
        g_a = L.grad(w, A)
        g_a = L.grad(w + rho * climb(g_a), A)
        g_t = L.grad(w, B)
        eps = rho * (lmbda * climb(g_t) - climb(g_a))
        w = base.step(w, L.grad(w + eps, B))
        yield w


def align_asam(L, base, rho, w, data, lmbda=2.0, eta=0.01):
    for B, A in data:
        T = asam_metric(w, eta)
        g_a = L.grad(w, A)
        g_a = L.grad(w + rho * climb(g_a, T), A)
        g_t = L.grad(w, B)
        eps = rho * (lmbda * climb(g_t, T) - climb(g_a, T))
        w = base.step(w, L.grad(w + eps, B))
        yield w


def vasso(L, base, rho, w, data, theta=0.9):
    d = None
    for B, _ in data:
        g = L.grad(w, B)
        d = g if d is None else (1 - theta) * d + theta * g
        g_s = L.grad(w + rho * climb(d), B)
        w = base.step(w, g_s)
        yield w


def other_batch(L, base, rho, w, data):
    for B, A in data:
        L.grad(w, B)  # the step returns the loss here, and the policy judges this gradient
        eps = rho * climb(L.grad(w, A))
        w = base.step(w, L.grad(w + eps, B))
        yield w


def full_component(L, base, rho, w, data):
    for B, A in data:
        g, G = L.grad(w, B), L.grad(w, A)
        eps = rho * climb(cos(G, g) * G)
        w = base.step(w, L.grad(w + eps, B))
        yield w


def noise_component(L, base, rho, w, data):
    for B, A in data:
        g, G = L.grad(w, B), L.grad(w, A)
        eps = rho * climb(g - cos(G, g) * G)
        w = base.step(w, L.grad(w + eps, B))
        yield w


def noise_component_orthogonal(L, base, rho, w, data):
    for B, A in data:
        g, G = L.grad(w, B), L.grad(w, A)
        eps = rho * climb(g - dot_over_squared(G, g) * G)
        w = base.step(w, L.grad(w + eps, B))
        yield w


# --- some steps only


def now_and_then(t, total):
    """Not at first, and then at every third step."""
    return t >= 0.2 * total and t % 3 == 0


def friendly_on_skipped(L, base, rho, w, data, lmbda=0.9):
    m = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        m = lmbda * m + (1 - lmbda) * g
        if now_and_then(t, len(data)):
            g = L.grad(w + rho * climb(g - m), B)
        w = base.step(w, g)
        yield w


def vasso_on_skipped(L, base, rho, w, data, theta=0.9):
    d = None
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        d = g if d is None else (1 - theta) * d + theta * g
        if now_and_then(t, len(data)):
            g = L.grad(w + rho * climb(d), B)
        w = base.step(w, g)
        yield w


def agnostic_previous_on_skipped(L, base, rho, w, data, beta=0.9):
    v = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if now_and_then(t, len(data)):
            g = L.grad(w + 2 * rho * climb(g) - rho * climb(v), B)
        v = beta * v + (1 - beta) * g
        w = base.step(w, g)
        yield w


def ss_sam(L, base, rho, w, data, uniform, p=0.5, seed=0):
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if uniform(seed, t) < p:
            g = L.grad(w + rho * climb(g), B)
        w = base.step(w, g)
        yield w


def ae_sam(L, base, rho, w, data, lambda1=-1.0, lambda2=1.0, delta=0.9):
    policy = LargeGradients(len(data), lambda1, lambda2, delta)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if policy.yes(t, g):
            g = L.grad(w + rho * climb(g), B)
        w = base.step(w, g)
        yield w


def ae_friendly_sam(L, base, rho, w, data, sigma=1.0, lmbda=0.9):
    policy = LargeGradients(len(data), -1.0, 1.0)
    m = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if policy.yes(t, g):
            m = lmbda * m + (1 - lmbda) * g
            g = L.grad(w + rho * climb(g - sigma * m), B)
        w = base.step(w, g)
        yield w


def ae_agnostic_sam(L, base, rho, w, data, beta=0.9):
    policy = LargeGradients(len(data), -1.0, 1.0)
    v = np.zeros_like(w)
    for t, (B, A) in enumerate(data):
        g = L.grad(w, B)
        if policy.yes(t, g):
            eps_v = rho * climb(L.grad(w, A))
            v = beta * v + (1 - beta) * L.grad(w + eps_v, A)
            g = L.grad(w + 2 * rho * climb(g) - rho * climb(v), B)
        w = base.step(w, g)
        yield w


def ae_agnostic_sam_previous(L, base, rho, w, data, beta=0.9):
    policy = LargeGradients(len(data), -1.0, 1.0)
    v = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if policy.yes(t, g):
            g = L.grad(w + 2 * rho * climb(g) - rho * climb(v), B)
            v = beta * v + (1 - beta) * g
        w = base.step(w, g)
        yield w


# --- what is kept of g_s


def look_sam(L, base, rho, w, data, k=5, alpha=0.7):
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if t % k == 0:
            g_s = L.grad(w + rho * climb(g), B)
            h = g_s - dot_over_squared(g, g_s) * g
            w = base.step(w, g_s)
        else:
            w = base.step(w, g + alpha * np.linalg.norm(g) / norm(h) * h)
        yield w


def look_agnostic_sam(L, base, rho, w, data, k=5, alpha=0.7, beta=0.9):
    v = np.zeros_like(w)
    for t, (B, A) in enumerate(data):
        g = L.grad(w, B)
        if t % k == 0:
            eps_v = rho * climb(L.grad(w, A))
            v = beta * v + (1 - beta) * L.grad(w + eps_v, A)
            g_s = L.grad(w + 2 * rho * climb(g) - rho * climb(v), B)
            h = g_s - dot_over_squared(g, g_s) * g
            w = base.step(w, g_s)
        else:
            w = base.step(w, g + alpha * np.linalg.norm(g) / norm(h) * h)
        yield w


def look_friendly_sam(L, base, rho, w, data, k=5, alpha=0.7, sigma=1.0, lmbda=0.9):
    m = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if t % k == 0:
            m = lmbda * m + (1 - lmbda) * g
            g_s = L.grad(w + rho * climb(g - sigma * m), B)
            h = g_s - dot_over_squared(g, g_s) * g
            w = base.step(w, g_s)
        else:
            w = base.step(w, g + alpha * np.linalg.norm(g) / norm(h) * h)
        yield w


def ae_look_sam(L, base, rho, w, data, alpha=0.7, lambda1=0.0, lambda2=2.0, delta=0.9):
    policy = LargeGradients(len(data), lambda1, lambda2, delta)
    h = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if policy.yes(t, g):
            g_s = L.grad(w + rho * climb(g), B)
            h = g_s - dot_over_squared(g, g_s) * g
            w = base.step(w, g_s)
        else:
            w = base.step(w, g + alpha * np.linalg.norm(g) / norm(h) * h)
        yield w


def gsam(L, base, rho, w, data, alpha=0.1):
    for B, _ in data:
        g = L.grad(w, B)
        g_s = L.grad(w + rho * climb(g), B)
        w = base.step(w, g_s - alpha * (g - dot_over_squared(g_s, g) * g_s))
        yield w


# --- methods with a step of their own


def esam(L, base, rho, w, data, uniform, beta=0.6, gamma=0.5, seed=0):
    """`L.sizes` are the lengths of the parameter tensors that `w` is made of."""
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        kept = [uniform(seed, t, i) < beta for i in range(len(L.sizes))]
        T = np.repeat(np.array(kept, dtype=float), L.sizes)
        eps = rho * climb(g, T) / beta
        rise = L.losses(w + eps, B) - L.losses(w, B)
        most = np.argsort(-rise)[: max(1, int(gamma * len(rise)))]
        w = base.step(w, L.grad(w + eps, type(B)(*(part[most] for part in B))))
        yield w


def lookbehind_sam(L, base, rho, w, data, k=5, alpha=0.5, metric=lambda w: 1.0):
    """The perturbed point climbs on from where it was; the fast weights descend what it meets. Each
    gradient at the perturbed point serves both, where the authors' code computes it twice."""
    for B, _ in data:
        T = metric(w)
        fast = perturbed = w
        g = L.grad(w, B)
        for _ in range(k):
            perturbed = perturbed + rho * climb(g, T)
            g = L.grad(perturbed, B)
            fast = base.step(fast, g)
        w = w + alpha * (fast - w)
        yield w


# --- one gradient a step, and other mixtures


def msam(L, base, rho, w, data, sign=-1):
    """`base.kept` is the base's momentum; where it is None, a running mean of gradients."""
    mean = np.zeros_like(w)
    for B, _ in data:
        m = mean if base.kept is None else base.kept + np.zeros_like(w)
        g_s = L.grad(w + sign * rho * climb(m), B)
        mean = 0.9 * mean + 0.1 * g_s
        w = base.step(w, g_s)
        yield w


def each_filter(L, squares):
    """Sums over the rows of matrices and over whole vectors, at each weight."""
    parts = [
        x.sum(axis=1, keepdims=True) + 0 * x if x.ndim > 1 else x.sum() + 0 * x
        for x in L.split(squares)
    ]
    return np.concatenate([x.ravel() for x in parts])


def random_perturbation(L, w, f, normal, seed, t, rho, eta):
    z = normal(seed, t, L.shapes)
    return rho * np.sqrt(each_filter(L, w**2)) * z / np.sqrt(1 + eta * f)


def rwp(L, base, rho, w, data, normal, eta=0.0, beta=0.99, seed=0):
    f = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g_s = L.grad(w + random_perturbation(L, w, f, normal, seed, t, rho, eta), B)
        f = beta * f + each_filter(L, g_s**2)
        w = base.step(w, g_s)
        yield w


def mixed_rwp(L, base, rho, w, data, normal, share=0.5, eta=0.0, beta=0.99, seed=0):
    f = np.zeros_like(w)
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        g_s = L.grad(w + random_perturbation(L, w, f, normal, seed, t, rho, eta), B)
        f = beta * f + each_filter(L, g_s**2)
        w = base.step(w, (1 - share) * g + share * g_s)
        yield w


def wsam(L, base, rho, w, data, gamma=0.9):
    for B, _ in data:
        g = L.grad(w, B)
        g_s = L.grad(w + rho * climb(g), B)
        w = base.step(w, g + gamma / (1 - gamma) * (g_s - g))
        yield w


def late_sam(L, base, rho, w, data, start=0.875):
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if t >= start * len(data):
            g = L.grad(w + rho * climb(g), B)
        w = base.step(w, g)
        yield w


def late_agnostic_sam(L, base, rho, w, data, start=0.875, beta=0.9):
    v = np.zeros_like(w)
    for t, (B, A) in enumerate(data):
        g = L.grad(w, B)
        if t >= start * len(data):
            eps_v = rho * climb(L.grad(w, A))
            v = beta * v + (1 - beta) * L.grad(w + eps_v, A)
            g = L.grad(w + 2 * rho * climb(g) - rho * climb(v), B)
        w = base.step(w, g)
        yield w


def early_sam_every_third(L, base, rho, w, data, end=0.5):
    for t, (B, _) in enumerate(data):
        g = L.grad(w, B)
        if t < end * len(data) and t % 3 == 0:
            g = L.grad(w + rho * climb(g), B)
        w = base.step(w, g)
        yield w


def previous_sam(L, base, rho, w, data):
    g_s = np.zeros_like(w)
    for B, _ in data:
        g_s = L.grad(w + rho * climb(g_s), B)
        w = base.step(w, g_s)
        yield w


def previous_agnostic_sam(L, base, rho, w, data, rho1=None, rho2=None, beta=0.9):
    """Before the second step there is nothing to step down; before the first, nothing at all."""
    rho1 = 2 * rho if rho1 is None else rho1
    rho2 = rho if rho2 is None else rho2
    h, v = np.zeros_like(w), np.zeros_like(w)
    for B, _ in data:
        g_s = L.grad(w + rho1 * climb(h) - rho2 * climb(v), B)
        v = beta * v + (1 - beta) * h
        h = g_s
        w = base.step(w, g_s)
        yield w
