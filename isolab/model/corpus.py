r"""Corpora: arrays of tokens to train on, and batches and windows drawn from them.

The default corpus needs no download: the running interpreter's own standard library, as bytes.
Others are any text file or folder, a Hugging Face dataset, and the synthetic language of
:mod:`isolab.model.markov`, whose entropy rate is known, so that a loss reads as entropy plus
divergence.

Tokens are bytes (uint8), so no corpus has more than 256 of them. A run puts ``Corpus.train`` on
the device once and draws its batches inside the compiled step with :func:`sample_batch`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sysconfig
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from isolab.model.markov import entropy_rate, sample_markov, zipf_transitions

Tokens: TypeAlias = npt.NDArray[np.uint8]
# Relative POSIX path, size in bytes and time of modification: enough to notice a change.
SourceFile: TypeAlias = tuple[str, int, int]

VALIDATION_SHARE: Final = 10  # one byte in ten
HUB_BYTES: Final = 2**28  # a Hugging Face dataset is read up to 256 MiB of text
_ZIPF_MARKOV: Final = {  # default, lowest, highest
    "vocab_size": (64, 2, 256),
    "exponent": (1.0, 0, 8),
    "seed": (0, 0, 2**63),
    "length": (4_000_000, VALIDATION_SHARE, 2**31 - 1),
}
# Of the standard library: tests, vendored packages, the reference manual that pydoc prints (one
# file of 6% of all bytes, and no code), and what belongs to one machine only.
_SKIPPED: Final = (
    *("test", "tests", "*_test", "turtledemo"),
    *("site-packages", "dist-packages", "_bundled", "_vendor", "pip"),
    *("pydoc_data", "config-*", "lib-dynload"),
    *("_sysconfigdata*", "sitecustomize*", "usercustomize*"),
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to train on and tokens held out; two are equal when their fingerprints are.

    Args:
        name: what it is, for a chart's caption.
        train: (N,) uint8, read-only.
        validation: (M,) uint8, read-only, from files (or a part of the one file) not in train.
        vocab_size: every token is below it; 256 for text.
        entropy_rate: nats per token where it is known, else None.
        fingerprint: SHA-256 of vocab_size, train and validation, in hex. Computed.

    Raises:
        ValueError: train or validation is empty, no (N,) uint8, or holds a token too high.
    """

    name: str
    train: Tokens
    validation: Tokens
    vocab_size: int
    entropy_rate: float | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.vocab_size} {self.train.size}\n".encode())
        for part in ("train", "validation"):
            tokens = getattr(self, part).view()
            if tokens.dtype != np.uint8 or tokens.ndim != 1:
                raise ValueError(
                    f"{part} of corpus {self.name!r} must be (N,) uint8, got {tokens.shape} "
                    f"{tokens.dtype}"
                )
            if tokens.size == 0:
                raise ValueError(f"corpus {self.name!r} is empty: it has no {part} tokens")
            if tokens.max() >= self.vocab_size:
                raise ValueError(
                    f"{part} of corpus {self.name!r} holds token {tokens.max()}, allowed are "
                    f"those below vocab_size = {self.vocab_size}"
                )
            tokens.setflags(write=False)
            object.__setattr__(self, part, tokens)
            digest.update(tokens.tobytes())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Corpus) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def load_corpus(source: str | Path = "stdlib") -> Corpus:
    """Returns a corpus by name or by path; the same source is read once in a process.

    Args:
        source: one of

            - ``"stdlib"``: the interpreter's own library, without tests and vendored packages,
              about a tenth of its bytes held out by file.
            - ``"zipf_markov"`` or, say, ``"zipf_markov:vocab_size=64,exponent=1.0,seed=0"``: the
              synthetic language of :mod:`isolab.model.markov`, ``length`` tokens of one chain,
              whose last tenth is held out.
            - a folder: every file in it that is not hidden, split by file as above.
            - a text file: its last tenth is held out.
            - ``"hub:NAME"`` or ``"hub:NAME:CONFIG"``: the ``text`` column of a Hugging Face
              dataset, its first 256 MiB; held out is its validation or test split, else the last
              tenth. Needs the extra ``isolab[hub]``.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the corpus is empty, a file is not UTF-8 text, or an option is wrong.
        ImportError: the extra is not installed.

    Example:
        >>> corpus = load_corpus("zipf_markov:vocab_size=8,length=1000")
        >>> corpus.train.size, corpus.validation.size, round(corpus.entropy_rate, 3)
        (900, 100, 1.816)
    """
    kind, _, options = source.partition(":") if isinstance(source, str) else ("", "", "")
    if source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = _folder_files(root, _SKIPPED)
        return _from_files("stdlib", root, tuple(f for f in files if f[0].endswith(".py")))
    if kind == "zipf_markov":
        return _zipf_markov(options)
    if kind == "hub":
        return _from_hub(options)
    path = Path(source).expanduser().resolve()
    if path.is_dir():
        return _from_files(path.name, path, _folder_files(path))
    if path.is_file():
        return _from_files(path.name, path.parent, (_stat(path, path.parent),))
    raise FileNotFoundError(
        f"no corpus, file or folder {str(source)!r}; allowed: 'stdlib', 'zipf_markov[:options]', "
        "'hub:NAME' or the path of a text file or folder"
    )


