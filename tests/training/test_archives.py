"""The data sets as their authors give them away: tiny ones, in the real layouts and formats."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import originals
import pictures
import pytest
import torch
from originals import lines, picture, tar, written, zipped

from flatmin.training import ImageData, InputError, load
from flatmin.training.data.folders import Tree
from flatmin.training.data.wnids import WNIDS


def shades(data: ImageData) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """The number in the red of each image, and the name of its class."""
    parts = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    middle = data.train_images.shape[2] // 2
    return tuple(
        [
            (int(shade), data.classes[label])
            for shade, label in zip(images[:, 0, middle, middle], labels, strict=True)
        ]
        for images, labels in parts
    )


@pytest.mark.parametrize("there", originals.sets)
def test_the_original_files_are_read(there: str, tmp_path: Path):
    name, files, (classes, train, test) = originals.sets[there]
    written(tmp_path / name, files())
    data = load(name, tmp_path)
    assert data.classes == classes
    found = shades(data)
    for ours, theirs in zip(found, (train, test), strict=True):
        assert [name for _, name in ours] == [name for _, name in theirs]
        # JPEG moves a colour by a little; omniglot, grey, sees 30 % of the red and 11 % of the blue
        for (shade, _), (expected, _) in zip(ours, theirs, strict=True):
            if name == "omniglot":
                expected = round(0.299 * expected + 0.114 * (255 - expected))
            assert abs(shade - expected) <= 2 * (name not in ("cifar10", "cifar100", "mnist"))


@pytest.mark.parametrize("there", ["flowers102", "pets", "cars", "food101", "cifar10-python"])
def test_unpacked_archives_are_read_as_well(there: str, tmp_path: Path):
    name, files, _ = originals.sets[there]
    packed = load(name, written(tmp_path / "packed" / name, files()).parent)
    folder = written(tmp_path / "unpacked" / name, files())
    for archive in sorted(folder.glob("*.t*gz")):
        with tarfile.open(archive) as content:
            content.extractall(folder, filter="data")
        archive.unlink()
    assert load(name, folder.parent).fingerprint() == packed.fingerprint()


def test_an_archive_that_has_been_unpacked_beside_itself_is_left_alone(tmp_path: Path):
    folder = written(tmp_path / "food101", originals.food101())
    before = load("food101", tmp_path).fingerprint()
    with tarfile.open(folder / "food-101.tar.gz") as content:
        content.extractall(folder, filter="data")
    (folder / "food-101.tar.gz").write_bytes(b"broken since")
    assert load("food101", tmp_path).fingerprint() == before


def test_arrays_pickled_by_older_versions_are_read(tmp_path: Path):
    """As in the real archives, which hold arrays of numpy 1 written by Python 2."""
    content = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87"
        b"Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
        + bytes([7] * 3072)
        + b"tbU\x06labelsq\x07]q\x08K\x01au."
    )
    files = {f"data_batch_{i}": content for i in range(1, 6)} | {"test_batch": content}
    files |= {"batches.meta": pickle.dumps({b"label_names": [b"a", b"b"]}, protocol=2)}
    written(tmp_path / "cifar10", files)
    data = load("cifar10", tmp_path)
    assert (data.train_images == 7).all()
    assert data.train_labels.tolist() == [1] * 5


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    written(tmp_path / "cifar10", originals.cifar10())
    harmful = {"data_batch_1": pickle.dumps({b"data": Attack()}), "batches.meta": b"", "x": b""}
    written(tmp_path / "cifar10", {"cifar-10-python.tar.gz": tar(harmful, "w:gz")})
    meta = pickle.dumps({b"label_names": [b"a", b"b"]}, protocol=2)
    written(
        tmp_path / "cifar10",
        {"cifar-10-python.tar.gz": tar({**harmful, "batches.meta": meta}, "w:gz")},
    )
    with pytest.raises(InputError, match=r"data_batch_1 is no batch of CIFAR \(it asks for "):
        load("cifar10", tmp_path)
    assert not (tmp_path / "touched").exists()


def shortened(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])


def repacked(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """The archive after a `change` of its files."""
    files = {name: file.read() for name, file in Tree.of(path).files.items()}
    change(files)
    path.write_bytes(tar(files, "w:gz"))


@pytest.mark.parametrize(
    "there, break_it, said",
    [
        (
            "cifar10-python",
            lambda folder: shortened(folder / "cifar-10-python.tar.gz"),
            r"cifar-10-python.tar.gz is no whole archive \(.*end-of-stream",
        ),
        (
            "cifar10-python",
            lambda folder: (folder / "cifar-10-python.tar.gz").write_bytes(b"an error page"),
            "is no whole archive",
        ),
        (
            "cifar10-python",
            lambda folder: repacked(
                folder / "cifar-10-python.tar.gz",
                lambda files: files.pop("cifar-10-batches-py/data_batch_3"),
            ),
            r"no data_batch_3 in .*cifar10: put all original files of the set there",
        ),
        (
            "cifar10-binary",
            lambda folder: repacked(
                folder / "cifar-10-binary.tar.gz",
                lambda files: files.update({"cifar-10-batches-bin/data_batch_2.bin": b"1234"}),
            ),
            r"data_batch_2.bin is cut short",
        ),
        (
            "mnist",
            lambda folder: shortened(folder / "train-images-idx3-ubyte.gz"),
            "train-images-idx3-ubyte.gz is no whole idx file",
        ),
        (
            "mnist",
            lambda folder: (folder / "t10k-images-idx3-ubyte").unlink(),
            "no t10k-images-idx3-ubyte.gz in",
        ),
        ("flowers102", lambda folder: (folder / "setid.mat").unlink(), "no setid.mat in"),
        (
            "flowers102",
            lambda folder: (folder / "setid.mat").write_bytes(b"no"),
            "setid.mat is no MATLAB file",
        ),
        (
            "flowers102",
            lambda folder: (folder / "102flowers.tgz").unlink(),
            "no image_00003.jpg in",
        ),
        ("cars", lambda folder: (folder / "car_devkit.tgz").unlink(), "no cars_meta.mat in"),
        (
            "imagenet",
            lambda folder: (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink(),
            "no data/meta.mat in",
        ),
        (
            "imagenet",
            lambda folder: shortened(folder / "ILSVRC2012_img_train.tar", 0.4),
            "ILSVRC2012_img_train.tar is no whole archive",
        ),
        (
            "imagenet",
            lambda folder: (folder / "ILSVRC2012_img_val.tar").unlink(),
            r"no validation images in .*: put val/ or ILSVRC2012_img_val.tar there",
        ),
        (
            "imagenet-folders",
            lambda folder: written(folder, {"val/cats/1.png": picture(3)}),
            "val/cats is none of ImageNet's 1,000 classes",
        ),
        (
            "omniglot",
            lambda folder: (folder / "images_evaluation.zip").unlink(),
            "no images_evaluation in .*: put images_evaluation.zip there",
        ),
        (
            "omniglot",
            lambda folder: shortened(folder / "images_background.zip"),
            "images_background.zip is no whole archive",
        ),
        (
            "country211",
            lambda folder: repacked(
                folder / "country211.tgz",
                lambda files: [files.pop(f"country211/test/AD/{i}.jpg") for i in range(2)],
            ),
            "differ in the classes AD",
        ),
    ],
)
def test_what_is_missing_or_broken_is_one_clear_line(
    tmp_path: Path, there: str, break_it: Callable[[Path], None], said: str
):
    name, files, _ = originals.sets[there]
    break_it(written(tmp_path / name, files()))
    with pytest.raises(InputError, match=said) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_images_by_class_in_an_archive_need_no_name(tmp_path: Path):
    files = {f"insects/{kind}/{i}.png": picture(i) for kind in ("ants", "bees") for i in range(10)}
    written(
        tmp_path,
        {"insects.zip": zipped(files), "insects.tar": tar(files), "a.tgz": tar(files, "w:gz")},
    )
    found = {
        load(str(tmp_path / name)).fingerprint() for name in ("insects.zip", "insects.tar", "a.tgz")
    }
    with tarfile.open(tmp_path / "insects.tar") as content:
        content.extractall(tmp_path, filter="data")
    assert found == {load(str(tmp_path / "insects")).fingerprint()}


def test_hidden_files_are_no_images(tmp_path: Path):
    files = {f"{kind}/{i}.png": picture(i) for kind in ("ants", "bees") for i in range(10)}
    written(tmp_path, {"a.zip": zipped(files)})
    hidden = dict.fromkeys(("__MACOSX/ants/._1.png", "ants/._1.png", ".git/1.png"), b"no")
    written(tmp_path, {"b.zip": zipped({**files, **hidden}), "c.tar": tar({**hidden, **files})})
    written(tmp_path / "d", {**files, "ants/._1.png": b"no", ".git/1.png": b"no"})
    names = ("a.zip", "b.zip", "c.tar", "d")
    found = [load(str(tmp_path / name)) for name in names]
    assert len({data.fingerprint() for data in found}) == 1
    said = [f"{tmp_path}/{name}/__MACOSX is left out" for name in names[1:3]]
    assert [list(data.notes) for data in found] == [[], said[:1], said[1:], []]


def test_photographs_are_decoded_with_a_margin_at_the_size_asked_for(tmp_path: Path):
    written(tmp_path / "flowers102", originals.flowers102())
    for size, stored in ((None, 256), (224, 256), (260, 297), (96, 110), (64, 64)):
        data = load("flowers102", tmp_path, size=size)
        assert data.train_images.shape[2:] == data.test_images.shape[2:] == (stored, stored)
        assert data.size == (size or 224)
        assert data.margin == stored - data.size


def test_images_that_have_a_size_keep_it(tmp_path: Path):
    written(tmp_path / "cifar10", originals.cifar10())
    data = load("cifar10", tmp_path, size=224)
    assert (data.size, data.margin) == (32, 0)


def test_the_answers_of_the_other_copy_of_imagenet_are_understood(tmp_path: Path):
    files = {
        f"ILSVRC/Data/CLS-LOC/train/{wnid}/{i}.JPEG": picture(10 * k + i)
        for k, wnid in enumerate(WNIDS[:2], 1)
        for i in range(2)
    }
    files |= {
        f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_0000000{i}.JPEG": picture(50 + i) for i in (1, 2)
    }
    answers = (f"ILSVRC2012_val_0000000{i},{WNIDS[2 - i]} 1 2 3 4" for i in (2, 1))
    files["LOC_val_solution.csv"] = lines("ImageId,PredictionString", *answers)
    written(tmp_path / "imagenet", files)
    _, test = shades(load("imagenet", tmp_path, size=32))
    assert test == [(51, WNIDS[1]), (52, WNIDS[0])]


def test_renditions_are_only_there_to_be_tested_on(tmp_path: Path):
    files = {f"imagenet-r/{wnid}/{i}.jpg": picture(i) for wnid in WNIDS[5:7] for i in (1, 2)}
    written(tmp_path / "imagenet-r", {"imagenet-r.tar": tar(files)})
    data = load("imagenet-r", tmp_path, size=32)
    assert data.classes == WNIDS[5:7]
    assert shades(data) == ([], [(i, wnid) for wnid in WNIDS[5:7] for i in (1, 2)])


def test_a_file_in_a_tar_is_fetched_when_it_is_wanted(tmp_path: Path):
    written(
        tmp_path, {"a.tar": tar({"inner.tar": tar({"b/one": b"1", "b/two": b"22"}), "c": b"333"})}
    )
    tree = Tree.of(tmp_path / "a.tar")
    assert {name: file.read() for name, file in tree.files.items()} == {
        "inner/b/one": b"1",
        "inner/b/two": b"22",
        "c": b"333",
    }
    assert tree.folders == {"inner", "inner/b"}
    assert tree["two"].read() == b"22"
    assert "b/one" in tree.below("inner").files


def test_a_file_that_is_twice_in_a_tar_is_found_twice(tmp_path: Path):
    link = tarfile.TarInfo("./b/two")
    link.type, link.linkname = tarfile.LNKTYPE, "./b/one"
    path = written(tmp_path, {"a.tar": tar({"b/one": b"1"})}) / "a.tar"
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    assert {name: file.read() for name, file in Tree.of(path).files.items()} == {
        "b/one": b"1",
        "b/two": b"1",
    }
    link.linkname = "c"
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    with pytest.raises(InputError, match=r"b/two is a link to c, which is no file before it: un"):
        Tree.of(path)


@pytest.mark.parametrize(
    "local, central, value, said",
    [
        (6, 8, 1, r"a\.zip:b is encrypted: unpack the archive"),
        (8, 10, 99, r"a\.zip:b cannot be read \(.*compression.*\): unpack the archive"),
    ],
    ids=["encrypted", "unknown compression"],
)
def test_a_zip_that_python_cannot_unpack_is_one_line(
    tmp_path: Path, local: int, central: int, value: int, said: str
):
    content = bytearray(zipped({"b": b"1"}))
    content[local] = value
    content[content.index(b"PK\x01\x02") + central] = value
    written(tmp_path, {"a.zip": bytes(content)})
    with pytest.raises(InputError, match=said) as caught:
        Tree.of(tmp_path)["b"].read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "links, more",
    [
        ({"cat/self": "."}, set()),
        ({"cat/loop": ".."}, set()),
        ({"cat/above": "../.."}, {"cat/above/elsewhere/3"}),
        ({"cat/dog": "../dog", "dog/cat": "../cat"}, {"cat/dog/2", "dog/cat/1"}),
        ({"owl": "../elsewhere"}, {"owl/3"}),
    ],
    ids=["itself", "the folder above", "above all", "two links", "elsewhere"],
)
def test_links_are_followed_but_not_back(tmp_path: Path, links: dict[str, str], more: set[str]):
    place = written(tmp_path / "place", {"cat/1": b"", "dog/2": b""})
    written(tmp_path / "elsewhere", {"3": b""})
    for name, target in links.items():
        (place / name).symlink_to(target)
    tree = Tree.of(place)
    assert set(tree.files) == {"cat/1", "dog/2"} | more
    assert not tree.folders & {"cat/self", "cat/loop", "cat/above/place", "cat/dog/cat"}


def test_the_outermost_of_several_files_counts(tmp_path: Path):
    written(tmp_path, {"x/y/name": b"deep", "x/name": b"higher", "x/surname": b"another"})
    tree = Tree.of(tmp_path)
    assert tree["name"].read() == b"higher"
    assert tree.get("me") is None


def test_a_compressed_archive_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path / "food101", originals.food101())
    monkeypatch.setenv("FLATMIN_MEMORY", "1K")
    with pytest.raises(
        InputError, match=r"food-101.tar.gz holds more than the 1 KiB .*: unpack it"
    ):
        load("food101", tmp_path)


def test_idx_files_may_be_compressed_or_not(tmp_path: Path):
    files = dict(originals.mnist())
    before = load("mnist", written(tmp_path / "a" / "mnist", files).parent).fingerprint()
    plain = {
        name.removesuffix(".gz"): gzip.decompress(content) if name.endswith(".gz") else content
        for name, content in files.items()
    }
    assert load("mnist", written(tmp_path / "b" / "mnist", plain).parent).fingerprint() == before


def test_imagenet_has_a_thousand_classes():
    assert len(WNIDS) == len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert torch.tensor([len(wnid) for wnid in WNIDS]).unique().tolist() == [9]


def mini(tmp_path: Path, form: str) -> ImageData:
    """Mini-ImageNet with one class to validate on, in one of its forms."""
    folder = tmp_path / "mini-imagenet"
    if form == "csv":
        written(folder, originals.mini_imagenet())
    elif form == "folders":
        classes = {"train": ("a", "b"), "val": ("c", "d"), "test": ("e", "f")}
        written(
            folder,
            {
                f"{part}/{name}/{i}.png": picture(10)
                for part, names in classes.items()
                for name in names
                for i in range(2)
            },
        )
    else:
        names = list("abcdef")
        for start, part in enumerate(("train", "validation", "test")):
            shown = [pictures.encoded(pictures.picture(10))] * 4
            at = [2 * start, 2 * start, 2 * start + 1, 2 * start + 1]
            pictures.write_parquet(folder / f"{part}.parquet", shown, at, names)
    return load("mini-imagenet", tmp_path)


@pytest.mark.parametrize("form", ("csv", "folders", "parquet"))
def test_mini_imagenet_keeps_its_classes_to_validate_on(form: str, tmp_path: Path):
    data = mini(tmp_path, form)
    assert data.validation == (("n0085",) if form == "csv" else ("c", "d"))
    trained = {data.classes[label] for label in data.train_labels}
    tested = {data.classes[label] for label in data.test_labels}
    assert set(data.validation) < trained
    assert trained | tested == set(data.classes)
    assert not trained & tested


def test_mini_imagenet_without_them_is_read_as_before(tmp_path: Path):
    files = originals.mini_imagenet()
    del files["val.csv"]
    written(tmp_path / "mini-imagenet", files)
    data = load("mini-imagenet", tmp_path)
    assert data.validation == ()
    assert data.classes == ("n0153", "n0174", "n0999")
