"""Where tokens come from, how they are split, and how batches are drawn from them."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import types
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings

from isolab.model import corpus as corpus_module
from isolab.model.corpus import Corpus, load_corpus, sample_batch, validation_windows


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    """Keeps the tests out of the user's cache folder; the memo starts empty."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *args, **kwargs: str(folder))
    corpus_module._from_files.cache_clear()
    yield folder
    corpus_module._from_files.cache_clear()


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for relative, content in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small library in place of the interpreter's."""
    root = write(tmp_path / "lib", {f"m{i}.py": f"# module {i}\n" * 9 for i in range(20)})
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(root))
    return root


def text_of(tokens):
    return tokens.tobytes().decode()


# The standard library ----------------------------------------------------------------------------


def test_standard_library_is_large_text_with_a_tenth_held_out():
    corpus = load_corpus("stdlib")
    total = corpus.train.size + corpus.validation.size
    assert 5e6 < total < 5e7
    assert 0.099 < corpus.validation.size / total <= 0.1
    assert corpus.vocab_size == 256 and corpus.entropy_rate is None
    assert "class OrderedDict" in text_of(np.concatenate([corpus.train, corpus.validation]))


def test_standard_library_is_read_once_in_a_process():
    assert load_corpus() is load_corpus("stdlib")


def test_standard_library_leaves_out_tests_and_vendored_folders(library):
    left_out = [
        "test/a.py",
        "unittest/tests/a.py",
        "idlelib/idle_test/a.py",
        "lib2to3/tests/data/a.py",
        "ensurepip/_bundled/a.py",
        "site-packages/numpy/a.py",
        "dist-packages/a.py",
        "importlib/_vendor/a.py",
        "pip/a.py",
        "turtledemo/a.py",
        "pydoc_data/topics.py",
        "__pycache__/a.py",
        "config-3.11-x86_64/a.py",
        ".hidden/a.py",
        "_sysconfigdata__linux.py",
        "sitecustomize.py",
        "LICENSE.txt",
        "a.pyc",
    ]
    kept = ["unittest/case.py", "testing.py", "json/decoder.py", "_vendored.py"]
    write(library, {name: f"LEFT OUT {name}\n" for name in left_out})
    write(library, {name: f"KEPT {name}\n" for name in kept})
    corpus = load_corpus("stdlib")
    text = text_of(corpus.train) + text_of(corpus.validation)
    assert "LEFT OUT" not in text
    assert all(f"KEPT {name}\n" in text for name in kept)
    assert all(f"# module {i}\n" * 9 in text for i in range(20))


# The cache ---------------------------------------------------------------------------------------


def reload(source="stdlib"):
    corpus_module._from_files.cache_clear()
    return load_corpus(source)


def rewrite_unnoticed(path: Path) -> None:
    """Changes a file's content, but neither its size nor its time of modification."""
    before = path.stat()
    path.write_bytes(path.read_bytes().upper())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_cache_is_used_while_sources_look_the_same(library, own_cache_folder):
    first = load_corpus()
    for path in library.iterdir():
        rewrite_unnoticed(path)
    again = reload()
    assert again is not first and again == first
    np.testing.assert_array_equal(again.train, first.train)
    np.testing.assert_array_equal(again.validation, first.validation)
    for path in own_cache_folder.rglob("*.tokens"):
        path.unlink()
    assert reload() != first


