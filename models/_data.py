"""Real data for the zoo's recipes: what comes with Python and scikit-learn, and public data sets where they are.

Splits are fixed: recipes train, calibrate and take samples from the training part, and judge on the test part. The
public sets (MNIST, CIFAR-10, Speech Commands) are found in the folder that EDGEKIT_DATA names, else in
`../shared/data` beside the checkout; their functions return None where they are absent. `_scenes.py` composes scenes
of the digits.
"""

from __future__ import annotations

import ast
import gzip
import io
import os
import sysconfig
import tarfile
import wave
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from edgekit import ImagePreprocess

TEST_DIGITS = 600
DIGITS = ImagePreprocess(height=32, width=32, color="L", mean=(0.5,), std=(0.5,))
"""The usual form of a digit: (1, 32, 32), -1 is background and 1 is ink."""


class Split(NamedTuple):
    """Training inputs and labels, test inputs and labels."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def data_folder() -> Path | None:
    """The folder of public data sets, or None: EDGEKIT_DATA, else ../shared/data beside the checkout."""
    given = os.environ.get("EDGEKIT_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


def public(name: str) -> Path | None:
    """The file or folder of a public data set, or None where it is absent."""
    folder = data_folder()
    return folder / name if folder is not None and (folder / name).exists() else None


def _sklearn(name: str) -> Path:
    """A file where scikit-learn keeps its data; importing the library would take longer than everything else here."""
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ModuleNotFoundError("the digits and photographs come with scikit-learn: pip install scikit-learn")
    return Path(sklearn.origin).parent / "datasets" / name


@cache
def digit_pictures() -> Split:
    """scikit-learn's 1,797 handwritten digits as uint8 (n, 8, 8), 0 is background; 600 of them are the test split."""
    table = np.loadtxt(_sklearn("data/digits.csv.gz"), delimiter=",", dtype=np.int64)
    labels = table[:, -1]
    pictures = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    test = np.zeros(len(labels), bool)
    test[np.random.default_rng(0).permutation(len(labels))[:TEST_DIGITS]] = True
    return Split(pictures[~test], labels[~test], pictures[test], labels[test])


@cache
def digits(preprocess: ImagePreprocess = DIGITS) -> Split:
    """scikit-learn's digits as `preprocess` makes a model's input of them: float32 (n, channels, height, width)."""
    split = digit_pictures()
    return split._replace(train=_prepared(split.train, preprocess), test=_prepared(split.test, preprocess))


def _prepared(pictures: np.ndarray, preprocess: ImagePreprocess) -> np.ndarray:
    return np.concatenate([preprocess.from_image(Image.fromarray(p)) for p in pictures])


MNIST = "data_mnist_t10k"


@cache
def mnist(preprocess: ImagePreprocess = DIGITS) -> Split | None:
    """MNIST's 10,000 test digits, of which the first 8,000 train here and the last 2,000 test."""
    folder = public(MNIST)
    if folder is None:
        return None
    pictures = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images, labels = _prepared(pictures.reshape(-1, 28, 28), preprocess), labels.astype(np.int64)
    return Split(images[:8000], labels[:8000], images[8000:], labels[8000:])


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@cache
def cifar10() -> Split | None:
    """CIFAR-10's photographs of ten classes, uint8 RGB (n, 32, 32, 3): 2,000 train, 500 test, as many of each class.

    Training takes 50 of each class from the set's training part and 150 from its test part: the machine has no more.
    """
    folder = public("data_cifar10_jpeg")
    if folder is None:
        return None
    kept: dict[bool, list[tuple[np.ndarray, int]]] = {False: [], True: []}
    number = [0] * len(CIFAR_CLASSES)
    for archive in ("train500.tar", "test2000.tar"):
        with tarfile.open(folder / archive) as tar:
            for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name):
                content = tar.extractfile(member)
                assert content is not None
                label = CIFAR_CLASSES.index(Path(member.name).parent.name)
                number[label] += 1
                pixels = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
                kept[number[label] > 200].append((pixels, label))
    return _split(kept)


def _split(parts: dict[bool, list[tuple[np.ndarray, int]]]) -> Split:
    """Inputs with their labels, those of the test part under True, as arrays."""
    train, test = parts[False], parts[True]
    return Split(
        np.stack([x for x, _ in train]), np.array([y for _, y in train]),
        np.stack([x for x, _ in test]), np.array([y for _, y in test]),
    )  # fmt: skip


SPEECH_CLASSES = ("_silence_", "_unknown_", "down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")


