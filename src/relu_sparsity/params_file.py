"""Reading `params.yaml`.

A value is looked up in `runs.<run>` of the scale, then in the top-level `runs.<run>`,
`branches.<run>` or `sensitivity.<run>`, then in the scale, then in `defaults`. A run may give a
factor of what would hold without it instead of a number (`peak_lr: x1/3`), so that one list of
experiments serves every scale.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from relu_sparsity.errors import UserError
from relu_sparsity.params import MASKS, NAME, ModelParams, Params, RunConfig, RunParams
from relu_sparsity.schema import read_yaml, told

_Model = TypeVar("_Model", bound=BaseModel)
FACTOR = r"x\s*(\d+(?:\.\d+)?)(?:/([1-9]\d*))?"
_SECTIONS = tuple(RunConfig.model_fields)
_OF_RUNS = ("seeds", "parent", "intervention")
# All runs of a scale read the same text: the arms of a comparison see the same batches.
BRANCH_KEYS = (
    *(name for name in _SECTIONS if name not in ("data", "tokenizer")),
    *_OF_RUNS,
)
RUN_KEYS = tuple(key for key in BRANCH_KEYS if key not in ("parent", "intervention"))
TOP_KEYS = ("scale", "defaults", "scales", "runs", "branches", "sensitivity")
SCALE_SECTIONS = (*_SECTIONS, "resources", "claims", "pruning")


@dataclass
class _Tree:
    """Merged parameters that remember which key of the file each value came from."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)

    def merge(self, layer: Any, origin: str, allowed: tuple[str, ...]) -> None:
        """Lays `layer`, found at the key path `origin`, over what is there."""
        _require_mapping(self.path, origin, layer)
        for key, section in (layer or {}).items():
            if key not in allowed:
                raise _error(self.path, f"{origin}.{key}", "is no known key", allowed)
            if key in _OF_RUNS:
                self.values[key] = section
                self.origins[(key,)] = f"{origin}.{key}"
                continue
            _require_mapping(self.path, f"{origin}.{key}", section)
            merged = dict(self.values.get(key, {}))
            for name, value in (section or {}).items():
                merged[name] = self._scaled(merged.get(name), value, f"{origin}.{key}.{name}")
                self.origins[(key, name)] = f"{origin}.{key}.{name}"
            self.values[key] = merged

    def _scaled(self, base: Any, value: Any, origin: str) -> Any:
        match = re.fullmatch(FACTOR, value) if isinstance(value, str) else None
        if match is None:
            return value
        if not isinstance(base, int | float) or isinstance(base, bool):
            raise UserError(
                f"{self.path}: {origin}: {value!r} is a factor, but the scale has no number to "
                f"multiply; allowed: a number here, or one in the scale or in defaults"
            )
        factor = Fraction(match[1]) / Fraction(match[2] or 1)
        if isinstance(base, float):
            return float(base * factor)
        product = base * factor
        if product.denominator != 1:
            raise UserError(
                f"{self.path}: {origin}: {value!r} of {base} is {float(product):g}; "
                "allowed: a factor that gives a whole number"
            )
        return int(product)

    def validate(self, model: type[_Model], keys: tuple[str, ...]) -> _Model:
        """Builds `model` from the merged sections named `keys`."""
        try:
            return model.model_validate({key: self.values.get(key, {}) for key in keys})
        except ValidationError as error:
            raise UserError("\n".join(map(self._message, error.errors()))) from None

    def _message(self, error: Any) -> str:
        place = str(next(iter(error["loc"]), ""))
        section = (RunConfig.model_fields | Params.model_fields).get(place)
        known = getattr(section and section.annotation, "model_fields", ())
        location, text = told(error, known)
        head = tuple(location[:2]) if location[0] not in _OF_RUNS else (location[0],)
        origin = self.origins.get(head, ".".join(["defaults", *head]))
        return f"{self.path}: {'.'.join([origin, *location[len(head) :]])}: {text}"


