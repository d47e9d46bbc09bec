"""`params.yaml` as one validated, frozen model.

A value is looked up in `runs.<run>` of the scale, then in the top-level `runs.<run>` or
`branches.<run>`, then in the scale, then in `defaults`. A run may give a factor of the scale's
value instead of a number (`peak_lr: x1/3`), so that one list of experiments serves every scale.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from relu_sparsity.errors import UserError

Intervention = Literal["mask_unused", "mask_random", "used_widths"]
MASKS: tuple[Intervention, ...] = ("mask_unused", "mask_random")
# Runs and scales are parts of paths and of shell commands.
_NAME = "[a-z][a-z0-9_]*"
# JAX takes seeds as 32-bit integers.
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """A section of `params.yaml`: immutable, and every key is known."""

    # Strict: "6" is no number, and neither is true.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class DataParams(Section):
    """Where the text comes from (the paper: C4)."""

    source: Literal["docs", "tfds", "text"] = "docs"
    packages: Strings = ("numpy",)
    tfds_name: str = "c4/en"
    data_dir: str | None = None
    files: Strings = ()
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    num_shards: PositiveInt = 1

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        if self.source == "docs" and not self.packages:
            raise ValueError("packages: the source 'docs' needs at least one package")
        if self.source == "text" and not self.files:
            raise ValueError("files: the source 'text' needs at least one file")
        return self


class TokenizerParams(Section):
    """The SentencePiece vocabulary: trained on the data, or given by `model`."""

    vocab_size: int = Field(default=32000, ge=300, le=1_000_000)
    model: str | None = None
    train_documents: PositiveInt = 2000


class ModelParams(Section):
    """The decoder (section 2.2). What the paper leaves open is a parameter here."""

    num_layers: PositiveInt = 6
    emb_dim: PositiveInt = 512
    num_heads: PositiveInt = 8
    mlp_dim: PositiveInt = 32768
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    embedding_init_std: PositiveFloat = 0.02
    mlp_bias: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.emb_dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide emb_dim {self.emb_dim}; "
                f"allowed: the divisors of {self.emb_dim}"
            )
        if self.positions == "sinusoidal" and self.emb_dim % 2:
            raise ValueError(
                f"emb_dim: {self.emb_dim} is odd; sinusoidal positions need an even emb_dim"
            )
        return self


class OptimizerParams(Section):
    """AdamW, linear warm-up to `peak_lr`, then cosine decay (section 2.2)."""

    peak_lr: PositiveFloat = 3e-3
    warmup_steps: NonNegativeInt = 5000
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    b1: float = Field(default=0.9, ge=0, lt=1)
    b2: float = Field(default=0.98, ge=0, lt=1)
    eps: PositiveFloat = 1e-9
    weight_decay: NonNegativeFloat = 0.1
    grad_clip_norm: PositiveFloat | None = None


class TrainingParams(Section):
    """How long, on how many tokens, and how often something is written.

    `per_device_batch_size` sequences are the paper's device batch: the group over which per-batch
    use is taken, whatever number of devices really shares the `global_batch_size` sequences.
    """

    num_steps: PositiveInt = 1_000_000
    seq_len: int = Field(default=512, ge=2)
    per_device_batch_size: PositiveInt = 16
    global_batch_size: PositiveInt = 512
    eval_every_steps: PositiveInt = 10_000
    eval_sequences: PositiveInt = 1024
    checkpoint_every_steps: PositiveInt = 10_000
    log_every_steps: PositiveInt = 100

    @model_validator(mode="after")
    def _batch_is_whole_groups(self) -> Self:
        if self.global_batch_size % self.per_device_batch_size:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is not a multiple of "
                f"per_device_batch_size {self.per_device_batch_size}"
            )
        return self


class MetricsParams(Section):
    """When the sparsity metrics are taken, and over how many last steps "at convergence" is."""

    metrics_every_steps: PositiveInt = 100
    convergence_window: PositiveInt = 10_000
    early_steps: PositiveInt = 70_000


class MaskParams(Section):
    """The mask of section 4.1.1: taken at `step`, kept to the end.

    With `compact`, masked units are left out of the model that is trained, and each layer's width
    is rounded up to a multiple of `width_multiple_of`.
    """

    step: PositiveInt = 50_000
    random_over: Literal["layer", "model"] = "layer"
    seed: Seed = 0
    compact: bool = True
    width_multiple_of: PositiveInt = 1


class Round2Params(Section):
    """Round 2 of Table 4: each layer is as wide as the units that round 1 used."""

    width_multiple_of: PositiveInt = 1


class ClaimsParams(Section):
    """The margins of the statistical claims, in accuracy (a fraction of the tokens)."""

    significance_level: float = Field(default=0.05, gt=0, lt=0.5)
    equivalence_margin: PositiveFloat = 0.005
    collapse_margin: PositiveFloat = 0.01
    round2_margin: PositiveFloat = 0.005


class PruningParams(Section):
    """The table of what leaving masked units out saves.

    Measured speeds are never the same twice: without them the table has the same bytes each time.
    """

    show_speed: bool = True


class ResourcesParams(Section):
    """What one training job takes of the machine.

    `num_devices` and `flops_per_device`, the FLOP/s that a device sustains in training, are for
    estimates only, and only until a run of the scale has been timed.
    """

    threads: PositiveInt = 1
    mem_mb: PositiveInt = 2000
    num_devices: PositiveInt = 1
    flops_per_device: PositiveFloat = 4e10


class RunConfig(Section):
    """All that one training run depends on but its seed, its data's bytes and its parent."""

    data: DataParams = DataParams()
    tokenizer: TokenizerParams = TokenizerParams()
    model: ModelParams = ModelParams()
    optimizer: OptimizerParams = OptimizerParams()
    training: TrainingParams = TrainingParams()
    metrics: MetricsParams = MetricsParams()
    mask: MaskParams = MaskParams()
    round2: Round2Params = Round2Params()

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        num_steps = self.training.num_steps
        for key, value in (
            ("optimizer.warmup_steps", self.optimizer.warmup_steps),
            ("metrics.convergence_window", self.metrics.convergence_window),
        ):
            if value > num_steps:
                raise ValueError(
                    f"{key}: {value} is longer than the history; allowed: at most "
                    f"training.num_steps, {num_steps}"
                )
        if self.training.global_batch_size % self.data.num_shards:
            raise ValueError(
                f"data.num_shards: {self.data.num_shards} does not divide "
                f"training.global_batch_size {self.training.global_batch_size}"
            )
        return self

    def fingerprinted(self, intervention: Intervention | None) -> dict[str, Any]:
        """The parameters that decide the bytes of a run's results.

        How often a checkpoint or a log line is written changes nothing, and a run without an
        intervention does not depend on the intervention's parameters.
        """
        config = self.model_dump(mode="json")
        for key in ("checkpoint_every_steps", "log_every_steps"):
            del config["training"][key]
        for key in ("convergence_window", "early_steps"):
            del config["metrics"][key]
        if intervention not in MASKS:
            del config["mask"]
        elif intervention == "mask_unused":
            for key in ("random_over", "seed"):
                del config["mask"][key]
        if intervention == "used_widths":
            del config["model"]["mlp_dim"]
        else:
            del config["round2"]
        return config


