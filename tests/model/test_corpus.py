"""Where tokens come from, how they are split, and how batches are drawn from them."""

from __future__ import annotations

import hashlib
import re
import sys
import types
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from isolab.model import corpus as corpus_module
from isolab.model.corpus import Corpus, load_corpus, sample_batch, validation_windows


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for relative, content in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def text_of(tokens):
    return tokens.tobytes().decode()


def test_standard_library_is_large_text_with_a_tenth_held_out():
    corpus = load_corpus("stdlib")
    total = corpus.train.size + corpus.validation.size
    assert 5e6 < total < 5e7
    assert 0.099 < corpus.validation.size / total <= 0.1
    assert corpus.vocab_size == 256 and corpus.entropy_rate is None
    assert "class OrderedDict" in text_of(np.concatenate([corpus.train, corpus.validation]))


def test_standard_library_leaves_out_tests_and_vendored_folders(tmp_path, monkeypatch):
    left_out = [
        "test/a.py", "unittest/tests/a.py", "idlelib/idle_test/a.py", "lib2to3/tests/data/a.py",
        "ensurepip/_bundled/a.py", "site-packages/numpy/a.py", "dist-packages/a.py", "a.pyc",
        "importlib/_vendor/a.py", "pip/a.py", "turtledemo/a.py", "pydoc_data/topics.py",
        "__pycache__/a.py", "config-3.11-x86_64/a.py", ".hidden/a.py", ".hidden.py",
        "_sysconfigdata__linux.py", "sitecustomize.py", "LICENSE.txt",
    ]  # fmt: skip
    read = ["unittest/case.py", "testing.py", "json/decoder.py", "_vendored.py"]
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    write(tmp_path, {name: f"LEFT OUT {name}\n" for name in left_out})
    write(tmp_path, {name: f"READ {name}\n" for name in read})
    corpus = load_corpus("stdlib")
    text = text_of(corpus.train) + text_of(corpus.validation)
    assert sorted(text.splitlines()) == sorted(f"READ {name}" for name in read)
    assert load_corpus() is corpus


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=6), st.integers(0, 400), min_size=2, max_size=30
    ).filter(lambda sizes: sum(size > 0 for size in sizes.values()) > 1)
)
def test_every_file_is_in_exactly_one_part(tmp_path_factory, sizes):
    marks = {name: chr(0x100 + i) for i, name in enumerate(sorted(sizes))}
    root = tmp_path_factory.mktemp("folder")
    write(root, {name: marks[name] * size for name, size in sizes.items()})
    corpus = load_corpus(root)
    train, validation = text_of(corpus.train), text_of(corpus.validation)
    assert not set(train) & set(validation)
    for part in (train, validation):  # in the order of their names
        assert part == "".join(marks[n] * sizes[n] for n in sorted(sizes) if marks[n] in part)
    assert len(train) + len(validation) == sum(sizes.values())
    held_out = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert held_out <= 0.1 or len(set(validation)) == 1


def test_split_depends_on_names_alone_and_hidden_and_empty_files_do_not_count(tmp_path):
    files = {f"sub/{i}.txt": f"text {i}\n" * 20 for i in range(30)}
    more = {".DS_Store": b"\0", ".git/x": b"\0", "empty.txt": ""}
    first = load_corpus(write(tmp_path / "here", files))
    second = load_corpus(write(tmp_path / "there", dict(reversed(files.items())) | more))
    assert first == second and hash(first) == hash(second) and first is not second
    assert first.name == "here" and second.name == "there"
    two = load_corpus(write(tmp_path / "two", {"a.txt": "a" * 100, "b.txt": "b" * 10}))
    assert (text_of(two.train), text_of(two.validation)) == ("a" * 100, "b" * 10)


def test_single_files_tail_is_held_out_and_a_changed_file_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "".join(chr(ord("a") + i % 26) for i in range(1009))
    path = write(tmp_path, {"one.txt": text}) / "one.txt"
    for source in (path, str(path), path.parent / "." / "one.txt", "~/one.txt"):
        corpus = load_corpus(source)
        assert text_of(corpus.train) == text[:909] and text_of(corpus.validation) == text[909:]
        assert corpus.name == "one.txt" and corpus.vocab_size == 256
    assert load_corpus(path) is load_corpus(path)
    path.write_text("after it" * 10)
    assert text_of(load_corpus(path).train).startswith("after it")


