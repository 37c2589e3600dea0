"""Tasks are drawn from the classes they may be drawn from, and are the same for everybody."""

from __future__ import annotations

import pytest
import torch

from flatmin.meta import EpisodeSampler, splits


def labelled(classes: int = 8, each: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Image `i` of class `c` is full of the number 100 c + i, with its corner marked."""
    y = torch.arange(classes).repeat_interleave(each)
    x = (100 * y + torch.arange(each).repeat(classes)).float().view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    x[:, :, 0, 0] = -1
    return x, y


def test_a_task_has_its_shots_and_queries_of_each_of_its_classes():
    sampler = EpisodeSampler(*labelled(), ways=3, shots=2, queries=4, seed=1)
    for number in range(20):
        task = sampler[number]
        assert task.support_y.tolist() == [0, 0, 1, 1, 2, 2]
        assert task.query_y.tolist() == [i for i in range(3) for _ in range(4)]
        support, query = task.support_x[:, 0, 3, 3], task.query_x[:, 0, 3, 3]
        assert len({*support.tolist(), *query.tolist()}) == 18  # no image twice
        classes = [set((x // 100).tolist()) for x in (*support.split(2), *query.split(4))]
        assert all(len(found) == 1 for found in classes)
        assert classes[:3] == classes[3:]
        assert len(set().union(*classes)) == 3


def test_a_task_is_fixed_by_the_seed_and_its_number():
    first, again = (EpisodeSampler(*labelled(), ways=3, shots=1, queries=2) for _ in range(2))
    for _ in range(3):
        again[5]
    for a, b in zip(first[17], again[17], strict=True):
        assert torch.equal(a, b)
    other = EpisodeSampler(*labelled(), ways=3, shots=1, queries=2, seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(first[17], other[17], strict=True))
    batch = first.batch(4, 3)
    assert torch.equal(batch[2].query_x, first[14].query_x)
    stream = iter(first)
    assert torch.equal([next(stream) for _ in range(4)][3].query_x, first[3].query_x)


def test_every_class_and_every_image_has_its_turn():
    sampler = EpisodeSampler(*labelled(), ways=3, shots=1, queries=2)
    seen: dict[float, int] = {}
    for number in range(600):
        for value in sampler[number].support_x[:, 0, 3, 3].tolist():
            seen[value] = seen.get(value, 0) + 1
    assert len(seen) == 48
    assert max(seen.values()) < 2.2 * min(seen.values())  # 37.5 each


def test_quarter_turns_are_classes_or_are_drawn():
    x, y = labelled(4)
    classes = EpisodeSampler(x, y, ways=16, shots=1, queries=1, rotations="classes")
    assert classes.classes == 16
    task = classes[0]
    corners = {(0, 0): 0, (3, 0): 1, (3, 3): 2, (0, 3): 3}
    found = set()
    for image in task.support_x[:, 0]:
        corner = next(at for at in corners if image[at] == -1)
        found.add((float(image[1, 1]) // 100, corners[corner]))
    assert len(found) == 16
    drawn = EpisodeSampler(x, y, ways=4, shots=2, queries=1, rotations="drawn")
    assert drawn.classes == 4
    turns = set()
    for number in range(20):
        support = drawn[number].support_x[:, 0]
        for a, b in support.split(2):
            where = [next(at for at in corners if image[at] == -1) for image in (a, b)]
            assert where[0] == where[1]  # a class turns as one
            turns.add(where[0])
    assert len(turns) == 4


def test_samples_are_prepared_when_they_are_drawn():
    x, y = labelled()
    sampler = EpisodeSampler(
        x.to(torch.int64), y, ways=2, shots=1, queries=1, prepare=lambda drawn: drawn.float() / 2
    )
    assert sampler[0].support_x.dtype == torch.float32


@pytest.mark.parametrize(
    "options, line",
    (
        ({"ways": 9}, "9 ways ask for more classes than the 8 there are"),
        ({"shots": 4, "queries": 3}, "take 7 samples of a class, and class 0 has 6: lower queries"),
        ({"shots": 6, "queries": 1}, "6 shots leave no query of class 0"),
        ({"ways": 0}, "ways must be a whole number"),
        ({"rotations": "all"}, "rotations must be one of"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ),
)
def test_impossible_tasks_are_one_line(options: dict, line: str):
    with pytest.raises(ValueError, match=line) as caught:
        EpisodeSampler(*labelled(), **{"ways": 2, "shots": 1, "queries": 2, **options})
    assert "\n" not in str(caught.value)


def test_labels_and_shapes_that_do_not_fit_are_one_line():
    x, y = labelled()
    with pytest.raises(ValueError, match="48 samples have 47 labels"):
        EpisodeSampler(x, y[1:], 2, 1)
    with pytest.raises(ValueError, match="quarter turns need square images"):
        EpisodeSampler(x[..., :2], y, 2, 1, 2, rotations="drawn")
    with pytest.raises(IndexError, match="numbered from 0"):
        EpisodeSampler(x, y, 2, 1, 2)[-1]


def test_a_class_in_two_parts_is_refused():
    with pytest.raises(ValueError, match="train and test share the class b and 1 more"):
        splits.named(["a", "b", "c"], ["d"], ["b", "c"])


# The classes of the literature


def alphabets() -> tuple[list[str], list[str]]:
    """Names like those of Omniglot: as many characters in all, of as many alphabets."""
    background = dict.fromkeys(splits.VINYALS_VALIDATION, 20)
    background = dict(zip(splits.VINYALS_VALIDATION, (41, 46, 22, 22, 41), strict=True))
    rest = 964 - sum(background.values())
    background |= {f"Alphabet{i}": rest // 25 + (i < rest % 25) for i in range(25)}
    sizes = (41, 26, 47, 40, 30, 45, 46, 28, 23, 25, 42, 26)
    evaluation = dict(zip(splits.VINYALS_TEST, sizes, strict=True)) | {"Gurmukhi": 45}
    evaluation |= {f"Other{i}": 65 + (i < 0) for i in range(2)}
    missing = 659 - sum(evaluation.values())
    evaluation["Other0"] += missing
    return tuple(
        [f"{name}/character{i:02d}" for name, n in part.items() for i in range(1, n + 1)]
        for part in (background, evaluation)
    )


@pytest.mark.parametrize(
    "split, sizes",
    (("vinyals", (1028, 172, 423)), ("finn", (1100, 100, 423)), ("lake", (792, 172, 659))),
)
def test_omniglot_is_split_as_the_literature_splits_it(split: str, sizes: tuple[int, ...]):
    found = splits.omniglot(*alphabets(), split)
    assert tuple(map(len, found)) == sizes
    assert len(set().union(*found)) == 1623


def test_a_part_of_omniglot_has_a_split_of_its_own_and_no_other():
    background, evaluation = alphabets()
    some = [n for n in background if n.startswith(("Alphabet", "Early"))], evaluation
    found = splits.omniglot(*some, "at-hand")
    assert {n.partition("/")[0] for n in found.validation} == {"Early_Aramaic"}
    assert list(found.test) == evaluation
    with pytest.raises(ValueError, match=r"needs all 1623 characters.*at-hand"):
        splits.omniglot(*some, "vinyals")
    with pytest.raises(ValueError, match="leaves none for validation"):
        splits.omniglot([n for n in background if n.startswith("Early")], evaluation, "at-hand")
    with pytest.raises(ValueError, match="split must be one of"):
        splits.omniglot(*some, "mine")


def test_cifar_fs_is_a_split_of_cifar_100():
    names = [*splits.CIFAR_FS_VALIDATION, *splits.CIFAR_FS_TEST, *(f"x{i}" for i in range(64))]
    found = splits.cifar_fs(names)
    assert tuple(map(len, found)) == (64, 16, 20)
    with pytest.raises(ValueError, match="CIFAR-FS is a split of CIFAR-100"):
        splits.cifar_fs(names[1:])