class RunParams(Section):
    """One experiment: its parameters, its seeds, and what it branches off."""

    name: str = Field(pattern=f"^{_NAME}$")
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, strict=False)
    parent: str | None = None
    intervention: Intervention | None = None
    config: RunConfig

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} has a seed twice")
        return self


class Params(Section):
    """Everything of one scale."""

    scale: str
    resources: ResourcesParams = ResourcesParams()
    claims: ClaimsParams = ClaimsParams()
    pruning: PruningParams = PruningParams()
    defaults: RunConfig
    runs: dict[str, RunParams]

    def jobs(self) -> list[tuple[str, int]]:
        """Every (run, seed) of the scale, parents first."""
        order = sorted(self.runs.values(), key=lambda run: len(self.ancestors(run.name)))
        return [(run.name, seed) for run in order for seed in run.seeds]

    def run(self, name: str, seed: int | None = None) -> RunParams:
        """The run called `name`.

        Raises:
          UserError: There is no such run, or it has no such seed.
        """
        if name not in self.runs:
            raise UserError(f"run {name!r} is not in params.yaml; allowed: {', '.join(self.runs)}")
        run = self.runs[name]
        if seed is not None and seed not in run.seeds:
            allowed = ", ".join(map(str, run.seeds))
            raise UserError(f"run {name!r} has no seed {seed} at this scale; allowed: {allowed}")
        return run

    def ancestors(self, name: str) -> list[str]:
        """The runs that `name` branches off, nearest first."""
        found: list[str] = []
        parent = self.runs[name].parent
        while parent is not None:
            found.append(parent)
            parent = self.runs[parent].parent
        return found

    def branch_steps(self, name: str) -> list[int]:
        """The steps at which masked runs branch off the run `name`."""
        return sorted(
            {
                run.config.mask.step
                for run in self.runs.values()
                if run.parent == name and run.intervention in MASKS
            }
        )


