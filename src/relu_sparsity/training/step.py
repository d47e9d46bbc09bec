"""The train state, and the compiled steps.

What differs between runs of one shape (learning rate, masks, seed) is an argument of the compiled
functions, so all of them share one entry of the compilation cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from relu_sparsity.errors import UserError
from relu_sparsity.kernels import options_of_init
from relu_sparsity.model import KeptUnits, Transformer, count_probes, use_by_stack
from relu_sparsity.params import OptimizerParams, RunConfig
from relu_sparsity.sparsity import UnitUse


class TrainState(NamedTuple):
    """What an update changes."""

    params: nnx.State
    opt_state: optax.OptState


class StepOutput(NamedTuple):
    """What a step tells about its batch, before the update.

    Attributes:
      loss: Mean cross-entropy over tokens, in nats.
      accuracy: Fraction of tokens whose most likely next token is right.
      grad_norm: Global L2 norm of the gradients.
      unit_use: The units' use for each stack of layers; None from a step that does not measure.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    grad_norm: Float[Array, ""]
    unit_use: list[UnitUse] | None


class EvalOutput(NamedTuple):
    """Means over the tokens of each held-out sequence."""

    loss: Float[Array, " batch"]
    accuracy: Float[Array, " batch"]


class Steps(NamedTuple):
    """The compiled functions of one run.

    Attributes:
      init: `seed -> TrainState`.
      state: The shapes of a train state.
      train: `(state, tokens, learning_rate, kept_units) -> (state, StepOutput)`.
      train_and_measure: The same, with the units' use.
      evaluate: `(params, tokens, kept_units) -> EvalOutput`.
    """

    init: Callable[[int], TrainState]
    state: TrainState
    train: Callable[..., tuple[TrainState, StepOutput]]
    train_and_measure: Callable[..., tuple[TrainState, StepOutput]]
    evaluate: Callable[..., EvalOutput]


def make_mesh(num_devices: int | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (or the first `num_devices`) along one axis, `data`.

    Those of a process are neighbours, in the order of the processes, as its rows of a batch are.

    Args:
      num_devices: How many of them.
      devices: JAX devices; None takes those that there are.
    """
    in_order = sorted(devices or jax.devices(), key=lambda each: (each.process_index, each.id))
    return Mesh(np.asarray(in_order[:num_devices]), ("data",), axis_types=(AxisType.Auto,))


def learning_rates(optimizer: OptimizerParams, num_steps: int) -> Float[np.ndarray, " steps"]:
    """The learning rate of every step: linear warm-up, then cosine decay (section 2.2)."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=optimizer.peak_lr,
        warmup_steps=optimizer.warmup_steps,
        # Optax wants at least one step of decay, also where a run is all warm-up.
        decay_steps=max(num_steps, optimizer.warmup_steps + 1),
        end_value=optimizer.peak_lr * optimizer.final_lr_fraction,
    )
    return np.asarray(schedule(jnp.arange(num_steps)), np.float32)


def adamw_direction(optimizer: OptimizerParams) -> optax.GradientTransformation:
    """AdamW's update before it is multiplied with the learning rate."""
    clip = (
        optax.identity()
        if optimizer.grad_clip_norm is None
        else optax.clip_by_global_norm(optimizer.grad_clip_norm)
    )
    return optax.chain(
        clip,
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),
        optax.add_decayed_weights(optimizer.weight_decay, _DECAYED[optimizer.weight_decay_on]),
    )


def _named(*names: str) -> Callable[[Any], Any]:
    """Marks the parameters that have one of these names."""

    def mark(params: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in names, params
        )

    return mark


_DECAYED = {"all": None, "matrices": _named("kernel", "embedding"), "kernels": _named("kernel")}


def token_losses(
    logits: Float[Array, "batch seq vocab"], targets: Int[Array, "batch seq"]
) -> tuple[Float[Array, "batch seq"], Float[Array, "batch seq"]]:
    """Cross-entropy in nats, and 1 where the most likely token is the target.

    Of equally likely tokens the first counts, as in `argmax`, which XLA cannot vectorize on CPU.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    comes_first = jnp.arange(logits.shape[-1]) < targets[..., None]
    more_likely = jnp.where(comes_first, logits >= of_target, logits > of_target)
    return loss, 1.0 - more_likely.any(axis=-1)


def make_steps(config: RunConfig, *, vocab_size: int, mesh: Mesh) -> Steps:
    """Builds the compiled functions of one run.

    Args:
      config: The run's parameters.
      vocab_size: Tokens in the vocabulary.
      mesh: One axis, `data`, over which the batch is sharded. Parameters are replicated.

    Raises:
      UserError: The number of devices does not divide the global batch.
    """
    training = config.training
    if training.global_batch_size % mesh.size:
        raise UserError(
            f"training.global_batch_size: {training.global_batch_size} sequences cannot be shared "
            f"evenly by {mesh.size} devices; allowed: a multiple of {mesh.size}"
        )
    replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    direction = adamw_direction(config.optimizer)

    def create(seed: Int[Array, ""]) -> Transformer:
        return Transformer(
            config.model,
            vocab_size=vocab_size,
            max_len=training.seq_len,
            rngs=nnx.Rngs(jax.random.key(seed)),
        )

    graph, _ = nnx.split(nnx.eval_shape(lambda: create(jnp.int32(0))))

    def init(seed: Int[Array, ""]) -> TrainState:
        params = nnx.pure(nnx.state(create(seed)))
        return TrainState(params, direction.init(params))

    def apply(params: Any, tokens: Any, kept_units: Sequence[KeptUnits] | None, probes: Any):
        logits = nnx.merge(graph, params)(tokens[:, :-1], kept_units, probes)
        return token_losses(logits, tokens[:, 1:])

    def make_train(group_size: int | None):
        def loss_fn(params, probes, tokens, kept_units):
            losses, hits = apply(params, tokens, kept_units, probes)
            return losses.mean(), hits.mean()

        def train(state: TrainState, tokens, learning_rate, kept_units):
            batch, length = tokens.shape
            probes = None if group_size is None else count_probes(config.model.mlp_dims, batch)
            differentiate = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
            (loss, accuracy), (grads, counts) = differentiate(
                state.params, probes, tokens, kept_units
            )
            use = (
                None
                if group_size is None
                else use_by_stack(counts, kept_units, seq_len=length - 1, group_size=group_size)
            )
            updates, opt_state = direction.update(grads, state.opt_state, state.params)
            params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
            output = StepOutput(loss, accuracy, optax.global_norm(grads), use)
            return TrainState(params, opt_state), output

        return jax.jit(
            train,
            in_shardings=(replicated, sharded, replicated, replicated),
            out_shardings=replicated,
            donate_argnums=0,
        )

    def evaluate(params, tokens, kept_units) -> EvalOutput:
        losses, hits = apply(params, tokens, kept_units, None)
        return EvalOutput(losses.mean(axis=1), hits.mean(axis=1))

    shapes = jax.eval_shape(init, jnp.int32(0))
    return Steps(
        init=jax.jit(
            init,
            out_shardings=replicated,
            compiler_options=options_of_init(mesh.devices.flat[0].platform),
        ),
        state=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes
        ),
        train=make_train(None),
        train_and_measure=make_train(training.per_device_batch_size),
        evaluate=jax.jit(
            evaluate,
            in_shardings=(replicated, sharded, replicated),
            out_shardings=replicated,
        ),
    )
