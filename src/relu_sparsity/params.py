"""The parameters of a scale: what params.yaml may hold, validated and frozen."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from relu_sparsity.errors import UserError
from relu_sparsity.schema import Section

Intervention = Literal["mask_unused", "mask_random", "used_widths"]
MASKS: tuple[Intervention, ...] = ("mask_unused", "mask_random")
# Runs and scales are parts of paths and of shell commands.
NAME = "[a-z][a-z0-9_]*"
# JAX takes seeds as 32-bit integers.
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


def _widths(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    if value is None or (values and all(type(each) is int and each > 0 for each in values)):
        return tuple(values) if isinstance(value, list) else value
    raise PydanticCustomError("widths", "Input should be a whole number greater than 0, or a list")


MlpDim = Annotated[int | tuple[int, ...] | None, PlainValidator(_widths)]


class DataParams(Section):
    """Where the text comes from (the paper: C4).

    `read_threads` of each process read and tokenize documents ahead of the training step: for text
    in a bucket. They change no batch, so neither fingerprints nor results tell of them.
    """

    source: Literal["docs", "tfds", "text"] = "docs"
    packages: Strings = ("numpy",)
    tfds_name: str = "c4/en"
    data_dir: str | None = None
    files: Strings = ()
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    num_shards: PositiveInt = 1
    read_threads: NonNegativeInt = Field(default=0, exclude=True)

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
    """The decoder (section 2.2). What the paper leaves open is a parameter here.

    `mlp_dim` is the hidden width of every layer, or a list with that of each; None until the run
    that decides the widths is trained (round 2).
    """

    num_layers: PositiveInt = 6
    emb_dim: PositiveInt = 512
    num_heads: PositiveInt = 8
    mlp_dim: MlpDim = 32768
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    embedding_init_std: PositiveFloat = 0.02
    scale_embeddings: bool = False
    mlp_bias: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post"] = "pre"
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
        if isinstance(self.mlp_dim, tuple) and len(self.mlp_dim) != self.num_layers:
            raise ValueError(
                f"mlp_dim: {list(self.mlp_dim)} has {len(self.mlp_dim)} widths; allowed: one, or "
                f"one for each of the {self.num_layers} layers"
            )
        return self

    @property
    def mlp_dims(self) -> tuple[int, ...]:
        """The hidden width of each layer.

        Raises:
          ValueError: They are not known yet.
        """
        if self.mlp_dim is None:
            raise ValueError("the widths are what the parent has used, which is not trained yet")
        if isinstance(self.mlp_dim, tuple):
            return self.mlp_dim
        return (self.mlp_dim,) * self.num_layers


class OptimizerParams(Section):
    """AdamW, linear warm-up to `peak_lr`, then cosine decay (section 2.2).

    Weights decay `weight_decay_on`: all of them, the matrices (neither biases, norms nor learned
    positions), or the kernels of dense layers (no embeddings either).
    """

    peak_lr: PositiveFloat = 3e-3
    warmup_steps: NonNegativeInt = 5000
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    b1: float = Field(default=0.9, ge=0, lt=1)
    b2: float = Field(default=0.98, ge=0, lt=1)
    eps: PositiveFloat = 1e-9
    weight_decay: NonNegativeFloat = 0.1
    weight_decay_on: Literal["all", "matrices", "kernels"] = "all"
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

    With `compact`, masked units are left out of the model that is trained: their weights stay as
    they were at `step`. Each layer's width is rounded up to a multiple of `width_multiple_of`.
    Without, their activations are multiplied with 0: their gradients are 0, but weight decay and
    what is left of Adam's moments still move their weights. The model computes the same.
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
    """What verdicts need: margins, and a model that learned.

    Margins are in accuracy (a fraction of the tokens), that of learning rates in loss (nats).

    A model has learned if its held-out loss is this share of the way down from that of unigrams to
    that of bigrams. `purpose` says what verdicts at this scale mean: the first line of the claims.
    """

    purpose: str = ""
    learned_share: PositiveFloat = 0.5

    significance_level: float = Field(default=0.05, gt=0, lt=0.5)
    equivalence_margin: PositiveFloat = 0.005
    collapse_margin: PositiveFloat = 0.01
    round2_margin: PositiveFloat = 0.005
    learning_rate_margin: PositiveFloat = 0.01


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
        # Masks and widths have jobs of their own, which their parameters belong to.
        mask = config.pop("mask")
        if intervention in MASKS:
            config["mask"] = {key: mask[key] for key in ("step", "compact", "width_multiple_of")}
        del config["round2"]
        return config

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
    parent: str | None = None
    intervention: Intervention | None = None
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