@cache
def speech_commands() -> Split | None:
    """One second recordings of twelve words, float32 (n, 16000) in -1..1 at 16 kHz: 15 of each train, 5 test."""
    folder = public("data_speech_commands_test240")
    if folder is None:
        return None
    parts: dict[bool, list[tuple[np.ndarray, int]]] = {False: [], True: []}
    for label, name in enumerate(SPEECH_CLASSES):
        for i, file in enumerate(sorted((folder / name).glob("*.wav"))):
            with wave.open(str(file)) as opened:
                signal = np.frombuffer(opened.readframes(16000), "<i2").astype(np.float32) / 32768
            parts[i % 4 == 3].append((np.pad(signal, (0, 16000 - len(signal))), label))
    return _split(parts)


@cache
def photographs() -> tuple[np.ndarray, ...]:
    """scikit-learn's two photographs, a temple and a flower, uint8 RGB (427, 640, 3)."""
    return tuple(np.asarray(Image.open(_sklearn(f"images/{n}.jpg")).convert("RGB")) for n in ("china", "flower"))


def photo_crops(n: int, seed: int, size: int = 32, *, test: bool = False) -> np.ndarray:
    """`n` square cuts of the photographs, uint8 RGB (n, size, size, 3): each of its own place, scale and side.

    The right third of the photographs is the test part; training never sees it.
    """
    random = np.random.default_rng((seed, test))
    out = np.empty((n, size, size, 3), np.uint8)
    for i in range(n):
        photo = photographs()[random.integers(2)]
        border = photo.shape[1] * 2 // 3
        part = photo[:, border:] if test else photo[:, :border]
        side = int(random.integers(min(size, 96), min(part.shape[:2]) + 1)) if size < 200 else min(part.shape[:2])
        y, x = (int(random.integers(0, length - side + 1)) for length in part.shape[:2])
        cut = Image.fromarray(part[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
        out[i] = np.asarray(cut)[:, :: -1 if random.random() < 0.5 else 1]
    return out


TEXT_MODULES = """
    abc argparse ast asyncio.base_events asyncio.queues asyncio.streams asyncio.tasks base64 bisect calendar cmd
    code codecs collections configparser contextlib copy csv dataclasses datetime decimal difflib dis doctest
    email.header email.message enum fileinput fnmatch fractions ftplib functools getopt getpass gettext glob gzip
    heapq hmac html.parser http.client http.cookiejar http.cookies http.server imaplib inspect ipaddress json
    keyword linecache locale logging logging.handlers mailbox mimetypes netrc numbers operator optparse os pathlib
    pdb pickle pickletools pkgutil platform poplib pprint profile pstats pyclbr pydoc queue quopri random reprlib
    sched secrets selectors shelve shlex shutil smtplib socket socketserver sqlite3.dbapi2 ssl stat statistics
    string stringprep subprocess symtable tarfile tempfile textwrap threading timeit tokenize trace traceback
    tracemalloc turtle types typing unittest.case unittest.mock urllib.parse urllib.request uuid warnings wave
    weakref webbrowser xml.dom.minidom xml.sax.handler xmlrpc.client zipapp zipfile
""".split()  # noqa: SIM905 - a list of literals would be five times as long
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""What the text is made of; everything else is left out of it."""


class Text(NamedTuple):
    """Plain text of CHARACTERS: one part to train on, one to test."""

    train: str
    test: str


def docstrings(module: str) -> list[str]:
    """Docstrings of a module of the standard library, from its source; none where this Python lacks it."""
    file = Path(sysconfig.get_path("stdlib")) / f"{module.replace('.', '/')}.py"
    file = file if file.is_file() else file.with_suffix("") / "__init__.py"
    if not file.is_file():
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, documented))
    return [d for node in nodes if (d := ast.get_docstring(node))]


@cache
def text() -> Text:
    """The documentation in the Python standard library's sources: docstrings, about 1 MB; every tenth module tests.

    It is the text of the Python that runs, so another release gives another text.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    for i, name in enumerate(TEXT_MODULES):
        parts[i % 10 == 9].extend(d.expandtabs() + "\n\n" for d in docstrings(name))
    known = set(CHARACTERS)
    return Text(*("".join(c for c in "".join(p) if c in known) for p in parts))


def characters(text: str) -> np.ndarray:
    """Text as int64 numbers of its characters, 0 to 95."""
    table = {c: i for i, c in enumerate(CHARACTERS)}
    return np.array([table[c] for c in text], np.int64)
