"""The models that the runs of a scale train, as far as they are known before any is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from relu_sparsity.interventions import random_mask, unused_mask, used_widths
from relu_sparsity.model import KeptUnits, masks_by_stack
from relu_sparsity.paper.published import published_layers
from relu_sparsity.params import MASKS, Params, RunConfig, RunParams
from relu_sparsity.training.compaction import Compaction

# The width that the unit counts of the paper's Table 4 are out of.
_PAPER_MLP_DIM = 32768
PAPER_LAYERS = 6


@dataclass
class TrainedModel:
    """A model to compile, and the runs that train it.

    Attributes:
      config: The parameters; the widths are those that are trained.
      kept_units: The shapes of the masks of each stack of layers.
      steps: By run, the updates.
      seeds: By run, how many seeds.
    """

    config: RunConfig
    kept_units: list[KeptUnits] | None
    steps: dict[str, int] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)


def distinct_models(params: Params, runs: Sequence[RunParams]) -> list[TrainedModel]:
    """The models that some runs of a scale train, each once."""
    models: dict[str, TrainedModel] = {}
    for run in runs:
        config = run.config
        mlp_dims, kept_units = _trained_part(params, run)
        trained = config.with_mlp_dims(mlp_dims)
        # Learning rates and seeds are arguments of the compiled step, not parts of it.
        key = repr(
            (
                trained.model,
                kept_units,
                config.tokenizer.vocab_size,
                config.training.seq_len,
                config.training.per_device_batch_size,
                config.training.global_batch_size,
                config.optimizer.grad_clip_norm is None,
            )
        )
        model = models.setdefault(key, TrainedModel(trained, kept_units))
        first_step = config.mask.step if run.intervention in MASKS else 0
        model.steps[run.name] = config.training.num_steps - first_step
        model.seeds[run.name] = len(run.seeds)
    return list(models.values())


def _trained_part(params: Params, run: RunParams) -> tuple[tuple[int, ...], list[KeptUnits] | None]:
    """The widths that a run trains, and the shapes of its masks.

    What its parent will have used is not known beforehand: it is taken from the paper.
    """
    config = run.config
    if run.intervention == "used_widths" and run.parent is not None:
        widths, _ = _trained_part(params, params.runs[run.parent])
        units = published_layers(4, "round1", "units_used")
        used = _paper_use(widths, [each / _PAPER_MLP_DIM for each in units])
        multiple_of = config.round2.width_multiple_of
        return tuple(used_widths(used, multiple_of=multiple_of)), None
    if run.intervention not in MASKS or run.parent is None:
        return config.model.mlp_dims, None
    mask = config.mask
    percent = published_layers(1, "baseline", "batch_use")
    used = _paper_use(config.model.mlp_dims, [each / 100 for each in percent])
    if run.intervention == "mask_unused":
        kept = unused_mask(used)
    else:
        kept = random_mask(used, seed=mask.seed, run_seed=run.seeds[0], over=mask.random_over)
    if not mask.compact:
        whole = tuple(layer.size for layer in kept)
        return whole, jax.eval_shape(lambda: masks_by_stack(kept, whole))
    part = Compaction(kept, multiple_of=mask.width_multiple_of)
    return tuple(part.mlp_dims), jax.eval_shape(part.kept_units)


def _paper_use(widths: Sequence[int], fractions: Sequence[float]) -> list[np.ndarray]:
    """As many used units in each layer as in the paper's; all, in a model of another depth."""
    if len(fractions) != len(widths):
        fractions = [1.0] * len(widths)
    return [
        np.arange(width) < round(fraction * width)
        for fraction, width in zip(fractions, widths, strict=True)
    ]
