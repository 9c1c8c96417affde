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
from isolab.training.train import train
from isolab.training.watch import ForwardModel
from isolab.training.writing import is_text, prepare_writing, write

CONFIG = variant(steps=80, batch_size=8, corpus="zipf_markov:vocab_size=16,length=2000")
PROMPT = "\x03\x01"  # symbols of that corpus


@functools.cache
def initial_params(config=CONFIG, scale=1.0):
    """Returns the model, compiled as (params, tokens) -> logits, and parameters drawn for it."""
    model = ForwardModel.of(config, load_corpus(config.corpus).vocab_size)
    shapes = nnx.to_pure_dict(nnx.state(model.shape, nnx.Param))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    values = [scale * jax.random.normal(k, s.shape) for k, s in zip(keys, leaves, strict=True)]
    return jax.jit(lambda params, tokens: model(params)(tokens)), jax.tree.unflatten(tree, values)


def test_a_cold_model_writes_its_likeliest_bytes_through_a_sliding_window():
    model, params = initial_params()
    text = write(CONFIG, params, PROMPT, length=20, temperature=1e-5)
    assert len(text) == len(PROMPT) + 20  # each byte below 16 is a character
    seen = list(PROMPT.encode())
    for _ in range(20):  # 8 bytes of context: the window slides 14 times
        window = seen[-8:]
        logits = model(params, jnp.array([window + [0] * (8 - len(window))]))[0, len(window) - 1]
        seen.append(int(jnp.argmax(logits)))
    assert text == bytes(seen).decode()
    assert len(set(text)) > 3


def test_bytes_are_drawn_with_the_models_probabilities():
    model, params = initial_params(scale=0.7)
    temperature, draws = 1.7, 600
    logits = model(params, jnp.array([[*PROMPT.encode(), *[0] * 6]]))[0, 1]
    expected = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
    firsts = [
        write(CONFIG, params, PROMPT, length=1, temperature=temperature, seed=seed)[-1]
        for seed in range(draws)
    ]
    counts = np.bincount([ord(byte) for byte in firsts], minlength=16)
    # Binomial counts: five standard deviations, and one for those near 0, fail once in 10^5 times.
    allowed = 5 * np.sqrt(draws * expected * (1 - expected)) + 1
    assert (np.abs(counts - draws * expected) < allowed).all()
    assert expected.max() > 2 / 16 > 0.5 / 16 > expected.min()


def test_a_seed_fixes_the_text_and_a_long_prompt_is_kept_and_its_last_bytes_seen():
    _, params = initial_params(scale=0.7)
    start = "\x01\x02\x03\x04\x05\x06\x07\x08"
    one, same, other = (write(CONFIG, params, start, length=20, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert write(CONFIG, params, "\x0f" * 20 + start, length=20, seed=1) == "\x0f" * 20 + one


def test_what_a_model_has_learned_it_writes(tmp_path):
    file = tmp_path / "pattern.txt"
    file.write_text("abcd" * 500)
    config = dataclasses.replace(CONFIG, corpus=str(file))
    assert is_text(load_corpus(config.corpus))
    seen = []
    train([config], on_snapshot=lambda snapshot: seen.append(snapshot.run().params))
    before, after = (write(config, params, "abc", length=20) for params in (seen[0], seen[-1]))
    assert after == "abc" + "dabc" * 5
    assert before.startswith("abc")
    assert before != after


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("any text at all " * 20)
    config = dataclasses.replace(CONFIG, corpus=str(file))
    _, params = initial_params(config, scale=0.0)  # every byte equally likely
    prepare_writing(config, length=20)
    text = write(config, params, "é", length=20)
    assert text.startswith("é")
    assert "\ufffd" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt is ''; allowed: a text of one character or more"),
        ({"prompt": "def "}, "holds byte 102; allowed, as corpus .* has 16 symbols"),
        ({"length": 0}, "length is 0; allowed: a whole number from 1"),
        ({"length": 2.0}, "length is 2.0; allowed"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: a finite number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; allowed"),
        ({"seed": -1}, "seed is -1; allowed"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    _, params = initial_params()
    with pytest.raises(ValueError, match=message):
        write(CONFIG, params, **{"prompt": PROMPT, "length": 3} | change)


def test_parameters_that_cannot_write_are_refused():
    _, params = initial_params()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="not finite"):
        write(CONFIG, broken, PROMPT, length=3)
    wider = dataclasses.replace(CONFIG, width=32)
    with pytest.raises(ValueError, match="params are those of another model than one of width 32"):
        write(wider, params, PROMPT, length=3)
