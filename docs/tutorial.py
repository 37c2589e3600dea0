# %% [markdown]
# # Noisy digits
#
# Train a network on digits, most of which have a wrong label; compare four optimizers; look at
# what they have found; choose a radius. It takes a minute on one core. This page is a script,
# and was run when the site was built: what is printed below the code is what it printed. [As a
# notebook](tutorial.ipynb).
#
# ## The data
#
# 1,797 images of handwritten digits, 8 × 8 pixels. Six in ten training labels are replaced by a
# wrong one, which is the same for all who train on it.

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import analysis

EPOCHS = 40
torch.set_num_threads(1)
chance = torch.Generator().manual_seed(0)

data = load_digits()
images = torch.tensor(data.images / 16, dtype=torch.float32).flatten(1)
labels = torch.tensor(data.target)
order = torch.randperm(len(images), generator=chance)
train, test = order[:1437], order[1437:]
wrong = torch.rand(len(train), generator=chance) < 0.6
moved = (labels[train] + torch.randint(1, 10, train.shape, generator=chance)) % 10
given = torch.where(wrong, moved, labels[train])
print(f"{len(train)} images to train on, {wrong.float().mean():.0%} with a wrong label")


# %% [markdown]
# ## The loop
#
# A loop as ever, with a closure. The network starts from the same weights each time, and sees
# the same batches.


# %%
def trained(method, seed=0, **arguments):
    """A network, and its optimizer, after EPOCHS."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = flatmin.methods.find(method).build(base, total_steps=EPOCHS * 23, **arguments)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train)).split(64):

            def closure():
                loss = cross_entropy(model(images[train[rows]]), given[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
        schedule.step()
    return model, optimizer


@torch.no_grad()
def share(model, rows, targets):
    """The share of images that the network calls by the target."""
    return float((model(images[rows]).argmax(1) == targets).float().mean())


# %% [markdown]
# ## Four optimizers
#
# Beside the accuracy on test images, whose labels are right: how many of the **wrong** labels
# the network has learned by heart, and what it has cost. SAM and its kin have a radius of 0.2
# here, four times the usual one: many wrong labels bear it.

# %%
found = {}
for method in ("sgd", "sam", "friendly-sam", "agnostic-sam-previous"):
    model, optimizer = trained(method, **({} if method == "sgd" else {"rho": 0.2}))
    found[method] = model
    print(
        f"{method:22} {share(model, test, labels[test]):6.1%} right, "
        f"{share(model, train[wrong], given[wrong]):6.1%} of the wrong labels learned, "
        f"{optimizer.gradients_per_step():.0f} gradients a step"
    )

# %% [markdown]
# One seed and one radius: not yet a comparison. `flatmin compare` makes one, with the radius of
# each method tuned on held-out images by the same budget, several seeds in pairs, and
# intervals:
#
# ```console
# $ flatmin compare --data digits --noise 0.6 --tune rho --seeds 5 \
#     --methods sgd,sam,friendly-sam,agnostic-sam-previous
# ```
#
# ## What they have found
#
# Flat is a statement about curvature. `analysis` measures it for any model, loss and data: here
# the largest eigenvalue of the Hessian of the training loss, its trace, and by how much the
# loss rises at most within a distance of 0.2.

# %%
batches = [(images[train], given)]


def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


for method, model in found.items():
    H = analysis.Hessian(model, loss, batches)
    largest = analysis.eigenvalues(H, k=1).values[0]
    trace = analysis.trace(H, seed=0)
    rise = analysis.sharpness(model, loss, batches, 0.2, "projected").rise[0]
    print(f"{method:22} largest {float(largest):6.2f}   trace {trace.value:7.1f}   rise {rise:.4f}")

# %% [markdown]
# And the surface itself: the training loss along two random directions, normalised filter by
# filter, so that networks with larger weights are not called flatter for that. Here are its
# rows through the middle; in a notebook `surface.figure()` draws it.

# %%
print(f"{'from the weights':22}", *(f"{a:+7.2f}" for a in (-0.5, -0.25, 0, 0.25, 0.5)))
for method, model in found.items():
    surface = analysis.surface(model, loss, batches, at=(-0.5, -0.25, 0, 0.25, 0.5), seed=0)
    along = [float(row[2]) for row in surface.losses]
    print(f"{method:22}", *(f"{value:7.3f}" for value in along))

# %% [markdown]
# ![The training loss around two minima](pictures/minima.svg)
#
# That is the picture of the first page: the loss around what SGD and Agnostic-SAM have found,
# along two random directions, at one scale. [Why flat minima](why.md) says what follows from
# it, and what does not.
#
# ## The radius
#
# It matters more than the method. Too small, SAM is SGD at twice the price; too large, nothing
# is learned.

# %%
for rho in (0.01, 0.05, 0.2, 0.8):
    model, _ = trained("sam", rho=rho)
    print(f"rho = {rho:<5} {share(model, test, labels[test]):6.1%} right")

# %% [markdown]
# ## Where to go on
#
# [Choose a method](choosing.md) for your own problem; [a card of each method](methods/index.md)
# says where to start with its radius; [coming from another library](coming.md) moves the loop
# that you have.
