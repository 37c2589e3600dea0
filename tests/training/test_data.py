"""Real images as tensors, from scikit-learn, Parquet files and folders."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import encoded, picture, write_parquet
from PIL import Image
from sklearn.datasets import load_digits

from flatmin.training import InputError, load
from flatmin.training.data import parquet
from flatmin.training.data.decoding import File, Form, OpenForm, common_form, decode
from flatmin.training.data.images import NAMES, others, stratified
from flatmin.training.data.wnids import WNIDS
from flatmin.training.seeds import generator

needs_data = pytest.mark.skipif(
    not os.environ.get("FLATMIN_DATA"), reason="FLATMIN_DATA names no folder of real images"
)


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    """Ten training and two test images whose red channel tells which they are."""
    folder = tmp_path / "cifar10"
    shades = [encoded(picture(20 * i)) for i in range(10)]
    write_parquet(folder / "train.parquet", shades, [0, 1] * 5, ["cat", "dog"])
    write_parquet(folder / "test.parquet", shades[:2], [1, 0], ["cat", "dog"])
    return tmp_path


def test_digits_are_split_into_1437_and_360_with_equal_shares_of_every_class():
    data = load("digits")
    pixels, labels = load_digits(return_X_y=True)
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    whole = torch.bincount(torch.tensor(labels))
    test = torch.bincount(data.test_labels)
    assert ((test - whole * 360 / 1797).abs() < 1).all()
    assert torch.equal(torch.bincount(data.train_labels) + test, whole)
    # no image is lost, doubled or in both parts
    ours = torch.cat([data.train_images, data.test_images]).flatten(1).numpy()
    theirs = np.round(pixels * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_digits_are_the_same_every_time():
    assert load("digits").fingerprint() == load("digits").fingerprint()


def test_the_fingerprint_sees_a_single_pixel_and_a_single_label():
    before = load("digits").fingerprint()
    brighter, relabelled = load("digits"), load("digits")
    brighter.train_images[0, 0, 0, 0] += 1
    relabelled.test_labels[3] = (relabelled.test_labels[3] + 1) % 10
    assert len({before, brighter.fingerprint(), relabelled.fingerprint()}) == 3


def test_a_stratified_choice_keeps_the_shares_and_rounds_by_largest_remainder():
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 70)
    chosen = stratified(labels, 15, torch.Generator().manual_seed(0))
    # 1.5, 3 and 10.5: the tie goes to the lower label
    assert torch.bincount(labels[chosen]).tolist() == [2, 3, 10]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    rest = others(100, chosen)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(100))


def test_every_class_can_keep_an_image_however_small_its_share():
    labels = torch.tensor([0] * 6 + [1] * 2 + [3] * 206)
    shares, kept = (
        stratified(labels, 10, torch.Generator().manual_seed(0), all_classes=each)
        for each in (False, True)
    )
    assert torch.bincount(labels[shares]).tolist() == [0, 0, 0, 10]
    assert torch.bincount(labels[kept]).tolist() == [1, 1, 0, 8]
    assert set(kept[labels[kept] == 3].tolist()) < set(shares.tolist())
    # where nothing is missing nothing changes
    shares, kept = (
        stratified(labels, 100, torch.Generator().manual_seed(0), all_classes=each)
        for each in (False, True)
    )
    assert torch.equal(shares, kept)


def test_a_limit_leaves_no_class_without_an_image(tmp_path: Path):
    for part in ("train", "test"):
        images = [encoded(picture(i)) for i in range(31)]
        write_parquet(tmp_path / f"{part}.parquet", images, [0] * 30 + [1], ["cat", "dog"])
    assert load(str(tmp_path), limit=2).train_labels.tolist() == [0, 1]


def test_a_limit_chooses_the_same_images_of_a_set_with_a_name_as_ever(small_cifar: Path):
    for name, root, limit in (("digits", None, 500), ("cifar10", small_cifar, 4)):
        labels = load(name, root).train_labels
        rows = stratified(labels, limit, generator(0, f"limit {name}"))
        assert torch.equal(load(name, root, limit=limit).train_rows, rows)


def test_a_limit_does_not_depend_on_how_a_path_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image_folder(tmp_path / "insects")
    monkeypatch.chdir(tmp_path)
    spellings = (str(tmp_path / "insects"), f"{tmp_path}/insects/", "./insects")
    rows = [load(name, limit=6).train_rows.tolist() for name in spellings]
    assert rows[0] == rows[1] == rows[2]


def test_a_limit_keeps_that_many_images_of_every_class_in_its_share():
    whole, data = load("digits"), load("digits", limit=500)
    assert len(data.train_labels) == len(data.train_images) == 500
    assert torch.equal(data.train_images, whole.train_images[data.train_rows])
    assert torch.equal(data.train_labels, whole.train_labels[data.train_rows])
    assert torch.bincount(data.train_labels).min() >= 48
    assert torch.equal(data.test_images, whole.test_images)


@pytest.mark.parametrize("limit, said", [(1438, "more than the 1437"), (9, "less than one image")])
def test_an_impossible_limit_is_refused(limit: int, said: str):
    with pytest.raises(InputError, match=said):
        load("digits", limit=limit)


def test_parquet_images_keep_their_order_labels_and_class_names(small_cifar: Path):
    data = load("cifar10", small_cifar)
    assert data.classes == ("cat", "dog")
    assert data.train_images.shape == (10, 3, 32, 32)
    assert data.train_images[:, 0, 5, 5].tolist() == [20 * i for i in range(10)]
    assert (data.train_images[:, 1] == 0).all()
    assert data.train_images[:, 2, 0, 0].tolist() == [255 - 20 * i for i in range(10)]
    assert data.train_labels.tolist() == [0, 1] * 5
    assert data.test_labels.tolist() == [1, 0]


def test_a_limit_decodes_the_chosen_rows_alone(small_cifar: Path):
    data = load("cifar10", small_cifar, limit=4)
    assert data.train_images[:, 0, 0, 0].tolist() == (20 * data.train_rows).tolist()
    assert data.train_labels.tolist() == (data.train_rows % 2).tolist()


def test_parquet_files_are_found_by_environment(small_cifar: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLATMIN_DATA", str(small_cifar))
    assert load("cifar10").fingerprint() == load("cifar10", small_cifar).fingerprint()


def test_the_names_of_files_and_columns_on_the_hub_are_understood(tmp_path: Path):
    folder = tmp_path / "cifar100" / "data"
    columns = ("img", "fine_label")
    for part in ("train", "test"):
        images = [encoded(picture(i)) for i in range(4)]
        write_parquet(
            folder / f"{part}-00000-of-00001.parquet", images, [0, 1, 2, 1], None, columns
        )
    data = load("cifar100", tmp_path)
    assert data.classes == ("0", "1", "2")
    assert data.train_labels.tolist() == [0, 1, 2, 1]


def test_a_wide_image_is_resized_to_its_shorter_side_and_cropped_to_the_middle(tmp_path: Path):
    wide = Image.new("RGB", (384, 128), (255, 0, 0))
    wide.paste((0, 255, 0), (128, 0, 256, 128))
    for part in ("train", "test"):
        path = tmp_path / "flowers17" / f"{part}.parquet"
        write_parquet(path, [encoded(wide)] * 2, [0, 1], ["a", "b"])
    data = load("flowers17", tmp_path)
    assert data.train_images.shape == (2, 3, 64, 64)
    inner = data.train_images[0, :, :, 2:-2]  # the resampling mixes the outermost columns
    assert (inner[1] > 200).all()
    assert (inner[0] < 50).all()


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda folder: (folder / "test.parquet").unlink(), r"no test\*.parquet"),
        (lambda folder: (folder / "train.parquet").write_text("no"), "cannot be read"),
        (
            lambda folder: write_parquet(folder / "train.parquet", [b"no image"] * 2, [0, 1], None),
            "cannot be decoded",
        ),
        (
            lambda folder: write_parquet(
                folder / "train.parquet", [b""], [0], None, ("image", "answer")
            ),
            "has the columns image, answer: expected label or fine_label",
        ),
    ],
)
def test_broken_parquet_is_one_clear_line(
    small_cifar: Path, break_it: Callable[[Path], None], said: str
):
    break_it(small_cifar / "cifar10")
    with pytest.raises(InputError, match=said) as caught:
        load("cifar10", small_cifar)
    assert "\n" not in str(caught.value)


IMAGE = encoded(picture(1))


@pytest.mark.parametrize(
    "labels, said",
    [
        (
            pa.array(["cat", "dog"]).dictionary_encode(),
            "test.parquet has dictionary<.*expected integers",
        ),
        (pa.array([[0], [1]]), "test.parquet has list<.*expected integers"),
        (pa.array([0.5, 1.0]), "test.parquet has double in the column label: expected integers"),
        (pa.array([0, None]), "test.parquet has 1 rows without label"),
    ],
    ids=["dictionary", "lists", "floats", "missing"],
)
def test_labels_that_are_no_integers_are_refused(small_cifar: Path, labels: pa.Array, said: str):
    table = pa.table({"image": [IMAGE] * 2, "label": labels})
    pq.write_table(table, small_cifar / "cifar10" / "test.parquet")
    with pytest.raises(InputError, match=said) as caught:
        load("cifar10", small_cifar)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images, said",
    [
        (["1.png", "2.png"], "test.parquet has string for images: expected the bytes"),
        ([[1, 2], [3, 4]], "test.parquet has list<.* for images: expected the bytes"),
        ([{"path": "1.png"}] * 2, "test.parquet has struct<path.* for images: expected the bytes"),
        (
            [{"bytes": "text"}] * 2,
            "test.parquet has struct<bytes: string> for images: expected the",
        ),
        ([{"bytes": IMAGE}, None], "image 1 in .*test.parquet cannot be decoded"),
    ],
    ids=["strings", "lists", "no bytes", "strings for bytes", "missing"],
)
def test_images_that_are_no_bytes_are_refused(small_cifar: Path, images: list[object], said: str):
    table = pa.table({"image": images, "label": [0, 1]})
    pq.write_table(table, small_cifar / "cifar10" / "test.parquet")
    with pytest.raises(InputError, match=said) as caught:
        load("cifar10", small_cifar)
    assert "\n" not in str(caught.value)


def test_truths_are_labels_too(small_cifar: Path):
    table = pa.table({"image": [IMAGE] * 2, "label": [True, False]})
    pq.write_table(table, small_cifar / "cifar10" / "test.parquet")
    assert load("cifar10", small_cifar).test_labels.tolist() == [1, 0]


@pytest.mark.parametrize("memory", ["1G", "1K"])
def test_a_part_without_rows_is_refused(
    small_cifar: Path, monkeypatch: pytest.MonkeyPatch, memory: str
):
    monkeypatch.setenv("FLATMIN_MEMORY", memory)
    monkeypatch.setenv("FLATMIN_CACHE", str(small_cifar / "cache"))
    write_parquet(small_cifar / "cifar10" / "test.parquet", [], [], ["cat", "dog"])
    with pytest.raises(InputError, match=r"test\.parquet has no rows: expected at least one"):
        load("cifar10", small_cifar)


def test_a_single_class_is_refused(tmp_path: Path):
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [IMAGE] * 2, [0, 0], None)
    with pytest.raises(InputError, match="has a single class: expected at least 2"):
        load(str(tmp_path))


def test_parquet_files_in_hidden_folders_are_left_alone(small_cifar: Path):
    before = load("cifar10", small_cifar).fingerprint()
    write_parquet(small_cifar / "cifar10" / ".cache" / "train-1.parquet", [IMAGE], [0], None)
    assert load("cifar10", small_cifar).fingerprint() == before
    (small_cifar / "cifar10" / "train.parquet").unlink()
    assert not parquet.holds(small_cifar / "cifar10")


def test_missing_data_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    with pytest.raises(InputError, match=r"FLATMIN_DATA is not set: put train\.parquet and test"):
        load("mnist")
    with pytest.raises(InputError, match=r"mnist does not exist; put .* set FLATMIN_DATA=<folder>"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", [*NAMES[1:], "imagenet-c:fog:3"])
def test_every_set_that_is_not_at_hand_says_in_one_line_what_to_fetch(name: str, tmp_path: Path):
    folder = tmp_path / name.partition(":")[0]
    with pytest.raises(
        InputError, match=f"no data for {folder.name}: .* in <folder>/{folder.name} "
    ):
        load(name, tmp_path)
    folder.mkdir()
    with pytest.raises(InputError, match=f"{folder.name} is empty; put ") as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_files_of_the_set_names_the_first_of_them(tmp_path: Path):
    (tmp_path / "flowers102").mkdir()
    (tmp_path / "flowers102" / "notes.txt").write_text("to do")
    with pytest.raises(InputError, match=r"no setid.mat in .*flowers102: put all original files"):
        load("flowers102", tmp_path)


def test_a_named_set_may_be_sorted_into_folders(tmp_path: Path):
    for part, count in (("train", 4), ("valid", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(count):
                path = tmp_path / "pets" / part / name / f"{i}.png"
                picture(10 * label + i, (90, 70)).save(path)
    data = load("pets", tmp_path, size=64)
    assert data.classes == ("cat", "dog")
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert data.test_labels.tolist() == [0, 0, 1, 1]


def test_labels_without_a_class_are_refused(small_cifar: Path):
    path = small_cifar / "cifar10" / "test.parquet"
    for labels, said in (([0, 2], "outside 0 .. 1"), ([0, -1], "outside 0 .. 1")):
        write_parquet(path, [encoded(picture(1))] * 2, labels, ["cat", "dog"])
        with pytest.raises(InputError, match=said):
            load("cifar10", small_cifar)


def test_imagenet_in_parquet_has_its_wordnet_numbers_and_its_validation_images(tmp_path: Path):
    folder = tmp_path / "imagenet" / "data"
    images = [encoded(picture(i)) for i in range(3)]
    spoken = [f"thing {i}" for i in range(1000)]
    write_parquet(folder / "train-00000-of-00001.parquet", images, [5, 999, 0], spoken)
    write_parquet(folder / "validation-00000-of-00001.parquet", images[1:], [7, 7], spoken)
    write_parquet(folder / "test-00000-of-00001.parquet", images, [-1, -1, -1], spoken)
    data = load("imagenet", tmp_path, size=16)
    assert data.classes == WNIDS
    assert data.train_labels.tolist() == [5, 999, 0]
    assert data.test_images[:, 0, 0, 0].tolist() == [1, 2]
    write_parquet(folder / "train-00000-of-00001.parquet", images, [0, 1, 1], ["a", "b"])
    write_parquet(folder / "validation-00000-of-00001.parquet", images, [0, 1, 1], ["a", "b"])
    with pytest.raises(InputError, match="has 2 classes: expected 1000"):
        load("imagenet", tmp_path)


def test_a_folder_may_hold_parquet_files(small_cifar: Path):
    data = load(str(small_cifar / "cifar10"))
    assert torch.equal(data.train_images, load("cifar10", small_cifar).train_images)


def test_a_set_on_the_hub_is_fetched_and_read(small_cifar: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def fetched(repository: str, **given: object) -> str:
        asked.append((repository, given))
        return str(small_cifar / "cifar10")

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", fetched)
    data = load("hub:someone/pictures")
    assert asked == [("someone/pictures", {"repo_type": "dataset", "allow_patterns": "*.parquet"})]
    assert data.classes == ("cat", "dog")
    assert data.train_images.shape == (10, 3, 32, 32)


def test_a_set_that_the_hub_does_not_give_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(repository: str, **given: object) -> str:
        raise hub.errors.LocalEntryNotFoundError("cannot find the files\nand more")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(InputError, match=r"hub:a/b cannot be fetched \(cannot find the files\): c"):
        load("hub:a/b")
    monkeypatch.undo()
    with pytest.raises(InputError, match="hub:not a name cannot be fetched"):
        load("hub:not a name")


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        load("hub:a/b")


def test_large_images_of_a_folder_are_decoded_at_the_size_asked_for(tmp_path: Path):
    image_folder(tmp_path, size=(200, 150))
    for size, stored, margin in ((None, 64, 0), (80, 80, 0), (112, 128, 16), (224, 256, 32)):
        data = load(str(tmp_path), size=size)
        assert data.train_images.shape[2] == stored
        assert data.margin == margin
        assert data.size == stored - margin


def test_an_unknown_set_is_refused_with_the_nearest_names():
    with pytest.raises(InputError, match="unknown data set 'cifar': did you mean cifar10 or"):
        load("cifar")


def test_a_path_that_is_not_there_is_not_mistaken_for_a_name(tmp_path: Path):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        load(str(tmp_path / "nowhere"))


def image_folder(folder: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> None:
    for shade, name in ((10, "ants"), (200, "bees")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            picture(shade + i, size, mode).save(folder / name / f"{i}.png")


def test_a_folder_by_class_gives_a_stratified_fifth_for_testing(tmp_path: Path):
    image_folder(tmp_path)
    data = load(str(tmp_path))
    assert data.classes == ("ants", "bees")
    assert data.train_images.shape == (16, 3, 30, 30)  # the shorter side
    assert data.notes == ()
    assert data.test_images.shape == (4, 3, 30, 30)
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    reds = torch.cat([data.train_images, data.test_images])[:, 0, 0, 0]
    assert sorted(reds.tolist()) == [*range(10, 20), *range(200, 210)]
    assert torch.equal((data.train_images[:, 0, 0, 0] >= 200).long(), data.train_labels)
    assert load(str(tmp_path)).fingerprint() == data.fingerprint()


def test_a_folder_with_train_and_test_keeps_its_split(tmp_path: Path):
    image_folder(tmp_path / "train", size=(100, 200))
    image_folder(tmp_path / "test", size=(90, 90))
    data = load(str(tmp_path))
    assert data.train_images.shape == (20, 3, 64, 64)  # at most 64
    assert data.test_images.shape == (20, 3, 64, 64)


def test_a_few_small_images_do_not_decide_the_size_of_all_and_are_named(tmp_path: Path):
    image_folder(tmp_path, size=(40, 50))
    picture(0, (12, 9)).save(tmp_path / "ants" / "tiny.png")
    data = load(str(tmp_path))
    assert data.size == 40
    (note,) = data.notes
    assert note.startswith("1 of 21 images are less than half of the 40 pixels to a side")
    assert f"{tmp_path}/ants/tiny.png (9 pixels): remove them, or give --size" in note
    for size in (16, 60):
        data = load(str(tmp_path), size=size)
        assert (data.size, data.margin) == (size, 0)
    assert load(str(tmp_path), size=16).notes == ()


def test_what_is_no_class_is_left_out_with_a_line(tmp_path: Path):
    image_folder(tmp_path / "birds")
    for name in ("__MACOSX", "birds/__MACOSX/ants", "birds/nothing"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "birds" / "__MACOSX" / "ants" / "._0.png").write_bytes(b"\0")
    data = load(str(tmp_path))
    assert data.classes == ("ants", "bees")
    assert data.notes == (
        f"{tmp_path}/__MACOSX is left out",
        f"{tmp_path}/birds/__MACOSX is left out",
        f"{tmp_path}/birds/nothing holds no image and is left out",
    )


@pytest.mark.parametrize("place", ["mine.parquet", "mine/0000.parquet", "mine/train-0.parquet"])
def test_one_parquet_file_will_do(tmp_path: Path, place: str):
    shades = [encoded(picture(20 * i)) for i in range(10)]
    write_parquet(tmp_path / place, shades, [0, 1] * 5, ["cat", "dog"])
    data = load(str(tmp_path / place.split("/")[0]))
    assert (len(data.train_labels), len(data.test_labels)) == (8, 2)
    assert data.classes == ("cat", "dog")
    every = torch.cat([data.train_images, data.test_images])[:, 0, 0, 0]
    labels = torch.cat([data.train_labels, data.test_labels])
    assert torch.equal(every // 20 % 2, labels.to(every.dtype))


def test_labels_are_matched_by_name(small_cifar: Path):
    """Whatever the order in which a part declares its classes; names may be the labels too."""
    folder = small_cifar / "cifar10"
    before = load("cifar10", root=small_cifar)
    images = [encoded(picture(20 * i)) for i in range(2)]
    write_parquet(folder / "test.parquet", images, [0, 1], ["dog", "cat"])
    after = load("cifar10", root=small_cifar)
    assert after.classes == before.classes
    assert torch.equal(after.test_labels, before.test_labels)
    assert torch.equal(after.test_images, before.test_images)
    for part, count in (("train", 10), ("test", 2)):
        rows = [{"bytes": encoded(picture(20 * i))} for i in range(count)]
        names = ["cat", "dog"] * (count // 2) if part == "train" else ["dog", "cat"]
        pq.write_table(pa.table({"image": rows, "label": names}), folder / f"{part}.parquet")
    assert torch.equal(load("cifar10", root=small_cifar).test_labels, before.test_labels)
    write_parquet(folder / "test.parquet", images, [0, 1], ["cow", "cat"])
    with pytest.raises(InputError, match="has test images of cow, which no training image shows"):
        load("cifar10", root=small_cifar)


def test_a_folder_of_grey_images_stays_grey(tmp_path: Path):
    image_folder(tmp_path, mode="L")
    assert load(str(tmp_path)).channels == 1


@pytest.mark.parametrize("mode, kind", [("I;16", "PNG"), ("I;16B", "TIFF"), ("I;16", "PPM")])
def test_grey_images_of_16_bits_are_scaled_to_8(tmp_path: Path, mode: str, kind: str):
    stored = np.array([[0, 128, 129, 257], [2570, 2570 + 128, 2570 + 129, 65535]], np.uint16)
    stored = stored.repeat(2, 0)
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (4, 4), stored.astype(order).tobytes())
    path = tmp_path / "image"
    image.save(path, kind)
    images = [File(str(path))]
    assert common_form(images, OpenForm(64)) == (Form(1, 4), ())
    expected = [[0, 0, 1, 1], [10, 10, 11, 255]]
    for channels in (1, 3):
        found = decode(images, Form(channels, 4))
        assert found[0, :, ::2].tolist() == [expected] * channels


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_32_bits_are_refused(tmp_path: Path, kind: type):
    path = tmp_path / "1.tif"
    Image.fromarray(np.full((4, 4), 70_000, kind)).save(path)
    with pytest.raises(InputError, match=r"1\.tif has 32-bit pixels: save it with 8 or 16 bits"):
        decode([File(str(path))], Form(1, 4))


def test_photographs_stand_upright(tmp_path: Path):
    image_folder(tmp_path, size=(32, 32))
    turned = Image.new("RGB", (32, 32))
    turned.paste((255, 255, 255), (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left half is the upper one
    for file in (tmp_path / "ants").iterdir():
        turned.save(file, exif=exif)
    image = load(str(tmp_path)).train_images[0, 0]
    assert (image[:16] == 255).all()
    assert (image[16:] == 0).all()


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda folder: (folder / "bees" / "3.png").write_text("no"), r"3\.png cannot be decoded"),
        (
            lambda folder: shutil.move(folder / "bees" / "3.png", folder / "wasps" / "3.png"),
            "wasps holds 1 images: expected at least 2",
        ),
        (lambda folder: (folder / "bees").rename(folder.parent / "bees"), "1 class folders"),
    ],
)
def test_a_broken_folder_is_one_clear_line(
    tmp_path: Path, break_it: Callable[[Path], None], said: str
):
    image_folder(tmp_path / "insects")
    (tmp_path / "insects" / "wasps").mkdir()  # without an image, it is passed over
    break_it(tmp_path / "insects")
    with pytest.raises(InputError, match=said):
        load(str(tmp_path / "insects"))


def test_train_and_test_must_have_the_same_classes(tmp_path: Path):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "test")
    (tmp_path / "test" / "bees").rename(tmp_path / "test" / "wasps")
    with pytest.raises(InputError, match="differ in the classes bees, wasps"):
        load(str(tmp_path))


@needs_data
@pytest.mark.parametrize(
    "name, shape, tested, classes",
    [
        ("cifar10", (200, 3, 32, 32), 10_000, 10),
        ("cifar100", (200, 3, 32, 32), 10_000, 100),
        ("mnist", (200, 1, 28, 28), 10_000, 10),
        ("flowers17", (200, 3, 64, 64), 272, 17),
    ],
)
def test_the_real_sets_have_their_published_sizes(
    name: str, shape: tuple[int, ...], tested: int, classes: int
):
    data = load(name, limit=200)
    assert data.train_images.shape == shape
    assert len(data.test_labels) == len(data.test_images) == tested
    assert len(data.classes) == classes
    assert data.train_labels.unique().numel() == classes
    assert 40 < data.train_images.float().mean() < 160 or name == "mnist"
