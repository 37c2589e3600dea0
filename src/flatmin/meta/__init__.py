"""Learning to learn: MAML and its sharpness-aware forms, for any module.

`learner.MetaLearner` is where to start reading: an inner loop on a vector of weights (`weights`),
in which the directions and geometries of `flatmin` look around through a `probe.FunctionalProbe`,
and a meta-gradient over tasks (`task`) that run one after another or together (`batching`).
`methods` names the choices that have a paper, `episodes` draws tasks from labelled images, `splits`
knows the classes of the literature and `network` its network. Nothing here needs more than torch.
"""

from flatmin.meta.episodes import EpisodeSampler
from flatmin.meta.learner import MetaLearner, Perturbation, Scores
from flatmin.meta.methods import ANIL, FOMAML, MAML, MetaSGD, SharpMAML
from flatmin.meta.network import conv4
from flatmin.meta.probe import FunctionalProbe
from flatmin.meta.task import Task

__all__ = [
    "ANIL",
    "FOMAML",
    "MAML",
    "EpisodeSampler",
    "FunctionalProbe",
    "MetaLearner",
    "MetaSGD",
    "Scores",
    "SharpMAML",
    "Perturbation",
    "Task",
    "conv4",
]