def _require_mapping(path: Path, origin: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{path}: {origin}: {value!r}: allowed: a mapping of keys to values")


def _error(path: Path, key: str, problem: str, allowed: Any) -> UserError:
    return UserError(f"{path}: {key}: {problem}; allowed: {', '.join(map(str, allowed))}")


def load_params(path: Path = Path("params.yaml"), scale: str | None = None) -> Params:
    """Reads and checks the parameters of one scale; every other scale is checked too.

    Args:
      path: The YAML file.
      scale: The scale; None takes the file's `scale`.

    Raises:
      UserError: The file is missing or is not YAML, or a key or value is not allowed. The message
        names the key's path, the value and what is allowed.
    """
    return parse_params(read_yaml(path), path, scale)


def parse_params(document: Any, path: Path, scale: str | None = None) -> Params:
    """Like `load_params`, for what the file at `path` holds."""
    if not isinstance(document, Mapping):
        raise UserError(f"{path}: allowed: a mapping with the keys {', '.join(TOP_KEYS)}")
    for key in document:
        if key not in TOP_KEYS:
            raise _error(path, str(key), "is no known key", TOP_KEYS)
    for key in ("scales", "runs", "branches", "sensitivity"):
        _require_mapping(path, key, document.get(key))
        if not document.get(key) and key in ("scales", "runs"):
            raise UserError(f"{path}: {key}: is missing or empty; allowed: at least one entry")
    if document.get("branches") is None:
        raise UserError(
            f"{path}: branches: is missing or empty; allowed: {{}} where there are none"
        )
    scales = document["scales"]
    scale = scale or document.get("scale")
    for name in scales:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise UserError(
                f"{path}: scales: {name!r}; allowed: a name of small letters, digits and _ that "
                "starts with a letter"
            )
    if not isinstance(scale, str) or scale not in scales:
        raise _error(path, "scale", f"{scale!r} is not one of the scales", scales)
    parsed = {name: _parse_scale(document, path, name) for name in scales}
    return parsed[scale]


def _parse_scale(document: Mapping[str, Any], path: Path, scale: str) -> Params:
    layer = document["scales"][scale]
    _require_mapping(path, f"scales.{scale}", layer)
    own_runs = (layer or {}).get("runs") or {}
    _require_mapping(path, f"scales.{scale}.runs", own_runs)
    tree = _Tree(path)
    tree.merge(document.get("defaults"), "defaults", SCALE_SECTIONS)
    sections = {key: value for key, value in (layer or {}).items() if key != "runs"}
    tree.merge(sections, f"scales.{scale}", (*SCALE_SECTIONS, "seeds", "runs"))
    groups = {key: document.get(key) or {} for key in ("runs", "branches", "sensitivity")}
    declared: dict[str, Any] = {}
    group_of: dict[str, str] = {}
    for group, layers in groups.items():
        for name in layers:
            if name in group_of:
                raise UserError(
                    f"{path}: {group}.{name}: is also in {group_of[name]}; allowed: one of the two"
                )
            group_of[name] = group
        declared |= layers
    for name in own_runs:
        if name not in declared:
            raise _error(path, f"scales.{scale}.runs.{name}", "is no run", declared)
    runs: dict[str, RunParams] = {}
    same_as_baseline: list[str] = []
    origins = {}
    for name, run_layer in declared.items():
        run_tree = replace(tree, values=dict(tree.values), origins=dict(tree.origins))
        group = group_of[name]
        keys = BRANCH_KEYS if group == "branches" else RUN_KEYS
        origin = f"{group}.{name}"
        if group == "sensitivity":
            # One seed, unless it says otherwise: there are many choices.
            run_tree.values.pop("seeds", None)
        run_tree.merge(run_layer, origin, keys)
        run_tree.merge(own_runs.get(name), f"scales.{scale}.runs.{name}", RUN_KEYS)
        if run_tree.values.get("intervention") == "used_widths":
            # Its parent decides them, and is not trained yet.
            run_tree.values["model"] = run_tree.values["model"] | {"mlp_dim": None}
        config = run_tree.validate(RunConfig, _SECTIONS)
        if config.model.mlp_dim is None and run_tree.values.get("intervention") != "used_widths":
            told = run_tree.origins.get(("model", "mlp_dim"), f"{origin}.model.mlp_dim")
            raise UserError(f"{path}: {told}: is empty; allowed: a width, or one for each layer")
        if group == "sensitivity" and "baseline" in runs and config == runs["baseline"].config:
            same_as_baseline.append(name)
            continue
        origins[name] = run_tree.origins.get(("mask", "step"), "defaults.mask.step")
        for key in ("parent", "intervention"):
            if group == "branches" and run_tree.values.get(key) is None:
                raise UserError(f"{path}: {origin}.{key}: is missing; a branch needs one")
        run_tree.values |= {"name": name, "sensitivity": group == "sensitivity", "config": config}
        run_tree.origins[("name",)] = origin
        given = tuple(key for key in RunParams.model_fields if key in run_tree.values)
        runs[name] = run_tree.validate(RunParams, given)
    _check_parents(path, runs, origins)
    tree.values |= {
        "scale": scale,
        "defaults": tree.validate(RunConfig, _SECTIONS),
        "runs": runs,
        "same_as_baseline": tuple(same_as_baseline),
    }
    return tree.validate(Params, tuple(Params.model_fields))


def _check_parents(path: Path, runs: dict[str, RunParams], mask_origins: dict[str, str]) -> None:
    for run in runs.values():
        seen = [run.name]
        parent = run.parent
        while parent is not None:
            if parent not in runs:
                raise _error(path, f"branches.{seen[-1]}.parent", f"{parent!r} is no run", runs)
            if parent in seen:
                circle = " -> ".join([*seen[seen.index(parent) :], parent])
                raise UserError(
                    f"{path}: branches.{run.name}.parent: {run.parent!r}: the runs branch off each "
                    f"other ({circle}); allowed: a run that does not branch off {run.name!r}"
                )
            seen.append(parent)
            parent = runs[parent].parent
        if run.parent is None:
            continue
        missing = sorted(set(run.seeds) - set(runs[run.parent].seeds))
        if missing:
            raise UserError(
                f"{path}: branches.{run.name}.seeds: {list(run.seeds)}: seed {missing[0]} is not a "
                f"seed of its parent; allowed: {list(runs[run.parent].seeds)}"
            )
        parent_run = runs[run.parent]
        if run.intervention in MASKS:
            _check_branch(path, run, parent_run, mask_origins[run.name])
        elif run.config.model.num_layers != parent_run.config.model.num_layers:
            raise UserError(
                f"{path}: branches.{run.name}.model.num_layers: {run.config.model.num_layers}: its "
                f"widths are those that its parent {parent_run.name!r} used; "
                f"allowed: {parent_run.config.model.num_layers}"
            )


def _check_branch(path: Path, run: RunParams, parent: RunParams, mask_origin: str) -> None:
    """A run that goes on from its parent's checkpoint has the parent's shapes and batches."""
    if parent.sensitivity:
        raise UserError(
            f"{path}: branches.{run.name}.parent: {parent.name!r} is of sensitivity, which is made "
            "only when asked for; allowed: one of runs"
        )
    if parent.intervention is not None:
        raise UserError(
            f"{path}: branches.{run.name}.parent: {parent.name!r} is itself a branch; a mask is "
            "taken of a run that starts from nothing; allowed: one of runs"
        )
    same = {
        "model": tuple(ModelParams.model_fields),
        # Adam's state has another shape where other parameters decay.
        "optimizer": ("weight_decay_on",),
        "training": (
            "seq_len", "per_device_batch_size", "global_batch_size", "eval_sequences",
        ),
    }  # fmt: skip
    for section, keys in same.items():
        for key in keys:
            own, allowed = (getattr(getattr(each.config, section), key) for each in (run, parent))
            if own != allowed:
                raise UserError(
                    f"{path}: branches.{run.name}.{section}.{key}: {own!r} differs from its "
                    f"parent {parent.name!r}, whose checkpoint it continues; allowed: {allowed!r}"
                )
    widths = run.config.model.mlp_dims
    if run.config.mask.compact and len(set(widths)) > 1:
        raise UserError(
            f"{path}: branches.{run.name}.mask.compact: true with the widths {list(widths)}; "
            "allowed: false where layers are not equally wide, which multiplies with the mask"
        )
    last = min(run.config.training.num_steps, parent.config.training.num_steps) - 1
    if run.config.mask.step > last:
        raise UserError(
            f"{path}: {mask_origin}: {run.config.mask.step} is past the end of {run.name} or of "
            f"its parent {parent.name}; allowed: 1 to {last}, below training.num_steps"
        )
    window = run.config.metrics.convergence_window
    if run.config.mask.step > run.config.training.num_steps - window:
        raise UserError(
            f"{path}: {mask_origin}: {run.config.mask.step}: the last {window} steps of "
            f"{run.name}, its state at convergence, would begin before its mask; allowed: at most "
            f"{run.config.training.num_steps - window}, or a shorter metrics.convergence_window"
        )
