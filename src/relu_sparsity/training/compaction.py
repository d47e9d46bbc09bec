"""Trains a masked model without its masked units.

The paper supposes that a masked model could be reshaped to leave its unused units out (section
4.1.1). Here its layers are as wide as what the mask keeps. A checkpoint still holds the whole
model; the masked units in it stay as they were at the mask step.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from relu_sparsity.interventions import LayerUnits, used_widths
from relu_sparsity.model import KeptUnits, split_by_stack

# The axis of each layer's parameter that is as long as the layer is wide.
_WIDTH_AXIS = {"mlp/up/kernel": 1, "mlp/up/bias": 0, "mlp/down/kernel": 0}
_STACKED = re.compile(r"(.*/)stacks/(\d+)/blocks/(.*)")
_Layers = dict[tuple[str, int, str], np.ndarray]


class Compaction:
    """The part of a masked model that is trained.

    Attributes:
      units: For each layer, the units that are trained, in order: those that the mask keeps, and
        as many masked ones as it takes to reach the multiple.
      unit_masks: For each layer, which of `units` the mask keeps.
      positions: For each layer and each unit of the whole model, its index in `units`; their
        number where it is not among them.
      mlp_dims: The number of `units` of each layer.
    """

    def __init__(self, kept: LayerUnits, *, multiple_of: int = 1) -> None:
        """Chooses the units.

        Args:
          kept: For each layer, the units that the mask keeps.
          multiple_of: Widths are rounded up to a multiple of this, as `used_widths` does.
        """
        self._whole_mlp_dims = [layer.size for layer in kept]
        self.mlp_dims = used_widths(kept, multiple_of=multiple_of)
        self.units = [
            _trained_units(layer, width) for layer, width in zip(kept, self.mlp_dims, strict=True)
        ]
        self.unit_masks = [layer[units] for layer, units in zip(kept, self.units, strict=True)]
        self.positions = [
            _positions(units, layer.size) for layer, units in zip(kept, self.units, strict=True)
        ]

    def kept_units(self) -> list[KeptUnits]:
        """What each stack of the trained part keeps, and where in the whole model it lies."""
        masks = split_by_stack(self.unit_masks, self.mlp_dims)
        positions = split_by_stack(self.positions, self.mlp_dims)
        return [
            KeptUnits(
                mask=None if np.all(mask) else jnp.stack(mask).astype(jnp.float32),
                positions=jnp.stack(where),
            )
            for mask, where in zip(masks, positions, strict=True)
        ]

    def take(self, whole: Any, template: Any) -> Any:
        """Takes the trained part out of a train state.

        Args:
          whole: A train state of the whole model.
          template: A train state of the compacted model, for its structure.

        Returns:
          The train state of the compacted model, in NumPy arrays.
        """
        layers, rest = _by_layer(whole, self._whole_mlp_dims)
        for (prefix, layer, name), values in layers.items():
            axis = _WIDTH_AXIS.get(name)
            if axis is not None:
                layers[prefix, layer, name] = np.take(values, self.units[layer], axis)
        return _by_stack(layers, rest, template, self.mlp_dims)

    def put_back(self, state: Any, whole: Any) -> Any:
        """Puts the trained part back where it was taken from.

        Args:
          state: A train state of the compacted model.
          whole: The train state of the whole model at the mask step.

        Returns:
          The train state of the whole model, in NumPy arrays: the kept units are those of `state`,
          the masked ones those of `whole`.
        """
        layers, rest = _by_layer(state, self.mlp_dims)
        before, _ = _by_layer(whole, self._whole_mlp_dims)
        for (prefix, layer, name), values in layers.items():
            axis = _WIDTH_AXIS.get(name)
            if axis is not None:
                kept = self.unit_masks[layer]
                merged = np.moveaxis(np.array(before[prefix, layer, name]), axis, 0)
                merged[self.units[layer][kept]] = np.moveaxis(values, axis, 0)[kept]
                layers[prefix, layer, name] = np.moveaxis(merged, 0, axis)
        return _by_stack(layers, rest, whole, self._whole_mlp_dims)


def _trained_units(kept: Bool[np.ndarray, " mlp"], width: int) -> Int[np.ndarray, " {width}"]:
    kept_first = np.argsort(~kept, kind="stable")
    return np.sort(kept_first[:width])


def _positions(units: Int[np.ndarray, " units"], width: int) -> Int[np.ndarray, " mlp"]:
    positions = np.full(width, units.size, np.int32)
    positions[units] = np.arange(units.size)
    return positions


def _by_layer(state: Any, mlp_dims: Sequence[int]) -> tuple[_Layers, dict[str, np.ndarray]]:
    """The arrays of a train state: those of each layer, and all else by its path."""
    stacks = split_by_stack(range(len(mlp_dims)), mlp_dims)
    layers: _Layers = {}
    rest = {}
    for path, leaf in _leaves(state):
        values = np.asarray(leaf)
        match = _STACKED.fullmatch(path)
        if match is None:
            rest[path] = values
            continue
        prefix, stack, name = match.groups()
        for layer, own in zip(stacks[int(stack)], values, strict=True):
            layers[prefix, layer, name] = own
    return layers, rest


def _by_stack(
    layers: _Layers, rest: dict[str, np.ndarray], template: Any, mlp_dims: Sequence[int]
) -> Any:
    """The reverse of `_by_layer`, in the structure of `template`."""
    stacks = split_by_stack(range(len(mlp_dims)), mlp_dims)
    leaves = []
    for path, _ in _leaves(template):
        match = _STACKED.fullmatch(path)
        if match is None:
            leaves.append(rest[path])
            continue
        prefix, stack, name = match.groups()
        leaves.append(np.stack([layers[prefix, layer, name] for layer in stacks[int(stack)]]))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _leaves(state: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
