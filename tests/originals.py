"""Tiny data sets in the layouts in which their authors give them away."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from flatmin.training.data.wnids import WNIDS

Files = Mapping[str, bytes]
"""Contents by path."""


def picture(shade: int, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An image of one colour, whose red tells which it is."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(stream, kind)
    return stream.getvalue()


def matlab(**content: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, content)
    return stream.getvalue()


def lines(*content: object) -> bytes:
    return "".join(f"{line}\n" for line in content).encode()


def tar(files: Files, mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # pyright: ignore[reportCallIssue]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def written(folder: Path, files: Files) -> Path:
    """The folder, with these files in it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def batch(first: int, count: int, labels: bytes, classes: int) -> bytes:
    pixels = np.zeros((count, 3, 1024), np.uint8)
    pixels[:, 0] = np.arange(first, first + count)[:, None]
    answers = [(first + row) % classes for row in range(count)]
    return pickle.dumps({b"data": pixels.reshape(count, 3072), labels: answers}, protocol=2)


def rows(first: int, count: int, labels: int, classes: int) -> bytes:
    """As in the binary archives: labels, the fine one last, then the pixels, image by image."""
    made = np.zeros((count, labels + 3072), np.uint8)
    numbers = np.arange(first, first + count)
    made[:, labels - 1] = numbers % classes
    made[:, labels : labels + 1024] = numbers[:, None]
    return made.tobytes()


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def cifar10() -> Files:
    names = [b"plane", b"car"]
    files = {f"data_batch_{i}": batch(4 * i, 4, b"labels", 2) for i in range(1, 6)}
    files |= {"test_batch": batch(40, 3, b"labels", 2)}
    files |= {"batches.meta": pickle.dumps({b"label_names": names}, protocol=2)}
    files = {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
    return {"cifar-10-python.tar.gz": tar(files, "w:gz")}


def cifar10_binary() -> Files:
    files = {f"data_batch_{i}.bin": rows(4 * i, 4, 1, 2) for i in range(1, 6)}
    files |= {"test_batch.bin": rows(40, 3, 1, 2), "batches.meta.txt": lines("plane", "car", "")}
    files = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
    return {"cifar-10-binary.tar.gz": tar(files, "w:gz")}


def cifar100() -> Files:
    files = {"train": batch(4, 20, b"fine_labels", 2), "test": batch(40, 3, b"fine_labels", 2)}
    files |= {"meta": pickle.dumps({b"fine_label_names": [b"plane", b"car"]}, protocol=2)}
    files = {f"cifar-100-python/{name}": content for name, content in files.items()}
    return {"cifar-100-python.tar.gz": tar(files, "w:gz")}


def cifar100_binary() -> Files:
    files = {"train.bin": rows(4, 20, 2, 2), "test.bin": rows(40, 3, 2, 2)}
    files |= {"fine_label_names.txt": lines("plane", "car")}
    files = {f"cifar-100-binary/{name}": content for name, content in files.items()}
    return {"cifar-100-binary.tar.gz": tar(files, "w:gz")}


def mnist() -> Files:
    def part(numbers: range) -> tuple[bytes, bytes]:
        shades = np.array(numbers)
        return idx(np.broadcast_to(shades[:, None, None], (len(shades), 28, 28))), idx(shades % 2)

    train, test = part(range(4, 24)), part(range(40, 43))
    return {
        "train-images-idx3-ubyte.gz": gzip.compress(train[0]),
        "train-labels-idx1-ubyte.gz": gzip.compress(train[1]),
        "t10k-images-idx3-ubyte": test[0],
        "t10k-labels.idx1-ubyte": test[1],
    }


def numbered(folder: str, digits: int, count: int) -> Files:
    return {
        f"{folder}/image_{i:0{digits}d}.jpg": picture(i, kind="JPEG") for i in range(1, count + 1)
    }


def flowers102() -> Files:
    splits = {"trnid": [[3, 6]], "valid": [[1, 2]], "tstid": [[4, 5, 7]]}
    return {
        "102flowers.tgz": tar(numbered("jpg", 5, 7), "w:gz"),
        "imagelabels.mat": matlab(labels=np.array([[1, 1, 1, 1, 2, 2, 2]], np.uint8)),
        "setid.mat": matlab(**{name: np.array(ids, np.uint16) for name, ids in splits.items()}),
    }


def flowers17() -> Files:
    splits = {"trn1": [[3, 86]], "val1": [[7]], "tst1": [[84, 5]]}
    return {
        "17flowers.tgz": tar(numbered("jpg", 4, 90), "w:gz"),
        "datasplits.mat": matlab(**{name: np.array(ids) for name, ids in splits.items()}),
    }


def pets() -> Files:
    images = {
        f"images/{name}.jpg": picture(shade, kind="JPEG")
        for name, shade in (("Abyssinian_1", 10), ("great_pyrenees_7", 20), ("Abyssinian_2", 30))
    }
    annotations = {
        "annotations/trainval.txt": lines("Abyssinian_1 1 1 1", "great_pyrenees_7 2 2 1"),
        "annotations/test.txt": lines("Abyssinian_2 1 1 1"),
        "annotations/trimaps/._Abyssinian_1.png": b"not an image",
    }
    return {
        "images.tar.gz": tar(images, "w:gz"),
        "annotations.tar.gz": tar(annotations, "w:gz"),
    }


def aircraft() -> Files:
    images = {
        f"images/{name}.jpg": picture(int(name), kind="JPEG") for name in ("010", "020", "030")
    }
    lists = {
        "images_variant_trainval.txt": lines("010 707-320", "020 Cessna 172"),
        "images_variant_test.txt": lines("030 707-320"),
    }
    files = {f"fgvc-aircraft-2013b/data/{path}": made for path, made in (images | lists).items()}
    return {"fgvc-aircraft-2013b.tar.gz": tar(files, "w:gz")}


def cars() -> Files:
    kind = [("class", object), ("fname", object)]

    def annotations(*pairs: tuple[int, str]) -> bytes:
        return matlab(annotations=np.array([list(pairs)], dtype=kind))

    names = np.array([["Acura RL", "Volvo C30"]], dtype=object)
    devkit = {
        "devkit/cars_meta.mat": matlab(class_names=names),
        "devkit/cars_train_annos.mat": annotations((2, "00001.jpg"), (1, "00002.jpg")),
    }
    shades = {"cars_train": (10, 20), "cars_test": (30, 40)}
    images = {
        part: {f"{part}/{i:05d}.jpg": picture(s, kind="JPEG") for i, s in enumerate(shade, 1)}
        for part, shade in shades.items()
    }
    return {
        **{f"{part}.tgz": tar(files, "w:gz") for part, files in images.items()},
        "car_devkit.tgz": tar(devkit, "w:gz"),
        "cars_test_annos_withlabels.mat": annotations((1, "00001.jpg"), (2, "00002.jpg")),
    }


def food101() -> Files:
    named = {"apple_pie/1": 10, "waffles/2": 20, "waffles/3": 30}
    files = {f"food-101/images/{name}.jpg": picture(s, kind="JPEG") for name, s in named.items()}
    files |= {
        "food-101/meta/train.txt": lines("apple_pie/1", "waffles/2"),
        "food-101/meta/test.txt": lines("waffles/3"),
    }
    return {"food-101.tar.gz": tar(files, "w:gz")}


def country211() -> Files:
    parts = {"train": 10, "valid": 100, "test": 50}
    files = {
        f"country211/{part}/{country}/{i}.jpg": picture(first + 10 * place + i, kind="JPEG")
        for part, first in parts.items()
        for place, country in enumerate(("AD", "FR", "ZW"))
        for i in range(2)
    }
    return {"country211.tgz": tar(files, "w:gz")}


def imagenet() -> Files:
    """Two classes: a .tar of .tars to train on, flat images to test on, answers in the devkit."""
    used = (WNIDS[7], WNIDS[3])
    synsets = np.array(
        [[(1, used[0]), (2, used[1]), (3, "n00001740")]],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object)],
    )
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": matlab(synsets=synsets),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines(2, 1, 1),
    }
    train = {
        f"{wnid}.tar": tar({f"{wnid}_{i}.JPEG": picture(10 * k + i, kind="JPEG") for i in range(2)})
        for k, wnid in enumerate(used, 1)
    }
    validation = {
        f"ILSVRC2012_val_0000000{i}.JPEG": picture(50 + i, kind="JPEG") for i in (1, 2, 3)
    }
    return {
        "ILSVRC2012_img_train.tar": tar(train),
        "ILSVRC2012_img_val.tar": tar(validation),
        "ILSVRC2012_devkit_t12.tar.gz": tar(devkit, "w:gz"),
    }


