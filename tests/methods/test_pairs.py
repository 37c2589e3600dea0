"""Batches in pairs: `paired` over any loader, `split` of any batch."""

from __future__ import annotations

import copy
import pickle
from collections import Counter, OrderedDict, UserDict
from collections.abc import Callable, Iterator
from functools import partial
from math import inf, nan
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import IMAGES, LABELS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import flatmin
from flatmin import pairs

SIZE, BATCH = 40, 8
DATA = TensorDataset(torch.arange(SIZE), torch.arange(SIZE) % 10)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Uneven(Sampler[list[int]]):
    """A batch sampler of one's own that knows its batch size."""

    batch_size = BATCH

    def __init__(self) -> None:
        self.sampler = SequentialSampler(DATA)

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0, 1, 2], [5, 4], [39])

    def __len__(self) -> int:
        return 3


def distributed(rank: int) -> DistributedSampler[Any]:
    return DistributedSampler(DATA, num_replicas=2, rank=rank, shuffle=True)


def weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler([float(i % 4 == 0) for i in range(SIZE)], SIZE)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": partial(DataLoader, DATA, batch_size=BATCH),
    "shuffled": partial(DataLoader, DATA, batch_size=BATCH, shuffle=True),
    "a short last batch": partial(DataLoader, DATA, batch_size=12, shuffle=True),
    "no short last batch": partial(DataLoader, DATA, batch_size=12, shuffle=True, drop_last=True),
    "some indices": lambda: DataLoader(DATA, BATCH, sampler=SubsetRandomSampler(range(9, 29))),
    "weighted": lambda: DataLoader(DATA, BATCH, sampler=weighted()),
    "one rank of two": lambda: DataLoader(DATA, BATCH, sampler=distributed(1)),
    "batches of a sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(SubsetRandomSampler(range(20)), BATCH, drop_last=False)
    ),
    "batches of one's own": lambda: DataLoader(DATA, batch_sampler=Uneven()),
    "two workers": partial(DataLoader, DATA, batch_size=BATCH, shuffle=True, num_workers=2),
    "two workers that stay": partial(
        DataLoader, DATA, BATCH, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "a generator of its own": lambda: DataLoader(
        DATA, BATCH, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
}
MAY_DRAW = {
    "some indices": set(range(9, 29)),
    "weighted": set(range(0, SIZE, 4)),
    "batches of a sampler": set(range(20)),
}

every_loader = pytest.mark.parametrize("name", LOADERS)


def indices(batches: Any) -> list[list[int]]:
    return [x.tolist() for x, _ in batches]


def both(pairs: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The indices in the primary and in the auxiliary batches of an epoch."""
    taken = list(pairs)
    return indices(primary for primary, _ in taken), indices(aux for _, aux in taken)


def auxiliary(pairs: Any) -> list[list[int]]:
    return both(pairs)[1]


# --- the primary batches


@every_loader
def test_primary_batches_are_those_of_the_loader_alone(name: str):
    torch.manual_seed(5)
    loader = LOADERS[name]()
    alone = [indices(loader) for _ in range(2)]
    then = torch.rand(3)

    torch.manual_seed(5)
    pairs = flatmin.paired(LOADERS[name]())
    assert [both(pairs)[0] for _ in range(2)] == alone
    assert torch.equal(torch.rand(3), then)


@every_loader
def test_it_is_as_long_as_the_loader_and_has_its_attributes(name: str):
    loader = LOADERS[name]()
    pairs = flatmin.paired(loader)
    assert len(pairs) == len(loader) == len(list(pairs))
    assert pairs.dataset is DATA
    assert pairs.batch_size == loader.batch_size
    assert pairs.sampler is loader.sampler
    with pytest.raises(AttributeError, match="shuffles"):
        pairs.shuffles  # noqa: B018 - the look-up itself must fail


def test_a_loader_without_batches_gives_no_pairs():
    loader = DataLoader(DATA, batch_size=SIZE + 1, drop_last=True)
    assert list(flatmin.paired(loader)) == []


# --- the auxiliary batches


@every_loader
def test_auxiliary_batches_are_drawn_from_where_the_loader_draws(name: str):
    drawn = {i for batch in auxiliary(flatmin.paired(LOADERS[name](), 1.0)) for i in batch}
    assert drawn <= MAY_DRAW.get(name, set(range(SIZE)))


@every_loader
def test_auxiliary_batches_depend_on_the_seed_and_on_nothing_else(name: str):
    seeds = iter([1, 2, 3])

    def drawn(seed: int) -> list[list[list[int]]]:
        torch.manual_seed(next(seeds))
        pairs = flatmin.paired(LOADERS[name](), 0.5, seed=seed)
        return [auxiliary(pairs) for _ in range(2)]

    first, again, other = drawn(7), drawn(7), drawn(8)
    assert first == again
    assert first != other
    assert first[0] != first[1], "each epoch has batches of its own"


@every_loader
def test_an_epoch_can_be_chosen_again(name: str):
    pairs = flatmin.paired(LOADERS[name]())
    epochs = [auxiliary(pairs) for _ in range(3)]
    pairs.set_epoch(1)
    assert [auxiliary(pairs) for _ in range(2)] == epochs[1:]


@pytest.mark.parametrize(
    "fraction, size", [(0.25, 2), (0.5, 4), (1.0, 8), (1e-9, 1), (0.3, 2), (0.9, 7)]
)
def test_auxiliary_batches_have_their_share_of_the_size(fraction: float, size: int):
    for _, (x, y) in flatmin.paired(LOADERS["shuffled"](), fraction):
        assert x.shape == y.shape == (size,)
        assert torch.equal(y, x % 10)


def test_an_auxiliary_batch_may_hold_the_primary_one():
    around = flatmin.paired(LOADERS["shuffled"](), 2.5, containing=True)
    further = set[int]()
    for (x, _), (x_aux, y_aux) in around:
        assert len(x_aux) == len(y_aux) == 20
        assert torch.equal(x_aux[:8], x)
        assert torch.equal(y_aux, x_aux % 10)
        further |= set(x_aux[8:].tolist())
    assert len(further) == SIZE  # 60 draws in rounds over all of them
    for primary, same in flatmin.paired(LOADERS["shuffled"](), 1.0, containing=True):
        assert same is primary
    with pytest.raises(ValueError, match=r"fraction must lie in \[1, inf\), got 0.5"):
        flatmin.paired(LOADERS["shuffled"](), 0.5, containing=True)


def test_a_short_last_primary_batch_has_a_whole_auxiliary_one():
    primary, drawn = both(flatmin.paired(LOADERS["a short last batch"]()))
    assert [len(batch) for batch in primary] == [12, 12, 12, 4]
    assert [len(batch) for batch in drawn] == [3, 3, 3, 3]


def test_auxiliary_batches_are_independent_of_the_primary_ones():
    """Neither the same order nor a part of the same batch: as often in it as chance has it."""
    loader = DataLoader(TensorDataset(torch.arange(4000), torch.zeros(4000)), 80, shuffle=True)
    primary, drawn = both(flatmin.paired(loader, 1.0))
    assert primary != drawn
    common = sum(len(set(a) & set(b)) for a, b in zip(primary, drawn, strict=True))
    assert common == pytest.approx(4000 * 80 / 4000, abs=40)  # 4.5 standard deviations


def test_an_epoch_of_full_size_covers_the_data_once():
    drawn = auxiliary(flatmin.paired(LOADERS["shuffled"](), 1.0))
    assert sorted(i for batch in drawn for i in batch) == list(range(SIZE))


def test_a_long_epoch_covers_the_data_evenly():
    sampler = torch.utils.data.RandomSampler(DATA, replacement=True, num_samples=10 * SIZE)
    drawn = auxiliary(flatmin.paired(DataLoader(DATA, BATCH, sampler=sampler), 0.75))
    seen = Counter(i for batch in drawn for i in batch)
    assert sum(seen.values()) == 50 * 6
    assert set(seen) == set(range(SIZE))
    assert set(seen.values()) <= {7, 8}


def test_weights_decide_how_often_a_sample_is_drawn():
    weights = torch.tensor([1.0, 3.0]).repeat(SIZE // 2)
    sampler = WeightedRandomSampler(weights.tolist(), 100 * SIZE)
    drawn = auxiliary(flatmin.paired(DataLoader(DATA, BATCH, sampler=sampler), 1.0))
    share = sum(i % 2 for batch in drawn for i in batch) / (100 * SIZE)
    assert share == pytest.approx(0.75, abs=0.03)  # 4.4 standard deviations


def test_ranks_draw_different_auxiliary_batches_from_the_whole_set():
    pairs = [
        flatmin.paired(DataLoader(DATA, BATCH, sampler=distributed(rank)), 1.0) for rank in (0, 1)
    ]
    mine, theirs = (
        [i for _ in range(20) for batch in auxiliary(rank) for i in batch] for rank in pairs
    )
    assert mine != theirs
    assert set(mine) == set(theirs) == set(range(SIZE))


def test_an_epoch_may_be_left_early():
    pairs, whole = (flatmin.paired(LOADERS["two workers that stay"]()) for _ in range(2))
    for _ in pairs:
        break
    auxiliary(whole)
    assert auxiliary(pairs) == auxiliary(whole)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sampler: {"sampler": sampler, "batch_size": BATCH},
        lambda sampler: {"batch_sampler": BatchSampler(sampler, BATCH, drop_last=True)},
    ],
    ids=["sampler", "batch_sampler"],
)
def test_the_epoch_reaches_the_sampler_of_the_loader(wrap: Callable[..., dict[str, Any]]):
    sampler = distributed(0)
    pairs = flatmin.paired(DataLoader(DATA, **wrap(sampler)))
    pairs.set_epoch(3)
    assert sampler.epoch == 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", [name for name in LOADERS if name != "two workers that stay"])
def test_copies_go_on_alike(name: str, clone: Callable[[Any], Any]):
    pairs = flatmin.paired(LOADERS[name]())
    list(pairs)
    copied = clone(pairs)
    assert copied.epoch == 1
    torch.manual_seed(2)
    expected = both(pairs)
    torch.manual_seed(2)
    assert both(copied) == expected


class Named(NamedTuple):
    image: Tensor
    label: Tensor


def as_named(samples: list[tuple[Tensor, Tensor]]) -> Named:
    return Named(*(torch.stack(part) for part in zip(*samples, strict=True)))


def test_auxiliary_batches_are_collated_like_primary_ones():
    loader = DataLoader(DATA, BATCH, collate_fn=as_named)
    for primary, aux in flatmin.paired(loader):
        assert type(primary) is type(aux) is Named
        assert torch.equal(aux.label, aux.image % 10)


class PrefetchLoader:
    """timm's, in what it does on a CPU: it normalises what a DataLoader yields, on its device."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.mean, self.stream = loader, torch.tensor(0.5), None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            yield images.float().sub_(self.mean), labels

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> Any:
        return self.loader.sampler

    @property
    def dataset(self) -> Any:
        return self.loader.dataset


class RepeatAugSampler(Sampler[int]):
    """timm's too: every sample of the set, several times."""

    def __init__(self, data: Any) -> None:
        self.data, self.rank, self.epoch = data, 1, -1

    def __len__(self) -> int:
        return 3 * len(self.data)

    def __iter__(self) -> Iterator[int]:
        return iter([i for i in range(len(self.data)) for _ in range(3)])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.mark.parametrize("repeated", [False, True])
def test_what_a_prefetch_loader_does_to_primary_batches_it_does_to_auxiliary_ones(repeated: bool):
    data = TensorDataset(torch.arange(64), torch.arange(64))
    alone = DistributedSampler(data, num_replicas=1, rank=0)
    sampler = RepeatAugSampler(data) if repeated else alone
    inner = DataLoader(data, 16, sampler=sampler)
    pairs = flatmin.paired(PrefetchLoader(inner), 0.25)
    plain = flatmin.paired(inner, 0.25)
    assert len(pairs) == len(inner)
    assert pairs.mean == 0.5
    pairs.set_epoch(3)
    plain.set_epoch(3)
    assert sampler.epoch == 3
    for ours, expected in zip(pairs, plain, strict=True):
        for (x, y), (ids, labels) in zip(ours, expected, strict=True):
            assert torch.equal(x, ids - 0.5)
            assert torch.equal(y, labels)


def test_it_trains_on_real_digits():
    data = Subset(TensorDataset(IMAGES, LABELS), range(1024))
    model = nn.Linear(32, 10)
    optimizer = flatmin.AgnosticSAM(torch.optim.SGD(model.parameters(), lr=0.5), model=model)

    def loss_on(batch: list[Tensor]) -> Tensor:
        x, y = batch
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    for primary, aux in flatmin.paired(DataLoader(data, batch_size=64, shuffle=True)):
        optimizer.step(lambda: loss_on(primary), lambda: loss_on(aux))
    assert optimizer.cost.primary_samples == 1024
    assert optimizer.cost.ratio == 2.5
    right = (model(IMAGES[1024:]).argmax(1) == LABELS[1024:]).double().mean()
    assert right > 0.6, "half of each image says as much after one epoch"


# --- what cannot be paired


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(SIZE)


class Everything(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(SIZE)


class Endless:
    """A data set that does not know its length."""

    def __getitem__(self, index: int) -> int:
        return index


class Batches(Everything):
    """A batch sampler that says nothing of a batch size."""

    def __iter__(self) -> Iterator[Any]:
        yield [0, 1]


@pytest.mark.parametrize(
    "loader, error, words",
    [
        ([DATA[0]], TypeError, ["DataLoader", "list"]),
        (DATA, TypeError, ["DataLoader", "TensorDataset"]),
        (DataLoader(Stream(), BATCH), TypeError, ["iterable data set"]),
        (DataLoader(DATA, BATCH, sampler=Everything()), ValueError, ["Everything", "samplers"]),
        (DataLoader(Endless(), BATCH, sampler=Everything()), ValueError, ["Everything"]),
        (DataLoader(DATA, batch_sampler=Batches()), ValueError, ["batch_size"]),
        (DataLoader(DATA, batch_size=None), ValueError, ["batch_size"]),
    ],
    ids=["list", "data set", "iterable", "sampler", "length", "batch sampler", "no batches"],
)
def test_a_loader_that_cannot_be_paired_is_refused(
    loader: Any, error: type[Exception], words: list[str]
):
    with pytest.raises(error) as raised:
        flatmin.paired(loader)
    message = str(raised.value)
    assert all(word in message for word in [*words, "flatmin.split(batch, fraction)"])


@pytest.mark.parametrize("fraction", [0.0, -0.25, 1.01, nan, inf])
def test_a_fraction_out_of_range_is_refused(fraction: float):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]") as error:
        flatmin.paired(LOADERS["shuffled"](), fraction)
    assert repr(fraction) in str(error.value)


# --- split


X, Y = torch.arange(24.0).view(8, 3), torch.arange(8)
NAMES = [f"{i}.png" for i in range(8)]


@pytest.mark.parametrize(
    "fraction, size", [(0.25, 2), (0.5, 4), (0.01, 1), (0.99, 7), (0.125, 1), (0.3, 2)]
)
def test_split_gives_each_part_its_share(fraction: float, size: int):
    primary, aux = flatmin.split(X, fraction)
    assert torch.equal(aux, X[8 - size :])
    assert torch.equal(primary, X[: 8 - size])


@pytest.mark.parametrize(
    "batch, primary, aux",
    [
        (Y, Y[:6], Y[6:]),
        ((Y, Y), (Y[:6], Y[:6]), (Y[6:], Y[6:])),
        ([Y, NAMES], [Y[:6], NAMES[:6]], [Y[6:], NAMES[6:]]),
        ({"x": Y, "y": (Y, Y)}, {"x": Y[:6], "y": (Y[:6],) * 2}, {"x": Y[6:], "y": (Y[6:],) * 2}),
        (Named(Y, Y), Named(Y[:6], Y[:6]), Named(Y[6:], Y[6:])),
        ((Y, Named(Y, [Y])), (Y[:6], Named(Y[:6], [Y[:6]])), (Y[6:], Named(Y[6:], [Y[6:]]))),
        (OrderedDict(x=Y), OrderedDict(x=Y[:6]), OrderedDict(x=Y[6:])),
        (UserDict(x=Y), UserDict(x=Y[:6]), UserDict(x=Y[6:])),
        ((Y, None, 0.5), (Y[:6], None, 0.5), (Y[6:], None, 0.5)),
        ({"x": Y, "set": "train"}, {"x": Y[:6], "set": "train"}, {"x": Y[6:], "set": "train"}),
        ((Y, range(8)), (Y[:6], range(6)), (Y[6:], range(6, 8))),
        ((Y, tuple(NAMES)), (Y[:6], tuple(NAMES[:6])), (Y[6:], tuple(NAMES[6:]))),
    ],
    ids=[
        "tensor",
        "tuple",
        "file names",
        "dict",
        "named tuple",
        "nested",
        "ordered",
        "user dict",
        "None and numbers",
        "a word for all",
        "range",
        "tuple of names",
    ],
)
def test_split_keeps_the_structure(batch: Any, primary: Any, aux: Any):
    assert_same(flatmin.split(batch), (primary, aux))
    if not any(isinstance(part, range) for part in batch):  # a range joins as a list
        assert_same(pairs.joined(primary, aux), batch)


def assert_same(ours: Any, expected: Any) -> None:
    assert type(ours) is type(expected)
    if isinstance(expected, Tensor):
        assert torch.equal(ours, expected)
    elif isinstance(expected, (dict, UserDict)):
        assert list(ours) == list(expected)
        assert_same(list(ours.values()), list(expected.values()))
    elif isinstance(expected, (list, tuple)):
        for a, b in zip(ours, expected, strict=True):
            assert_same(a, b)
    else:
        assert ours == expected


def test_split_copies_nothing():
    primary, aux = flatmin.split(X)
    assert primary.data_ptr() == X.data_ptr()
    assert aux.data_ptr() == X[6:].data_ptr()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(size=st.integers(2, 300), fraction=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_split_loses_nothing_and_doubles_nothing(size: int, fraction: float):
    batch = torch.arange(size)
    primary, aux = flatmin.split((batch, batch), fraction)
    assert len(primary[0]) >= 1
    assert len(aux[0]) >= 1
    assert abs(len(aux[0]) - fraction * size) <= 1
    assert torch.equal(torch.cat([primary[1], aux[1]]), batch)


@pytest.mark.parametrize(
    "batch, words",
    [
        ((X, Y[:5]), ["one length", "[5, 8]"]),
        ([X, NAMES[:3]], ["one length", "[3, 8]"]),
        ({"x": None}, ["no tensor"]),
        (3.0, ["no tensor"]),
        ("batch", ["no tensor"]),
        (X[:1], ["a batch of 1", "larger batch"]),
        (X[:0], ["a batch of 0", "larger batch"]),
        ((X, torch.tensor(1.0)), ["first dimension"]),
        ((X, Y.numpy()), ["ndarray", "tensor"]),
    ],
    ids=["lengths", "names", "None", "number", "word", "one", "none", "no dimension", "array"],
)
def test_a_batch_that_cannot_be_split_is_refused(batch: Any, words: list[str]):
    with pytest.raises((TypeError, ValueError)) as error:
        flatmin.split(batch)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, nan])
def test_a_share_out_of_range_is_refused(fraction: float):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\)") as error:
        flatmin.split(X, fraction)
    assert repr(fraction) in str(error.value)