def test_changed_source_is_noticed(library, own_cache_folder):
    first = load_corpus()
    write(library, {"m3.py": "# something else\n" * 9})
    changed = load_corpus()  # the memo notices too
    assert changed != first
    assert "something else" in text_of(changed.train) + text_of(changed.validation)
    assert reload() == changed
    assert len(list(own_cache_folder.rglob("*.tokens"))) == 1  # replaced, not added


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_cache_is_rebuilt(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("damaged")
    write(root, {f"lib/m{i}.py": f"# module {i}\n" * 9 for i in range(20)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sysconfig.get_path", lambda name: str(root / "lib"))
        patch.setattr(platformdirs, "user_cache_dir", lambda *args: str(root / "cache"))
        first = reload()
        (cache,) = root.rglob("*.tokens")
        good = cache.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        replacement = data.draw(st.binary(max_size=40))
        cache.write_bytes(good[:at] + replacement + good[at + data.draw(st.integers(1, 40)) :])
        assert reload() == first
        assert cache.read_bytes() == good


def test_cache_folder_that_cannot_be_written_is_no_error(library, own_cache_folder):
    own_cache_folder.write_text("a file where the folder should be")
    assert load_corpus().train.size > 0
    assert own_cache_folder.read_text().startswith("a file")


def test_cache_leaves_no_temporary_files(library, own_cache_folder):
    load_corpus()
    assert [path.suffix for path in own_cache_folder.rglob("*") if path.is_file()] == [".tokens"]
    assert [path.name for path in own_cache_folder.rglob("*") if path.is_dir()] == ["corpora"]


# Files and folders -------------------------------------------------------------------------------


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


def test_split_depends_on_names_not_on_the_folders_place(tmp_path):
    files = {f"sub/{i}.txt": f"text {i}\n" * 20 for i in range(30)}
    first = load_corpus(write(tmp_path / "here", files))
    second = load_corpus(write(tmp_path / "there", dict(reversed(files.items()))))
    assert first == second and hash(first) == hash(second) and first is not second
    assert first.name == "here" and second.name == "there"


def test_hidden_and_empty_files_do_not_count(tmp_path):
    files = {"a.txt": "a" * 100, "b.txt": "b" * 10}
    plain = load_corpus(write(tmp_path / "plain", files))
    more = {".DS_Store": b"\0", ".git/x": b"\0", "empty.txt": ""}
    assert load_corpus(write(tmp_path / "more", files | more)) == plain
    assert (text_of(plain.train), text_of(plain.validation)) == ("a" * 100, "b" * 10)


def test_single_files_tail_is_held_out(tmp_path):
    text = "".join(chr(ord("a") + i % 26) for i in range(1009))
    path = write(tmp_path, {"one.txt": text}) / "one.txt"
    for source in (path, str(path), path.parent / "." / "one.txt"):
        corpus = load_corpus(source)
        assert text_of(corpus.train) == text[:909] and text_of(corpus.validation) == text[909:]
        assert corpus.name == "one.txt" and corpus.vocab_size == 256


def test_changed_text_file_is_read_again(tmp_path):
    path = write(tmp_path, {"one.txt": "before" * 10}) / "one.txt"
    first = load_corpus(path)
    assert load_corpus(path) is first
    path.write_text("after it" * 10)
    assert text_of(load_corpus(path).train).startswith("after it")


def test_path_starting_with_a_tilde_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path, {"one.txt": "home " * 10})
    assert text_of(load_corpus("~/one.txt").train).startswith("home ")


# Fingerprints ------------------------------------------------------------------------------------


def test_fingerprint_tells_content_split_and_vocabulary_apart():
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


def test_fingerprint_is_sha256_of_what_it_says():
    corpus = Corpus("a", np.frombuffer(b"train", np.uint8), np.frombuffer(b"val", np.uint8), 256)
    assert corpus.fingerprint == hashlib.sha256(b"256 5\ntrainval").hexdigest()


def test_tokens_are_read_only_and_the_callers_array_is_not():
    tokens = np.arange(100, dtype=np.uint8)
    corpus = Corpus("a", tokens[:90], tokens[90:], 256)
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1
    assert tokens.flags.writeable


# The synthetic language --------------------------------------------------------------------------


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


def test_zipf_markov_is_the_same_everywhere():
    # Remake: print(load_corpus("zipf_markov:vocab_size=8,length=1000").fingerprint)
    found = load_corpus("zipf_markov:vocab_size=8,length=1000").fingerprint
    assert found == "cf0eadc6e4bfe5688be753069682426c748b54e50f4fb50b40c3e611e756ebc3"


# Hugging Face datasets ---------------------------------------------------------------------------


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


def test_hub_takes_the_validation_split(monkeypatch):
    fake = fake_datasets({"train": ["one", "two"], "test": ["no"], "validation": ["three"]})
    monkeypatch.setitem(sys.modules, "datasets", fake)
    corpus = load_corpus("hub:someone/stories:small")
    assert fake.calls == [("someone/stories", "small")]
    assert text_of(corpus.train) == "one\ntwo\n" and text_of(corpus.validation) == "three\n"


def test_hub_without_a_held_out_split_keeps_the_tail(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets({"train": ["abcdefghi"] * 10}))
    corpus = load_corpus("hub:someone/lines")
    assert text_of(corpus.validation) == "abcdefghi\n" and corpus.train.size == 90


def test_hub_stops_at_its_limit(monkeypatch):
    monkeypatch.setattr(corpus_module, "HUB_BYTES", 25)
    monkeypatch.setitem(
        sys.modules, "datasets", fake_datasets({"train": ["abcdefghi"] * 10, "test": ["x"]})
    )
    assert load_corpus("hub:someone/long").train.size == 30


def test_hub_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'isolab[hub]'")):
        load_corpus("hub:someone/absent")


# Batches -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([jnp.uint8, jnp.int32]))
def test_batches_are_windows_and_targets_their_next_tokens(seed, dtype):
    tokens = jnp.arange(200, dtype=dtype)
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


def test_corpus_of_context_plus_one_has_one_window():
    inputs, targets = sample_batch(jnp.arange(9), jax.random.key(0), batch_size=3, context=8)
    np.testing.assert_array_equal(inputs, np.tile(np.arange(8), (3, 1)))
    np.testing.assert_array_equal(targets, np.tile(np.arange(1, 9), (3, 1)))


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


# Validation windows ------------------------------------------------------------------------------


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


def test_validation_windows_are_the_same_every_time():
    corpus = load_corpus("zipf_markov:vocab_size=8,length=10000")
    first, again = validation_windows(corpus, 7, 33), validation_windows(corpus, 7, 33)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0][0], corpus.validation[:33])