def test_fingerprint_is_sha256_of_content_split_and_vocabulary():
    tokens = np.arange(100, dtype=np.uint8)
    corpora = [
        Corpus("a", tokens[:90], tokens[90:], 256),
        Corpus("a", tokens[:89], tokens[89:], 256),
        Corpus("a", tokens[:90], tokens[90:], 100),
        Corpus("a", tokens[:90], tokens[91:], 256),
        Corpus("a", tokens[:90][::-1], tokens[90:], 256),
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == len(set(corpora)) == 5
    assert corpora[0] == Corpus("another name", tokens[:90].copy(), tokens[90:], 256)
    tokens = np.frombuffer(b"trainval", np.uint8).copy()
    corpus = Corpus("a", tokens[:5], tokens[5:], 256)
    assert corpus.fingerprint == hashlib.sha256(b"256 5\ntrainval").hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1
    assert tokens.flags.writeable


def test_zipf_markov_options_are_used():
    source = "zipf_markov:vocab_size=12,exponent=2.0,seed=5,length=5000"
    corpus = load_corpus(source)
    assert (corpus.vocab_size, corpus.train.size, corpus.validation.size) == (12, 4500, 500)
    assert set(np.unique(corpus.train)) <= set(range(12))
    p = np.arange(1, 13) ** -2.0
    p /= p.sum()
    np.testing.assert_allclose(corpus.entropy_rate, -(p * np.log(p)).sum(), rtol=1e-10)
    assert corpus.name == source and load_corpus(corpus.name) is corpus
    assert load_corpus("zipf_markov:length=5000,seed=5,exponent=2,vocab_size=12") is corpus
    assert load_corpus(source.replace("seed=5", "seed=6")) != corpus
    # Remake: print(load_corpus("zipf_markov:vocab_size=8,length=1000").fingerprint)
    found = load_corpus("zipf_markov:vocab_size=8,length=1000").fingerprint
    assert found == "cf0eadc6e4bfe5688be753069682426c748b54e50f4fb50b40c3e611e756ebc3"


class FakeSplit(list):
    column_names = ("text", "label")


def fake_datasets(splits):
    """Stands in for the optional third-party package, which is not installed for tests."""
    module = types.ModuleType("datasets")
    module.calls = []

    def load_dataset(name, config):
        module.calls.append((name, config))
        return {k: FakeSplit({"text": text} for text in texts) for k, texts in splits.items()}

    module.load_dataset = load_dataset
    return module


@pytest.mark.parametrize(
    ("splits", "train", "validation"),
    [
        ({"train": ["a", "b"], "test": ["no"], "validation": ["c"]}, "a\nb\n", "c\n"),
        ({"train": ["abcdefghi"] * 10}, "abcdefghi\n" * 9, "abcdefghi\n"),
        ({"train": ["x" * 99] * 10, "test": ["y"]}, ("x" * 99 + "\n") * 3, "y\n"),  # to the limit
    ],
)  # fmt: skip
def test_hub_takes_the_held_out_split_or_the_tail(monkeypatch, splits, train, validation):
    fake = fake_datasets(splits)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr(corpus_module, "HUB_BYTES", 250)
    corpus_module._from_hub.cache_clear()
    corpus = load_corpus("hub:someone/stories:small")
    assert fake.calls == [("someone/stories", "small")]
    assert text_of(corpus.train) == train and text_of(corpus.validation) == validation


def test_hub_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'isolab[hub]'")):
        load_corpus("hub:someone/absent")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([(10, jnp.uint8), (200, jnp.uint8), (200, jnp.int32)])
)
def test_batches_are_windows_and_targets_their_next_tokens(seed, kind):
    tokens = jnp.arange(kind[0], dtype=kind[1])  # one window, or many
    inputs, targets = sample_batch(tokens, jax.random.key(seed), batch_size=16, context=9)
    assert inputs.shape == targets.shape == (16, 9)
    assert inputs.dtype == targets.dtype == jnp.int32
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(9)[None, :])


def test_windows_start_everywhere_equally_often():
    tokens = jnp.arange(20, dtype=jnp.uint8)
    inputs, targets = sample_batch(tokens, jax.random.key(0), batch_size=150_000, context=5)
    counts = np.bincount(inputs[:, 0], minlength=15)
    assert counts.size == 15 and targets.max() == 19  # the last start is 14, its last target 19
    # Multinomial counts of 10,000 each: chi-squared with 14 degrees of freedom passes 42.6 with
    # probability 1e-4.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 42.6


def test_keys_decide_and_compiling_changes_nothing():
    tokens = jnp.asarray(load_corpus("zipf_markov:vocab_size=8,length=1000").train)
    keys = jax.random.split(jax.random.key(1), 3)
    mapped = jax.jit(jax.vmap(lambda key: sample_batch(tokens, key, 4, 16)))(keys)
    for i, key in enumerate(keys):
        for found, expected in zip(mapped, sample_batch(tokens, key, 4, 16), strict=True):
            np.testing.assert_array_equal(found[i], expected)
    assert not np.array_equal(mapped[0][0], mapped[0][1])