def sample_batch(
    tokens: jax.Array, key: jax.Array, batch_size: int, context: int
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets of windows that start anywhere with equal probability.

    Safe under ``jit`` and ``vmap``; mapped over keys, all draws read the one token array.

    Args:
        tokens: (N,) of any integer dtype, on the device.
        key: a random key.
        batch_size: B.
        context: L.

    Returns:
        Inputs and targets, both (B, L) int32; targets are the inputs one token later.

    Raises:
        ValueError: tokens are fewer than L + 1.
    """
    starts = _count_starts(tokens.shape[0], context, "training")
    starts_B = jax.random.randint(key, (batch_size,), 0, starts)

    window = functools.partial(jax.lax.dynamic_slice_in_dim, tokens, slice_size=context + 1)
    windows_BxL1 = jax.vmap(window)(starts_B).astype(jnp.int32)
    return windows_BxL1[:, :-1], windows_BxL1[:, 1:]


def validation_windows(
    corpus: Corpus, count: int, context: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Returns evenly spaced windows of the held-out tokens, the same in every run.

    They do not overlap where ``count * (context + 1)`` tokens are held out; with fewer, they do.

    Returns:
        Inputs and targets, both (count, context) int32; targets are the inputs one token later.

    Raises:
        ValueError: count is not positive or the held-out tokens are fewer than context + 1.
    """
    if count < 1:
        raise ValueError(f"count of validation windows must be at least 1, got {count}")
    starts = _count_starts(corpus.validation.size, context, "validation")
    first = np.arange(count) * (starts - 1) // max(count - 1, 1)
    windows = corpus.validation[first[:, None] + np.arange(context + 1)[None, :]].astype(np.int32)
    return windows[:, :-1], windows[:, 1:]


def _count_starts(length: int, context: int, part: str) -> int:
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    if length < context + 1:
        raise ValueError(
            f"the {part} part of the corpus has {length} tokens, fewer than context + 1 = "
            f"{context + 1}: take a shorter context or a longer corpus"
        )
    return length - context


def _zipf_markov(options: str) -> Corpus:
    """Returns the corpus of a ``zipf_markov:...`` source."""
    chosen: dict[str, int | float] = {name: default for name, (default, *_) in _ZIPF_MARKOV.items()}
    for option in filter(None, options.split(",")):
        name, _, text = option.partition("=")
        if name not in chosen:
            raise ValueError(f"unknown option {name!r} of zipf_markov; known: {sorted(chosen)}")
        default, low, high = _ZIPF_MARKOV[name]
        kind = type(default)
        try:
            chosen[name] = kind(text)
        except ValueError:
            raise ValueError(
                f"option {name} of zipf_markov must be {kind.__name__}, got {text!r}"
            ) from None
        if not low <= chosen[name] <= high:
            raise ValueError(
                f"option {name} of zipf_markov must lie in [{low}, {high}], got {chosen[name]}"
            )
    return _sampled(**chosen)


@functools.lru_cache(maxsize=4)
def _sampled(*, vocab_size: int, exponent: float, seed: int, length: int) -> Corpus:
    transitions = zipf_transitions(vocab_size, exponent, seed)
    tokens = sample_markov(transitions, length, np.random.default_rng([seed, 1]))
    name = f"zipf_markov:vocab_size={vocab_size},exponent={exponent},seed={seed},length={length}"
    return Corpus(name, *_split_tail(tokens), vocab_size, entropy_rate(transitions))


@functools.lru_cache(maxsize=4)
def _from_files(name: str, root: Path, files: tuple[SourceFile, ...]) -> Corpus:
    """Returns the corpus of these files; the tuple tells the memo when one of them changed."""
    if sum(size for _, size, _ in files) == 0:
        raise ValueError(f"corpus {name!r} is empty: no text in its {len(files)} files")
    if len(files) == 1:
        return Corpus(name, *_split_tail(_read_text(root / files[0][0])), 256)
    held_out = _held_out(files)
    texts = {relative: _read_text(root / relative) for relative, _, _ in files}
    train = [text for relative, text in texts.items() if relative not in held_out]
    validation = [text for relative, text in texts.items() if relative in held_out]
    return Corpus(name, np.concatenate(train), np.concatenate(validation), 256)


def _held_out(files: tuple[SourceFile, ...]) -> set[str]:
    """Returns the files of the validation part, drawn by a hash of their relative paths.

    In the order of the hashes every file joins that fits within a tenth of all bytes; where none
    fits, the smallest file that is not empty.
    """
    sized = [(relative, size) for relative, size, _ in files if size > 0]
    room = sum(size for _, size in sized) // VALIDATION_SHARE
    chosen: set[str] = set()
    for relative, size in sorted(sized, key=lambda f: hashlib.sha256(f[0].encode()).digest()):
        if size <= room:
            chosen.add(relative)
            room -= size
    return chosen or {min(sized, key=lambda f: (f[1], f[0]))[0]}


def _split_tail(tokens: Tokens) -> tuple[Tokens, Tokens]:
    held_out = tokens.size // VALIDATION_SHARE
    return tokens[: tokens.size - held_out], tokens[tokens.size - held_out :]


def _read_text(path: Path) -> Tokens:
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"not text: {path} holds NUL bytes")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text: {path} is not UTF-8 at byte {error.start}") from None
    return np.frombuffer(content, dtype=np.uint8)


