"""What the training loop needs to know of one run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from relu_sparsity.data.tokenizer import Tokenizer
from relu_sparsity.files import AnyPath
from relu_sparsity.params import RunConfig


@dataclass(frozen=True)
class TrainingJob:
    """One run to train.

    Attributes:
      name: How messages call it.
      config: Its parameters.
      seed: Decides the initial parameters and the order of the batches.
      train_documents: Training text, by index.
      heldout_documents: Held-out text, by index.
      tokenizer: The tokenizer.
      checkpoints: Folder of its checkpoints.
      throughput: Where the speed is written to.
      progress: Where it is written how far the run is.
      branches: Steps at which other runs branch off, and the folder of each.
      start: The branch folder of the parent's that the run starts from, and the step.
      unit_masks: The units that each layer keeps; None keeps all.
      ngram_losses: The held-out losses of n-grams, to set the model's beside.
    """

    name: str
    config: RunConfig
    seed: int
    train_documents: Sequence[str]
    heldout_documents: Sequence[str]
    tokenizer: Tokenizer
    checkpoints: AnyPath
    throughput: AnyPath
    progress: AnyPath
    branches: dict[int, AnyPath] = field(default_factory=dict)
    start: tuple[AnyPath, int] | None = None
    unit_masks: list[Bool[np.ndarray, " _mlp"]] | None = None
    ngram_losses: dict[str, float] = field(default_factory=dict)
