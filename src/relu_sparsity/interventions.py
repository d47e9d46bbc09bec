"""The interventions: masks of unused units, random masks, and round 2's widths."""

from typing import Literal

import numpy as np
from jaxtyping import Bool

LayerUnits = list[Bool[np.ndarray, " _mlp"]]


def unused_mask(used: LayerUnits) -> LayerUnits:
    """Keeps the units that were used in the batch at the mask step (section 4.1.1)."""
    return [np.array(layer, bool) for layer in used]


def random_mask(
    used: LayerUnits, *, seed: int, run_seed: int, over: Literal["layer", "model"] = "layer"
) -> LayerUnits:
    """Masks as many units as are unused, chosen at random (the control of section 4.1.1).

    Args:
      used: The units that were used in the batch at the mask step.
      seed: Seeds the choice, together with
      run_seed: the seed of the run that is masked.
      over: `layer` masks as many units in each layer as are unused there; `model` draws the same
        total over all layers together.

    Returns:
      True for every unit that is kept.
    """
    generator = np.random.default_rng([seed, run_seed])
    if over == "layer":
        return [generator.permutation(np.asarray(layer, bool)) for layer in used]
    shuffled = generator.permutation(np.concatenate(used).astype(bool))
    return np.split(shuffled, np.cumsum([layer.size for layer in used])[:-1])


def used_widths(used: LayerUnits, *, multiple_of: int = 1) -> list[int]:
    """The widths of layers that hold what is used of wider ones.

    Those of round 2 are what each layer used in round 1's last batch (section 4.4, Table 4); those
    of a masked model that is trained without its masked units are what its mask keeps.

    Args:
      used: The units that are used, of each layer.
      multiple_of: Widths are rounded up to a multiple of this, but never beyond the whole layer, as
        hardware multiplies matrices in tiles. A layer that uses nothing keeps one unit (or one
        multiple), as a layer cannot be empty.
    """
    return [
        min(layer.size, multiple_of * max(1, -(-int(layer.sum()) // multiple_of))) for layer in used
    ]