_Model = TypeVar("_Model", bound=BaseModel)
_FACTOR = re.compile(r"x\s*(\d+(?:\.\d+)?)(?:/([1-9]\d*))?")
_SECTIONS = tuple(RunConfig.model_fields)
_RUN_KEYS = ("seeds", "parent", "intervention")
# All runs of a scale read the same text: the arms of a comparison see the same batches.
_BRANCH_SECTIONS = (
    *(name for name in _SECTIONS if name not in ("data", "tokenizer")),
    *_RUN_KEYS,
)
_RUN_SECTIONS = tuple(key for key in _BRANCH_SECTIONS if key not in ("parent", "intervention"))
_TOP_KEYS = ("scale", "defaults", "scales", "runs", "branches")
_SCALE_SECTIONS = (*_SECTIONS, "resources", "claims", "pruning")


class _Tree:
    """Merged parameters that remember which key of the file each value came from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.origins: dict[tuple[str, ...], str] = {}

    def merge(self, layer: Any, origin: str, allowed: tuple[str, ...]) -> Self:
        """Lays `layer`, found at the key path `origin`, over what is there."""
        _require_mapping(self.path, origin, layer)
        for key, section in (layer or {}).items():
            if key not in allowed:
                raise _error(self.path, f"{origin}.{key}", "is no known key", allowed)
            if key in _RUN_KEYS:
                self.values[key] = section
                self.origins[(key,)] = f"{origin}.{key}"
                continue
            _require_mapping(self.path, f"{origin}.{key}", section)
            merged = dict(self.values.get(key, {}))
            for name, value in (section or {}).items():
                merged[name] = self._scaled(merged.get(name), value, f"{origin}.{key}.{name}")
                self.origins[(key, name)] = f"{origin}.{key}.{name}"
            self.values[key] = merged
        return self

    def _scaled(self, base: Any, value: Any, origin: str) -> Any:
        match = _FACTOR.fullmatch(value) if isinstance(value, str) else None
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

    def copy(self) -> "_Tree":
        twin = _Tree(self.path)
        twin.values = {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in self.values.items()
        }
        twin.origins = dict(self.origins)
        return twin

    def validate(self, model: type[_Model], keys: tuple[str, ...]) -> _Model:
        """Builds `model` from the merged sections named `keys`."""
        try:
            return model.model_validate({key: self.values.get(key, {}) for key in keys})
        except ValidationError as error:
            raise UserError("\n".join(map(self._message, error.errors()))) from None

    def _message(self, error: Any) -> str:
        location = [str(part) for part in error["loc"]]
        text = error["msg"].removeprefix("Value error, ")
        if error["type"] == "value_error":
            key, _, text = text.partition(": ")
            location += key.split(".")
        elif error["type"] == "extra_forbidden":
            section = RunConfig.model_fields | Params.model_fields
            known = section[location[0]].annotation.model_fields  # type: ignore[union-attr]
            text = f"is no known key; allowed: {', '.join(known)}"
        else:
            text = f"{error['input']!r}: {text[0].lower()}{text[1:]}"
        head = tuple(location[:2]) if location[0] not in _RUN_KEYS else (location[0],)
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
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this in the folder with params.yaml") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    return parse_params(document, path, scale)


def parse_params(document: Any, path: Path, scale: str | None = None) -> Params:
    """Like `load_params`, for what the file at `path` holds."""
    if not isinstance(document, Mapping):
        raise UserError(f"{path}: allowed: a mapping with the keys {', '.join(_TOP_KEYS)}")
    for key in document:
        if key not in _TOP_KEYS:
            raise _error(path, str(key), "is no known key", _TOP_KEYS)
    for key in ("scales", "runs", "branches"):
        _require_mapping(path, key, document.get(key))
        if not document.get(key) and key != "branches":
            raise UserError(f"{path}: {key}: is missing or empty; allowed: at least one entry")
    scales = document["scales"]
    scale = scale or document.get("scale")
    for name in scales:
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
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
    tree.merge(document.get("defaults"), "defaults", _SCALE_SECTIONS)
    sections = {key: value for key, value in (layer or {}).items() if key != "runs"}
    tree.merge(sections, f"scales.{scale}", (*_SCALE_SECTIONS, "runs"))
    branches = document.get("branches") or {}
    declared = document["runs"] | branches
    for name in own_runs:
        if name not in declared:
            raise _error(path, f"scales.{scale}.runs.{name}", "is no run", declared)
    for name in branches:
        if name in document["runs"]:
            raise UserError(f"{path}: branches.{name}: is also in runs; allowed: one of the two")
    runs: dict[str, RunParams] = {}
    origins = {}
    for name, run_layer in declared.items():
        run_tree = tree.copy()
        keys = _BRANCH_SECTIONS if name in branches else _RUN_SECTIONS
        origin = f"{'branches' if name in branches else 'runs'}.{name}"
        run_tree.merge(run_layer, origin, keys)
        run_tree.merge(own_runs.get(name), f"scales.{scale}.runs.{name}", _RUN_SECTIONS)
        config = run_tree.validate(RunConfig, _SECTIONS)
        origins[name] = run_tree.origins.get(("mask", "step"), "defaults.mask.step")
        for key in ("parent", "intervention"):
            if name in branches and run_tree.values.get(key) is None:
                raise UserError(f"{path}: {origin}.{key}: is missing; a branch needs one")
        try:
            runs[name] = RunParams(
                name=name,
                config=config,
                **{key: run_tree.values[key] for key in _RUN_KEYS if key in run_tree.values},
            )
        except ValidationError as error:
            raise UserError(
                "\n".join(_run_message(run_tree, name, each) for each in error.errors())
            ) from None
    _check_parents(path, runs, origins)
    top = tree.validate(_ScaleSections, ("resources", "claims", "pruning"))
    return Params(
        scale=scale,
        resources=top.resources,
        claims=top.claims,
        pruning=top.pruning,
        defaults=tree.validate(RunConfig, _SECTIONS),
        runs=runs,
    )


class _ScaleSections(Section):
    resources: ResourcesParams
    claims: ClaimsParams
    pruning: PruningParams


def _run_message(tree: _Tree, name: str, error: Any) -> str:
    text = error["msg"].removeprefix("Value error, ")
    location = [str(part) for part in error["loc"]]
    if error["type"] == "value_error":
        key, _, text = text.partition(": ")
        location = [key]
    else:
        text = f"{error['input']!r}: {text[0].lower()}{text[1:]}"
    origin = tree.origins.get((location[0],), f"runs.{name}.{location[0]}")
    if location[0] == "name":
        origin = f"runs.{name}"
    return f"{tree.path}: {'.'.join([origin, *location[1:]])}: {text}"


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
    if parent.intervention is not None:
        raise UserError(
            f"{path}: branches.{run.name}.parent: {parent.name!r} is itself a branch; a mask is "
            "taken of a run that starts from nothing; allowed: one of runs"
        )
    same = {
        "model": tuple(ModelParams.model_fields),
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
    last = min(run.config.training.num_steps, parent.config.training.num_steps) - 1
    if run.config.mask.step > last:
        raise UserError(
            f"{path}: {mask_origin}: {run.config.mask.step} is past the end of {run.name} or of "
            f"its parent {parent.name}; allowed: 1 to {last}, below training.num_steps"
        )
