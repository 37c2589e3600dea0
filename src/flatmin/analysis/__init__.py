"""Looking at a model and a loss: curvature, sharpness, and what else says how flat a minimum is.

Everything here takes any model, any loss and any data, never a trainer, and leaves the model bit
for bit as it was. It needs numpy and scipy, and is imported when first asked for:

    from flatmin import analysis

    def loss(model, batch):                    # the mean over the batch, without backward
        x, y = batch
        return cross_entropy(model(x), y)

    H = analysis.Hessian(model, loss, loader, mode="eval")
    print(analysis.eigenvalues(H, k=5))        # with residuals
    print(analysis.spectrum(H).trace)          # with its standard error

Where to start reading: `objective` (the loss as a function of some parameters; on it stands all
else), with `untouched` (the model in a chosen mode, nothing left changed), `batches` and
`parameters`. Then `curvature` (products with the Hessian, by what `second` makes possible) and
`gauss_newton`; `lanczos` (a basis from as many starts as it takes), on which `eigen` and `spectrum`
stand; `sharpness`; and `surfaces`, over the lines and planes of `planes`, kept by `grids` and drawn
by `pictures`. `alignment` and `components` watch a training, `noise` looks at gradients of batches,
and `bounds` computes what the papers prove. A new matrix is a `Curvature` with `_graph` and
`_multiplied`; a new measurement is a function of an `Objective`.
"""

from flatmin.analysis import bounds
from flatmin.analysis.alignment import Alignment, AlignmentMonitor
from flatmin.analysis.alignment_theorem import AlignmentTheorem, alignment_theorem
from flatmin.analysis.components import ComponentMonitor, Components, components
from flatmin.analysis.curvature import Curvature, Hessian
from flatmin.analysis.eigen import Eigenvalues, eigenvalues
from flatmin.analysis.gauss_newton import EmpiricalFisher, GaussNewton
from flatmin.analysis.noise import (
    GradientNoise,
    Histogram,
    Normality,
    PolicyTrace,
    QuantilePlot,
    gradient_noise,
    policy_trace,
)
from flatmin.analysis.objective import Objective
from flatmin.analysis.parameters import Parameters
from flatmin.analysis.planes import (
    Plane,
    line_between,
    plane_of,
    plane_through,
    random_directions,
)
from flatmin.analysis.sharpness import Sharpness, sharpness
from flatmin.analysis.spectrum import Density, Estimate, Spectrum, density, spectrum, trace
from flatmin.analysis.surfaces import Surface, accuracy, surface
from flatmin.analysis.untouched import untouched

__all__ = [
    "Alignment",
    "AlignmentMonitor",
    "AlignmentTheorem",
    "ComponentMonitor",
    "Components",
    "Curvature",
    "Density",
    "Eigenvalues",
    "EmpiricalFisher",
    "Estimate",
    "GaussNewton",
    "GradientNoise",
    "Hessian",
    "Histogram",
    "Normality",
    "Objective",
    "Parameters",
    "Plane",
    "PolicyTrace",
    "QuantilePlot",
    "Sharpness",
    "Spectrum",
    "Surface",
    "accuracy",
    "alignment_theorem",
    "bounds",
    "components",
    "density",
    "eigenvalues",
    "gradient_noise",
    "line_between",
    "plane_of",
    "plane_through",
    "policy_trace",
    "random_directions",
    "sharpness",
    "spectrum",
    "surface",
    "trace",
    "untouched",
]