def imagenet_folders() -> Files:
    return {
        f"{part}/{wnid}/{i}.JPEG": picture(first + 10 * k + i, kind="JPEG")
        for part, first in (("train", 10), ("val", 50))
        for k, wnid in enumerate((WNIDS[3], WNIDS[7]))
        for i in range(2)
    }


def omniglot() -> Files:
    def drawings(part: str, alphabet: str, first: int) -> Files:
        return {
            f"{part}/{alphabet}/character0{c}/{c}_{i}.png": picture(first + 10 * c + i, (105, 105))
            for c in (1, 2)
            for i in range(2)
        }

    return {
        "images_background.zip": zipped(drawings("images_background", "Greek", 0)),
        "images_evaluation.zip": zipped(drawings("images_evaluation", "Tagalog", 50)),
    }


def mini_imagenet() -> Files:
    named = {"n01.jpg": 10, "n02.jpg": 20, "n03.jpg": 30, "n04.jpg": 40}
    return {
        "images.zip": zipped({f"images/{name}": picture(s) for name, s in named.items()}),
        "train.csv": lines("filename,label", "n01.jpg,n0153", "n02.jpg,n0174"),
        "val.csv": lines("filename,label", "n04.jpg,n0085"),
        "test.csv": lines("filename,label", "n03.jpg,n0999"),
    }


