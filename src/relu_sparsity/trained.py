"""A trained model to call: its logits, its hidden activations, and the units that fire on a text.

On CPU, whatever it was trained on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import matplotlib as mpl
import numpy as np
import pandas as pd
import sentencepiece
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from matplotlib.figure import Figure

from relu_sparsity.data.tokenizer import load_tokenizer
from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath
from relu_sparsity.model import KeptUnits, Stack, Transformer, masks_by_stack
from relu_sparsity.paper.figures import STYLE
from relu_sparsity.params import RunConfig
from relu_sparsity.training.checkpoints import Checkpoints, DamagedError
from relu_sparsity.training.step import make_mesh, make_steps

Tokens: TypeAlias = str | Int[np.ndarray, " seq"] | Int[np.ndarray, "batch seq"]


class TrainedModel:
    """The model that a run has become, masks applied. Units have the numbers of the whole model.

    Wherever it takes tokens, it takes a text, the ids of one sequence, or those of a batch; never
    more in a sequence than it was trained on.

    Attributes:
      tokenizer: Text to token ids and back: `encode`, `decode`.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Path,
        checkpoints: AnyPath,
        step: int,
        kept_units: Sequence[Bool[np.ndarray, " _mlp"]] | None = None,
    ) -> None:
        """Reads the parameters.

        Args:
          config: The run's parameters.
          tokenizer: The SentencePiece model.
          checkpoints: A folder with a checkpoint of the run at
          step: so many updates.
          kept_units: For each layer, the units that its mask keeps; None keeps all.

        Raises:
          UserError: The checkpoint or the tokenizer cannot be read.
        """
        self.tokenizer = load_tokenizer(tokenizer)
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        self._max_len = config.training.seq_len
        mesh = make_mesh(devices=jax.devices("cpu")[:1])
        vocab_size = self.tokenizer.vocab_size
        steps = make_steps(config, vocab_size=vocab_size, mesh=mesh)
        stored = Checkpoints(checkpoints)
        try:
            self._params = stored.restore(step, steps.state).state.params
        except DamagedError as error:
            raise UserError(f"{checkpoints}: cannot be read ({error.reason})") from None
        finally:
            stored.close()
        kept = masks_by_stack(kept_units, config.model.mlp_dims) if kept_units else None

        def create() -> Transformer:
            return Transformer(
                config.model, vocab_size=vocab_size, max_len=self._max_len, rngs=nnx.Rngs(0)
            )

        graph, _ = nnx.split(nnx.eval_shape(create))

        def logits(params: Any, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
            return nnx.merge(graph, params)(tokens, kept)

        def hidden(params: Any, tokens: Int[Array, "batch seq"]) -> list[Array]:
            model = nnx.merge(graph, params)
            found: list[Array] = []
            unrolled = [_unrolled(stack, found.append) for stack in model.stacks]
            model.stacks = unrolled  # type: ignore[assignment]
            model(tokens, kept)
            return found

        self._logits, self._hidden = jax.jit(logits), jax.jit(hidden)

    def __call__(self, tokens: Tokens) -> Float[np.ndarray, "batch seq vocab"]:
        """The logits of the next token at every position."""
        return self._apply(self._logits, self._batch(tokens))

    def hidden(self, tokens: Tokens) -> list[Float[np.ndarray, "batch seq _mlp"]]:
        """The hidden activations of each layer, after the ReLU and the mask."""
        return self._apply(self._hidden, self._batch(tokens))

    def units(self, tokens: Tokens) -> pd.DataFrame:
        """The units that fire on a text, or on one sequence of tokens.

        Returns:
          A row for every unit above zero: `position` and `token` (as SentencePiece writes it, `▁`
          for a space), `layer`, `unit`, `activation`.
        """
        batch = self._batch(tokens)
        pieces = self._labels(batch)
        frames = []
        for layer, values in enumerate(self._apply(self._hidden, batch)):
            position, unit = np.nonzero(values[0])
            columns = {"position": position, "token": pieces[position], "layer": layer}
            columns |= {"unit": unit, "activation": values[0, position, unit]}
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames).sort_values(["position", "layer", "unit"], ignore_index=True)

    def plot_units(self, tokens: Tokens) -> Figure:
        """Draws how many of each layer's units fire on every token of a text."""
        batch = self._batch(tokens)
        pieces = self._labels(batch)
        hidden = self._apply(self._hidden, batch)
        percent = np.stack([100 * (values[0] > 0).mean(axis=-1) for values in hidden])
        with mpl.rc_context({**STYLE, "axes.grid": False}):
            size = (max(3.6, 1.6 + 0.26 * len(pieces)), 1.1 + 0.26 * len(hidden))
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots()
            image = axes.imshow(percent, origin="lower", aspect="auto", cmap="viridis", vmin=0)
            axes.set_xticks(range(len(pieces)), pieces, rotation=90, parse_math=False)
            axes.set_yticks(range(len(hidden)))
            axes.set_ylabel("layer")
            axes.set_title("Units on per token", loc="left")
            figure.colorbar(image, label="of the layer's units (%)")
        return figure

    def _batch(self, tokens: Tokens) -> Int[np.ndarray, "batch seq"]:
        # Without the end of the document that `encode` writes: nothing comes after it.
        ids = np.asarray(self.tokenizer.encode(tokens)[:-1] if isinstance(tokens, str) else tokens)
        batch = np.atleast_2d(ids)
        if batch.ndim != 2 or not np.issubdtype(batch.dtype, np.integer):
            raise UserError(
                f"tokens: shape {ids.shape} of {ids.dtype}; allowed: a text, or whole numbers of "
                "shape (seq,) or (batch, seq)"
            )
        if not batch.size or batch.shape[1] > self._max_len:
            raise UserError(
                f"tokens: {batch.shape[0]} sequences of {batch.shape[1]}; allowed: one or more, of "
                f"1 to {self._max_len} tokens, as in training"
            )
        if batch.min() < 0 or batch.max() >= self.tokenizer.vocab_size:
            raise UserError(
                f"tokens: {batch.min()} to {batch.max()}; allowed: 0 to "
                f"{self.tokenizer.vocab_size - 1}"
            )
        return batch

    def _labels(self, batch: Int[np.ndarray, "batch seq"]) -> np.ndarray:
        if len(batch) != 1:
            raise UserError(f"tokens: {len(batch)} sequences; allowed: a text, or one sequence")
        return np.array(self._pieces.id_to_piece(batch[0].tolist()), object)

    def _apply(self, function: Callable[..., Any], batch: Int[np.ndarray, "batch seq"]) -> Any:
        length = batch.shape[1]
        # One length, so one program; what comes after a token changes nothing for it.
        padded = np.pad(batch.astype(np.int32), ((0, 0), (0, self._max_len - length)))
        return jax.tree.map(
            lambda values: np.asarray(values, np.float32)[:, :length],
            function(self._params, padded),
        )


def _unrolled(stack: Stack, take: Callable[[Array], None]) -> Callable[..., Array]:
    """A stack, layer by layer, that hands over the hidden activations of each."""

    def tapped(down: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def call(hidden: Array) -> Array:
            take(hidden)
            return down(hidden)

        return call

    def apply(x: Array, kept: KeptUnits, _: None) -> Array:
        graph, stacked = nnx.split(stack.blocks)
        for layer in range(stack.num_layers):
            own, of_layer = jax.tree.map(lambda values: values[layer], (stacked, kept))  # noqa: B023
            block = nnx.merge(graph, own)
            block.mlp.down = tapped(block.mlp.down)  # type: ignore[assignment]
            x = block(x, of_layer, None)
        return x

    return apply
