"""The sections of params.yaml: every key with its meaning, unit, default and what is allowed.

A key's docstring is what the reference, the JSON schema and editors say of it.
"""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from relu_sparsity.schema import Section

# JAX takes seeds as 32-bit integers.
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


def _widths(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    if value is None or (values and all(type(each) is int and each > 0 for each in values)):
        return tuple(values) if isinstance(value, list) else value
    raise PydanticCustomError("widths", "Input should be a whole number greater than 0, or a list")


MlpDim = Annotated[
    int | tuple[int, ...] | None,
    BeforeValidator(_widths, json_schema_input_type=PositiveInt | list[PositiveInt]),
]


class DataParams(Section):
    """Where the text comes from (the paper: C4)."""

    source: Literal["docs", "tfds", "text"] = "docs"
    """Docstrings of installed packages, a data set of TensorFlow Datasets, or your own files.
    Paper: C4."""
    packages: Strings = ("numpy",)
    """For `docs`: the packages whose docstrings are the text; at least one."""
    tfds_name: str = "c4/en"
    """For `tfds`: the name of the data set, with its configuration and, if you like, `:version`.
    Paper: C4, no more than that."""
    data_dir: str | None = None
    """For `tfds`: the folder or bucket of the data sets; none takes TensorFlow Datasets' own."""
    files: Strings = ()
    """For `text`: files or patterns of files (`*`): `.txt` (documents between empty lines),
    `.jsonl` or `.jsonl.gz` (`{"text": "..."}` on each line), in UTF-8; at least one."""
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """For `docs` and `text`: the share of the documents that is never trained on. `tfds` has its
    own validation split. Not in the paper."""
    num_shards: PositiveInt = 1
    """Into how many streams the documents are dealt; divides `training.global_batch_size`. With as
    many as hosts, or a multiple of it, no host reads what another one reads."""
    read_threads: NonNegativeInt = Field(default=0, exclude=True)
    """How many threads of each process read and tokenize documents ahead of the training step: for
    text in a bucket. Changes no batch, so neither fingerprints nor results tell of it."""

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
    """Tokens of the vocabulary; where `model` is given, those of the model. Not in the paper."""
    model: Annotated[str, AfterValidator(os.path.expanduser)] | None = None
    """A SentencePiece model file to take instead of training one."""
    train_documents: PositiveInt = 2000
    """How many documents the vocabulary is trained on. Not in the paper."""


class ModelParams(Section):
    """The decoder (section 2.2). What the paper leaves open is a parameter here."""

    num_layers: PositiveInt = 6
    """Blocks of attention and MLP. Paper: 6; 10 and 14 in the depth ablation."""
    emb_dim: PositiveInt = 512
    """Width of the residual stream; a multiple of `num_heads`, even for sinusoidal positions. Not
    in the paper: the largest of those tried whose sizes fit its hardware as it says."""
    num_heads: PositiveInt = 8
    """Attention heads; divides `emb_dim`. Not in the paper."""
    mlp_dim: MlpDim = 32768
    """Hidden units of each layer's MLP, or a list with those of each layer. Round 2 takes what its
    parent has used. Paper: 32768; 16384 and 8192 in the ablations."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """How positions are told. Not in the paper: only sinusoidal ones fit Table 2's first column."""
    embedding_init_std: PositiveFloat = 0.02
    """Standard deviation of the token embeddings at initialization. Not in the paper: small ones
    fit Table 2's first column."""
    scale_embeddings: bool = False
    """Multiply embeddings with the square root of `emb_dim`. Not in the paper."""
    mlp_bias: bool = False
    """Biases in the MLPs. Not in the paper; they and weight decay decide how many units die."""
    attention_bias: bool = False
    """Biases in attention. Not in the paper."""
    tie_embeddings: bool = True
    """Whether the output layer is the embedding's transpose. Not in the paper."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """The normalization. Not in the paper."""
    norm_position: Literal["pre", "post"] = "pre"
    """Before each part of a block, or after it. Not in the paper: before fits Table 2's first
    column."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type that is computed in. Parameters, softmax and loss stay float32."""
    remat: bool = False
    """Recompute each block in the backward pass: less memory, more FLOPs, the same model."""

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
    """AdamW, linear warm-up to `peak_lr`, then cosine decay (section 2.2)."""

    peak_lr: PositiveFloat = 3e-3
    """The highest learning rate. Paper: 3e-3; 1e-3, 2e-3 and 5e-3 in Table 5."""
    warmup_steps: NonNegativeInt = 5000
    """Steps from a learning rate of 0 to `peak_lr`; at most `training.num_steps`. Paper: 5000."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """The last learning rate, as a fraction of `peak_lr`. Not in the paper."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the gradient's mean. Not in the paper."""
    b2: float = Field(default=0.98, ge=0, lt=1)
    """Adam's decay of the squared gradient's mean. Not in the paper."""
    eps: PositiveFloat = 1e-9
    """Adam's epsilon. Not in the paper."""
    weight_decay: NonNegativeFloat = 0.1
    """AdamW's weight decay, which is multiplied with the learning rate. Not in the paper."""
    weight_decay_on: Literal["all", "matrices", "kernels"] = "all"
    """What decays: all weights; matrices (neither biases, norms nor learned positions); or the
    kernels of dense layers (no embeddings either). Not in the paper."""
    grad_clip_norm: PositiveFloat | None = None
    """The largest global norm of a gradient; none clips nothing. Not in the paper."""


class TrainingParams(Section):
    """How long, on how many tokens, and how often something is written.

    Intervals are in steps: a step is one update of the weights.
    """

    num_steps: PositiveInt = 1_000_000
    """Updates in all. Paper: 1,000,000."""
    seq_len: int = Field(default=512, ge=2)
    """Tokens of a sequence. Paper: 512."""
    per_device_batch_size: PositiveInt = 16
    """Sequences of the paper's device batch: the group over which per-batch use is taken, whatever
    number of devices really shares the global batch. Divides `global_batch_size`. Paper: 16."""
    global_batch_size: PositiveInt = 512
    """Sequences of an update. Not in the paper: 16 on each of the 32 cores of its v2-32."""
    eval_every_steps: PositiveInt = 10_000
    """Steps between evaluations on held-out text. Not in the paper."""
    eval_sequences: PositiveInt = 1024
    """Held-out sequences of an evaluation, always the same ones. Not in the paper."""
    checkpoint_every_steps: PositiveInt = 10_000
    """Steps between checkpoints: what a killed run does again at most. Changes no result."""
    log_every_steps: PositiveInt = 100
    """Steps between lines of the log and of `relu-sparsity status`. Changes no result."""
    tensorboard: bool = Field(default=False, exclude=True)
    """Whether these lines are also written as TensorBoard's events, below each run's folder of the
    store: `tensorboard --logdir store/runs`. Changes no result."""

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
    """Steps between measurements of the units' use. Not in the paper."""
    convergence_window: PositiveInt = 10_000
    """"At convergence" is the mean over this many last steps; at most `training.num_steps`. Not in
    the paper: one batch is noisy."""
    early_steps: PositiveInt = 70_000
    """Where figures of early training end. Paper: use is stable by about step 70,000."""


class MaskParams(Section):
    """The mask of section 4.1.1: taken at `step`, kept to the end."""

    step: PositiveInt = 50_000
    """The step at which unused units are masked, below `training.num_steps`. Paper: 50,000."""
    random_over: Literal["layer", "model"] = "layer"
    """The random mask takes as many units in each layer as are unused there, or the same total
    drawn over all layers together. Not in the paper."""
    seed: Seed = 0
    """Seed of the random mask, together with the run's."""
    compact: bool = True
    """Leave masked units out of the model that is trained: their weights stay as they were at
    `step`. If not, activations are multiplied with 0: the model computes the same, but weight decay
    and what is left of Adam's moments still move the masked units' weights. The paper supposes it
    to be possible."""
    width_multiple_of: PositiveInt = 1
    """Widths of compacted layers are rounded up to a multiple of this."""


class Round2Params(Section):
    """Round 2 of Table 4: each layer is as wide as the units that round 1 used."""

    width_multiple_of: PositiveInt = 1
    """Widths are rounded up to a multiple of this. Not in the paper."""


class ClaimsParams(Section):
    """What verdicts need: margins, and a model that learned. None of it is in the paper."""

    purpose: str = ""
    """What verdicts at this scale mean: the first line of the claims."""
    learned_share: PositiveFloat = 0.5
    """A model has learned if its held-out loss is this share of the way down from that of unigrams
    to that of bigrams; if not, it decides nothing."""
    significance_level: float = Field(default=0.05, gt=0, lt=0.5)
    """The level of every test."""
    equivalence_margin: PositiveFloat = 0.005
    """Masking changes nothing (claim 14) if accuracy differs by less; a fraction of the tokens."""
    collapse_margin: PositiveFloat = 0.05
    """A random mask makes accuracy collapse (claim 16) if it costs at least this; a fraction of
    the tokens. More than `equivalence_margin`; the default is ten times that one's."""
    round2_margin: PositiveFloat = 0.01
    """Round 2 is substantially worse (claim 18) if it costs at least this; a fraction of the
    tokens. More than `equivalence_margin`; the default is twice that one's."""
    learning_rate_margin: PositiveFloat = 0.01
    """A learning rate is better than the base rate (claim 21) only by more than this; nats."""

    @model_validator(mode="after")
    def _nothing_is_less_than_harm(self) -> Self:
        for name in ("collapse_margin", "round2_margin"):
            if getattr(self, name) <= self.equivalence_margin:
                raise ValueError(
                    f"{name}: {getattr(self, name):g} is not more than equivalence_margin "
                    f"{self.equivalence_margin:g}, up to which a difference counts as none"
                )
        return self


class PruningParams(Section):
    """The table of what leaving masked units out saves."""

    show_speed: bool = False
    """Show the speed that each run had in training. Only where it had its device to itself: jobs
    that share a machine slow each other, and more than a mask makes them faster. Never the same
    twice; without speeds the table has the same bytes each time."""


class ResourcesParams(Section):
    """What one training job takes of the machine."""

    threads: PositiveInt = 1
    """CPU threads of a training job."""
    mem_mb: PositiveInt = 2000
    """Memory of a training job, in MB, for Snakemake and clusters."""
    num_devices: PositiveInt = 1
    """Devices that share a run. For estimates only, until a run has been timed."""
    flops_per_device: PositiveFloat = 4e10
    """What a device sustains in training, in FLOP/s. For estimates only, as `num_devices`."""