Expected = tuple[tuple[str, ...], list[tuple[int, str]], list[tuple[int, str]]]
"""Classes, then shade and class of every image to train on and to test on."""

WITH_TWO = ("plane", "car")
CIFAR: Expected = (
    WITH_TWO,
    [(shade, WITH_TWO[shade % 2]) for shade in range(4, 24)],
    [(shade, WITH_TWO[shade % 2]) for shade in range(40, 43)],
)

sets: Mapping[str, tuple[str, Callable[[], Files], Expected]] = {
    "cifar10-python": ("cifar10", cifar10, CIFAR),
    "cifar10-binary": ("cifar10", cifar10_binary, CIFAR),
    "cifar100-python": ("cifar100", cifar100, CIFAR),
    "cifar100-binary": ("cifar100", cifar100_binary, CIFAR),
    "mnist": (
        "mnist",
        mnist,
        (
            tuple("0123456789"),
            [(shade, str(shade % 2)) for shade in range(4, 24)],
            [(shade, str(shade % 2)) for shade in range(40, 43)],
        ),
    ),
    "flowers17": (
        "flowers17",
        flowers17,
        (
            tuple(str(i) for i in range(1, 18)),
            [(3, "1"), (86, "2"), (7, "1")],
            [(84, "2"), (5, "1")],
        ),
    ),
    "flowers102": (
        "flowers102",
        flowers102,
        (("1", "2"), [(3, "1"), (6, "2")], [(4, "1"), (5, "2"), (7, "2")]),
    ),
    "pets": (
        "pets",
        pets,
        (
            ("Abyssinian", "great_pyrenees"),
            [(10, "Abyssinian"), (20, "great_pyrenees")],
            [(30, "Abyssinian")],
        ),
    ),
    "aircraft": (
        "aircraft",
        aircraft,
        (("707-320", "Cessna 172"), [(10, "707-320"), (20, "Cessna 172")], [(30, "707-320")]),
    ),
    "cars": (
        "cars",
        cars,
        (
            ("Acura RL", "Volvo C30"),
            [(10, "Volvo C30"), (20, "Acura RL")],
            [(30, "Acura RL"), (40, "Volvo C30")],
        ),
    ),
    "food101": (
        "food101",
        food101,
        (("apple_pie", "waffles"), [(10, "apple_pie"), (20, "waffles")], [(30, "waffles")]),
    ),
    "country211": (
        "country211",
        country211,
        (
            ("AD", "FR", "ZW"),
            [(10 + 10 * k + i, name) for k, name in enumerate(("AD", "FR", "ZW")) for i in (0, 1)],
            [(50 + 10 * k + i, name) for k, name in enumerate(("AD", "FR", "ZW")) for i in (0, 1)],
        ),
    ),
    "imagenet": (
        "imagenet",
        imagenet,
        (
            WNIDS,
            [(20, WNIDS[3]), (21, WNIDS[3]), (10, WNIDS[7]), (11, WNIDS[7])],
            [(51, WNIDS[3]), (52, WNIDS[7]), (53, WNIDS[7])],
        ),
    ),
    "imagenet-folders": (
        "imagenet",
        imagenet_folders,
        (
            WNIDS,
            [(10, WNIDS[3]), (11, WNIDS[3]), (20, WNIDS[7]), (21, WNIDS[7])],
            [(50, WNIDS[3]), (51, WNIDS[3]), (60, WNIDS[7]), (61, WNIDS[7])],
        ),
    ),
    "omniglot": (
        "omniglot",
        omniglot,
        (
            (
                *(f"Greek/character0{c}" for c in (1, 2)),
                *(f"Tagalog/character0{c}" for c in (1, 2)),
            ),
            [(10 * c + i, f"Greek/character0{c}") for c in (1, 2) for i in range(2)],
            [(50 + 10 * c + i, f"Tagalog/character0{c}") for c in (1, 2) for i in range(2)],
        ),
    ),
    "mini-imagenet": (
        "mini-imagenet",
        mini_imagenet,
        (
            ("n0085", "n0153", "n0174", "n0999"),
            [(10, "n0153"), (20, "n0174"), (40, "n0085")],
            [(30, "n0999")],
        ),
    ),
}
"""By what is there: the name of the set, its files, and what they hold."""