def _stat(path: Path, root: Path) -> SourceFile:
    status = path.stat()
    return path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns


def _folder_files(root: Path, skipped: tuple[str, ...] = ()) -> tuple[SourceFile, ...]:
    """Returns the files under a folder that are not hidden, sorted by relative POSIX path.

    Skipped are files and folders whose own name matches a pattern, as in a shell.
    """
    files, patterns = [], (".*", "__pycache__", *skipped)
    for folder, subfolders, names in os.walk(root):
        subfolders[:], names = (
            [name for name in listed if not any(fnmatchcase(name, p) for p in patterns)]
            for listed in (subfolders, names)
        )
        files += [_stat(path, root) for name in names if (path := Path(folder, name)).is_file()]
    return tuple(sorted(files))


@functools.lru_cache(maxsize=2)
def _from_hub(options: str) -> Corpus:
    name, _, config = options.partition(":")
    if not name:
        raise ValueError("a hub corpus needs a dataset's name: 'hub:NAME' or 'hub:NAME:CONFIG'")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ImportError(
            f"corpus 'hub:{name}' needs Hugging Face datasets: pip install 'isolab[hub]'"
        ) from None
    splits = datasets.load_dataset(name, config or None)
    if "train" not in splits or "text" not in splits["train"].column_names:
        raise ValueError(f"dataset {name!r} has no column 'text' in a split 'train'")

    def read(split: str) -> Tokens:
        content, size = [], 0
        for row in splits[split]:
            if size >= HUB_BYTES:
                break
            content.append((row["text"] + "\n").encode())
            size += len(content[-1])
        return np.frombuffer(b"".join(content), dtype=np.uint8)

    held_out = next((split for split in ("validation", "test") if split in splits), None)
    train = read("train")
    parts = _split_tail(train) if held_out is None else (train, read(held_out))
    return Corpus(name, *parts, 256)