# Errors ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("zipf_markov:order=2", "unknown option 'order' of zipf_markov; known: ['exponent'"),
        ("zipf_markov:vocab_size", "option vocab_size of zipf_markov must be int, got ''"),
        ("zipf_markov:exponent=big", "option exponent of zipf_markov must be float, got 'big'"),
        ("zipf_markov:vocab_size=257", "vocab_size of zipf_markov must lie in [2, 256], got 257"),
        ("zipf_markov:exponent=nan", "exponent of zipf_markov must lie in [0, 8], got nan"),
        ("zipf_markov:length=9", "length of zipf_markov must lie in [10, 2147483647], got 9"),
        ("hub:", "needs a dataset's name"),
    ],
)
def test_bad_options_are_named(source, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(source)


def test_unknown_name_says_what_is_known():
    with pytest.raises(FileNotFoundError, match="'stdlb'; allowed: 'stdlib', 'zipf_markov"):
        load_corpus("stdlb")


BYTES = np.arange(10, dtype=np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sample_batch(jnp.asarray(BYTES), jax.random.key(0), 1, context=10),
            "training part of the corpus has 10 tokens, fewer than context + 1 = 11",
        ),
        (
            lambda: sample_batch(jnp.asarray(BYTES), jax.random.key(0), 1, context=0),
            "context must be at least 1, got 0",
        ),
        (
            lambda: validation_windows(Corpus("a", BYTES, BYTES[:4], 256), 1, context=4),
            "validation part of the corpus has 4 tokens, fewer than context + 1 = 5",
        ),
        (
            lambda: validation_windows(Corpus("a", BYTES, BYTES, 256), 0, context=4),
            "count of validation windows must be at least 1, got 0",
        ),
        (lambda: Corpus("a", BYTES[:0], BYTES, 256), "'a' is empty: it has no train tokens"),
        (lambda: Corpus("a", BYTES, BYTES, 9), "holds token 9, allowed are those below"),
        (lambda: Corpus("a", BYTES.astype(int), BYTES, 256), "must be (N,) uint8, got (10,) int64"),
    ],
)
def test_impossible_lengths_and_tokens_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
