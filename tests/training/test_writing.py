"""Text that a model writes: drawn from its own probabilities, seeing its own window."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training.tiny import variant

from isolab.model.corpus import load_corpus
from isolab.training import writing
from isolab.training.train import train
from isolab.training.watch import ForwardModel
from isolab.training.writing import is_text, prepare_writing, write

CONFIG = variant(steps=80, batch_size=8, corpus="zipf_markov:vocab_size=16,length=2000")
PROMPT = b"\x03\x01"  # symbols of that corpus


@pytest.fixture(autouse=True)
def symbols(monkeypatch):
    monkeypatch.setattr(writing, "PROMPT", PROMPT)


@functools.cache
def initial_params(config=CONFIG, scale=1.0):
    """Returns the model, compiled as (params, tokens) -> logits, and parameters drawn for it."""
    model = ForwardModel.of(config, load_corpus(config.corpus).vocab_size)
    shapes = nnx.to_pure_dict(nnx.state(model.shape, nnx.Param))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    values = [scale * jax.random.normal(k, s.shape) for k, s in zip(keys, leaves, strict=True)]
    return jax.jit(lambda params, tokens: model(params)(tokens)), jax.tree.unflatten(tree, values)


def test_a_cold_model_writes_its_likeliest_bytes_through_a_sliding_window(monkeypatch):
    model, params = initial_params()
    monkeypatch.setattr(writing, "TEMPERATURE", 1e-5)
    text = write(CONFIG, params, length=20)
    assert len(text) == len(PROMPT) + 20  # each byte below 16 is a character
    seen = list(PROMPT)
    for _ in range(20):  # 8 bytes of context: the window slides 14 times
        window = seen[-8:]
        logits = model(params, jnp.array([window + [0] * (8 - len(window))]))[0, len(window) - 1]
        seen.append(int(jnp.argmax(logits)))
    assert text == bytes(seen).decode()
    assert len(set(text)) > 3


def test_bytes_are_drawn_with_the_models_probabilities(monkeypatch):
    model, params = initial_params(scale=0.7)
    draws, firsts = 600, []
    logits = model(params, jnp.array([[*PROMPT, *[0] * 6]]))[0, 1]
    monkeypatch.setattr(writing, "TEMPERATURE", 1.7)
    expected = np.asarray(jax.nn.softmax(logits / 1.7), np.float64)
    for seed in range(draws):
        monkeypatch.setattr(writing, "SEED", seed)
        firsts.append(write(CONFIG, params, length=1)[-1])
    counts = np.bincount([ord(byte) for byte in firsts], minlength=16)
    # Binomial counts: five standard deviations, and one for those near 0, fail once in 10^5 times.
    allowed = 5 * np.sqrt(draws * expected * (1 - expected)) + 1
    assert (np.abs(counts - draws * expected) < allowed).all()
    assert expected.max() > 2 / 16 > 0.5 / 16 > expected.min()


def test_the_same_text_comes_twice_and_a_long_prompt_is_kept_and_its_last_bytes_seen(monkeypatch):
    _, params = initial_params(scale=0.7)
    start = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    monkeypatch.setattr(writing, "PROMPT", start)
    one, same = (write(CONFIG, params, length=20) for _ in range(2))
    assert one == same
    monkeypatch.setattr(writing, "PROMPT", b"\x0f" * 20 + start)
    assert write(CONFIG, params, length=20) == "\x0f" * 20 + one


def test_what_a_model_has_learned_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PROMPT", b"abc")
    file = tmp_path / "pattern.txt"
    file.write_text("abcd" * 500)
    config = dataclasses.replace(CONFIG, corpus=str(file))
    assert is_text(load_corpus(config.corpus))
    seen = []
    train([config], on_snapshot=lambda snapshot: seen.append(snapshot.run().params))
    before, after = (write(config, params, length=20) for params in (seen[0], seen[-1]))
    assert after == "abc" + "dabc" * 5
    assert before.startswith("abc")
    assert before != after


def test_bytes_that_are_no_text_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PROMPT", "é".encode())
    file = tmp_path / "text.txt"
    file.write_text("any text at all " * 20)
    config = dataclasses.replace(CONFIG, corpus=str(file))
    _, params = initial_params(config, scale=0.0)  # every byte equally likely
    prepare_writing(config, length=20)
    text = write(config, params, length=20)
    assert text.startswith("é")
    assert "\ufffd" in text


def test_parameters_that_cannot_write_are_refused():
    _, params = initial_params()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="not finite"):
        write(CONFIG, broken, length=3)
