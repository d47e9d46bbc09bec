"""The parameters of a scale: what params.yaml may hold, validated and frozen."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from relu_sparsity.errors import UserError
from relu_sparsity.schema import Section
from relu_sparsity.sections import (
    ClaimsParams,
    DataParams,
    MaskParams,
    MetricsParams,
    ModelParams,
    OptimizerParams,
    PruningParams,
    ResourcesParams,
    Round2Params,
    Seed,
    TokenizerParams,
    TrainingParams,
)

Intervention = Literal["mask_unused", "mask_random", "used_widths"]
MASKS: tuple[Intervention, ...] = ("mask_unused", "mask_random")
# Runs and scales are parts of paths and of shell commands.
NAME = "[a-z][a-z0-9_]*"


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

        How often a checkpoint or a log line is written, and where to, changes nothing, and a run
        without an intervention does not depend on the intervention's parameters.
        """
        config = self.model_dump(mode="json")
        for key in ("checkpoint_every_steps", "log_every_steps"):
            del config["training"][key]
        for key in ("convergence_window", "early_steps"):
            del config["metrics"][key]
        # Masks and widths have jobs of their own, which their parameters belong to.
        mask = config.pop("mask")
        if intervention in MASKS:
            config["mask"] = {key: mask[key] for key in ("step", "compact", "width_multiple_of")}
        del config["round2"]
        return config

    @classmethod
    def from_fingerprinted(cls, config: Mapping[str, Any]) -> Self:
        """The parameters of a trained run, from the `config` of its run.json.

        What `fingerprinted` leaves out has its defaults, but for a `convergence_window` that fits.
        """
        model = dict(config["model"])
        model["mlp_dim"] = model.pop("mlp_dims")
        metrics = {"convergence_window": config["training"]["num_steps"], **config["metrics"]}
        return cls.model_validate({**config, "model": model, "metrics": metrics})

    def mask_choice(self, intervention: Intervention | None) -> dict[str, Any]:
        """The parameters that decide which units a mask keeps."""
        keys = {"mask_unused": ("step",), "mask_random": ("step", "random_over", "seed")}
        return {key: getattr(self.mask, key) for key in keys.get(str(intervention), ())}

    def with_mlp_dims(self, mlp_dims: Sequence[int]) -> Self:
        """The same with other widths of the layers."""
        model = self.model.model_copy(update={"mlp_dim": tuple(mlp_dims)})
        return self.model_copy(update={"model": model})


class RunParams(Section):
    """One experiment: its parameters, its seeds, and what it branches off.

    One of `sensitivity` is a baseline under another choice, and is made only when asked for.
    """

    name: str = Field(pattern=f"^{NAME}$")
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, strict=False)
    """Each seed is a run of its own, from initialization to batches. At a scale: those of every run
    that has none. Not in the paper."""
    parent: str | None = None
    """The run that it starts from, or whose used units decide its widths; of the same seed."""
    intervention: Intervention | None = None
    """Masks the units that the parent does not use, or as many at random (4.1.1), or makes layers
    as wide as the units that the parent used (4.4)."""
    sensitivity: bool = False
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
    same_as_baseline: tuple[str, ...] = ()
    """Rows of `sensitivity` that are no runs, as the scale has made these choices already."""

    @property
    def paper_runs(self) -> dict[str, RunParams]:
        """The runs of `runs` and `branches`."""
        return {name: run for name, run in self.runs.items() if not run.sensitivity}

    @property
    def choices(self) -> dict[str, RunParams]:
        """The runs of `sensitivity`."""
        return {name: run for name, run in self.runs.items() if run.sensitivity}

    def jobs(self) -> list[tuple[str, int]]:
        """Every (run, seed) of the scale, parents first."""
        order = sorted(self.runs.values(), key=lambda run: len(self.ancestors(run.name)))
        return [(run.name, seed) for run in order for seed in run.seeds]

    def run(self, name: str, seed: int | None = None) -> RunParams:
        """The run called `name`.

        Raises:
          UserError: There is no such run, or it has no such seed.
        """
        if name in self.same_as_baseline:
            raise UserError(
                f"run {name!r}: the scale {self.scale} has made this choice already; "
                "allowed: 'baseline', which is the same"
            )
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