def test_mapped_draws_do_not_copy_the_tokens():
    size = 1_000_000
    keys = jax.random.split(jax.random.key(0), 64)

    def draw(tokens, keys):
        return jax.vmap(lambda key: sample_batch(tokens, key, 4, 16))(keys)

    compiled = jax.jit(draw).lower(jax.ShapeDtypeStruct((size,), jnp.uint8), keys).compile()
    # 64 draws of 4 windows of 17 int32 are 17 kB; one copy of the tokens is 1 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < size / 4


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3000))
def test_validation_windows_are_spread_over_the_held_out_tokens(count, context, extra):
    size = context + 1 + extra
    tokens = np.arange(size) % 251
    corpus = Corpus("a", tokens[:1].astype(np.uint8), tokens.astype(np.uint8), 256)
    inputs, targets = validation_windows(corpus, count, context)
    assert inputs.shape == targets.shape == (count, context)
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(targets, (inputs + 1) % 251)
    np.testing.assert_array_equal(inputs, (inputs[:, :1] + np.arange(context)[None, :]) % 251)
    gaps = np.diff(inputs[:, 0]) % 251
    if count * (context + 1) <= size < 251:  # positions can be read off, and there is room
        assert np.all(gaps >= context + 1)
        assert gaps.max(initial=0) - gaps.min(initial=251) <= 1
    assert inputs[0, 0] == 0
    if count > 1:
        assert targets[-1, -1] == tokens[-1]


@pytest.mark.parametrize(
    ("files", "source", "error", "message"),
    [
        ({}, "absent.txt", FileNotFoundError, "absent.txt'; allowed: 'stdlib', 'zipf_markov"),
        ({"a": b"text\0more"}, "a", ValueError, "a holds NUL bytes"),
        ({"a": b"text \xff\xfe"}, "a", ValueError, "a is not UTF-8 at byte 5"),
        ({"d/a": "x" * 99, "d/b": b"\0"}, "d", ValueError, "b holds NUL bytes"),
        ({"a": ""}, "a", ValueError, "corpus 'a' is empty: no text in its 1 files"),
        ({"d/.hidden": "x"}, "d", ValueError, "corpus 'd' is empty: no text in its 0 files"),
        ({"d/a": "", "d/b": ""}, "d", ValueError, "corpus 'd' is empty: no text in its 2 files"),
        ({"a": "short"}, "a", ValueError, "corpus 'a' is empty: it has no validation tokens"),
    ],
)
def test_bad_paths_are_named(tmp_path, files, source, error, message):
    write(tmp_path, files)
    with pytest.raises(error, match=re.escape(message)):
        load_corpus(tmp_path / source)


BYTES = np.arange(10, dtype=np.uint8)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_batch(BYTES, KEY, 1, context=10), "training part of the corpus has 10 tok"),
        (lambda: sample_batch(BYTES, KEY, 1, context=0), "context must be at least 1, got 0"),
        (lambda: validation_windows(Corpus("a", BYTES, BYTES[:4], 256), 1, context=4),
         "validation part of the corpus has 4 tokens, fewer than context + 1 = 5"),
        (lambda: validation_windows(Corpus("a", BYTES, BYTES, 256), 0, context=4),
         "count of validation windows must be at least 1, got 0"),
        (lambda: Corpus("a", BYTES[:0], BYTES, 256), "'a' is empty: it has no train tokens"),
        (lambda: Corpus("a", BYTES, BYTES, 9), "holds token 9, allowed are those below"),
        (lambda: Corpus("a", BYTES.astype(int), BYTES, 256), "must be (N,) uint8, got (10,) int64"),
        (lambda: load_corpus("zipf_markov:order=2"),
         "unknown option 'order' of zipf_markov; known: ['exponent'"),
        (lambda: load_corpus("zipf_markov:vocab_size"),
         "option vocab_size of zipf_markov must be int, got ''"),
        (lambda: load_corpus("zipf_markov:exponent=big"),
         "option exponent of zipf_markov must be float, got 'big'"),
        (lambda: load_corpus("zipf_markov:vocab_size=257"),
         "vocab_size of zipf_markov must lie in [2, 256], got 257"),
        (lambda: load_corpus("zipf_markov:exponent=nan"),
         "exponent of zipf_markov must lie in [0, 8], got nan"),
        (lambda: load_corpus("zipf_markov:length=9"),
         "length of zipf_markov must lie in [10, 2147483647], got 9"),
        (lambda: load_corpus("hub:"), "needs a dataset's name"),
    ],
)  # fmt: skip
def test_impossible_options_lengths_and_tokens_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
