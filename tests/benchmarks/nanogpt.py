"""One run's step over that of the same model in PyTorch, built as nanoGPT builds its own.

torch is the extra ``benchmark``; this module imports without it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import report
from isolab.measure.step_time import Interval, interleave
from isolab.model.corpus import Corpus, load_corpus
from isolab.model.transformer import TransformerConfig
from isolab.training.config import RunConfig

WIDTHS = (32, 64, 128, 256)


def available() -> bool:
    """Returns whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def make_model(config: TransformerConfig) -> Any:
    """Returns the model as a ``torch.nn.Module``: token ids (B, L) to logits (B, L, V).

    Linear layers and norms have no biases, the readout is not tied to the embedding, and GELU has
    its tanh form, as in :class:`isolab.Transformer`.  Matrices start at a standard deviation of
    0.02, those that end a residual branch at 0.02 / sqrt(2 * depth).
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    D = config.width

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = (nn.LayerNorm(D, bias=False) for _ in range(2))
            self.qkv = nn.Linear(D, 3 * D, bias=False)
            self.out = nn.Linear(D, D, bias=False)
            self.up = nn.Linear(D, config.mlp_ratio * D, bias=False)
            self.down = nn.Linear(config.mlp_ratio * D, D, bias=False)

        def forward(self, x: Any) -> Any:
            B, L, _ = x.shape
            heads = (B, L, D // config.head_size, config.head_size)
            qkv = self.qkv(self.attention_norm(x)).split(D, dim=2)
            q, k, v = (part.view(heads).transpose(1, 2) for part in qkv)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).contiguous().view(B, L, D))
            return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))

    class Model(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(config.vocab_size, D)
            self.positions = nn.Embedding(config.context, D)
            self.blocks = nn.ModuleList(Block() for _ in range(config.depth))
            self.final_norm = nn.LayerNorm(D, bias=False)
            self.readout = nn.Linear(D, config.vocab_size, bias=False)
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    last = name.endswith(("out.weight", "down.weight"))
                    std = 0.02 / math.sqrt(2 * config.depth) if last else 0.02
                    nn.init.normal_(parameter, std=std)

        def forward(self, tokens: Any) -> Any:
            x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.readout(self.final_norm(x))

    torch.manual_seed(0)
    return Model()


class TorchTraining:
    """Training by fused AdamW on random windows of a uint8 tensor; keeps its state."""

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        import torch

        torch.set_num_threads(report.cores())
        self.model = make_model(config.model_config(corpus.vocab_size))
        self._batch_size, self._context = config.batch_size, config.context
        self._tokens = torch.from_numpy(corpus.train.copy())  # read-only: torch wants its own
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
        )

    def advance(self, steps: int) -> list[float]:
        """Trains on from where it stands, and returns each step's loss, nats/token."""
        import torch
        from torch.nn import functional as F

        window = torch.arange(self._context + 1)
        losses = []
        for _ in range(steps):
            starts = torch.randint(len(self._tokens) - self._context, (self._batch_size, 1))
            batch = self._tokens[starts + window].long()
            logits = self.model(batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return [float(loss) for loss in losses]


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # as train
def measure(
    widths: Sequence[int] = WIDTHS,
    rounds: int = 5,
    steps: int = 10,
    base: RunConfig | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """Times our AdamW step and PyTorch's in turn, on as many threads.

    Args:
        widths: of the model.
        rounds: timed turns.
        steps: timed at once.
        base: the run that the widths vary.
        progress: show a bar.

    Returns:
        A row per width and round: ``width``, ``round``, ``jax_ms``, ``torch_ms`` (a step), and
        ``ratio``, ours over PyTorch's.

    Raises:
        ImportError: torch is not installed.
    """
    import torch

    base = base or RunConfig(learning_rate=0.002, optimizer="adamw")
    frames = []
    for width in widths:
        config = dataclasses.replace(
            base, width=width, steps=steps, evaluate_every=steps, warmup_steps=0
        )
        theirs = TorchTraining(config, load_corpus(config.corpus))
        calls: dict[str, Callable[[], object]] = {
            "jax": Interval(config),
            "torch": partial(theirs.advance, steps),
        }
        seconds = interleave(calls, rounds, f"width {width}" if progress else None)
        columns = {
            "width": width,
            "round": range(rounds),
            "jax_ms": 1e3 * seconds["jax"] / steps,
            "torch_ms": 1e3 * seconds["torch"] / steps,
            "ratio": seconds["jax"] / seconds["torch"],
            "torch_version": str(torch.__version__),
            "torch_threads": torch.get_num_threads(),
        }
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def table(frame: pl.DataFrame) -> str:
    """Returns :func:`measure`'s frame as a Markdown table, with the machine below it."""
    columns = {
        "isolab, ms a step": report.median("jax_ms"),
        "PyTorch, ms a step": report.median("torch_ms"),
        "isolab / PyTorch [min-max]": report.spread("ratio"),
    }
    torch = f"torch {frame['torch_version'][0]} on {frame['torch_threads'][0]} threads"
    return report.table(frame, {"width": "width"}, columns, torch)
