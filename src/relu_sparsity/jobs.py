"""The jobs of the workflow: what each rule does, given the parameters and where files are.

Every job checks what it reads against the parameters' fingerprints, so calling one by hand in the
wrong order ends with an error and never with a wrong result.
"""

import json
import logging
import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from relu_sparsity import fingerprint, interventions
from relu_sparsity.data import sources
from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, atomic_write, sha256, write_json
from relu_sparsity.layout import Layout, data_root, store_root
from relu_sparsity.params import MASKS, DataParams, Params, RunParams
from relu_sparsity.provenance import as_keys, differences, made_from, signature
from relu_sparsity.store import RunStore

if TYPE_CHECKING:
    from relu_sparsity.training.loop import TrainingJob

log = logging.getLogger(__name__)


def prepare_text(data: DataParams) -> Path:
    """Builds the data set on this machine's disk, unless this very code has built it already."""
    code = fingerprint.code(*fingerprint.DATA_MODULES)
    return sources.prepare(data, data_root(), fingerprint.digest(code))


def text_is_current(params: Params, layout: Layout) -> bool:
    """Whether manifest and tokenizer are there, belong together, and fit the parameters."""
    if (
        signature(layout.manifest) != fingerprint.text(params).hash
        or not layout.tokenizer.is_file()
    ):
        return False
    described = json.loads(layout.manifest.read_text())["tokenizer"]["sha256"]
    return sha256(layout.tokenizer) == described


def require_current(params: Params, layout: Layout, runs: Collection[str]) -> None:
    """Checks that the results of some runs are those of the parameters.

    A run without results is left out of what is shown; results of other parameters would be wrong.

    Raises:
      UserError: A run's results were made for other parameters, or no run has any.
    """
    found = 0
    for run, seed in params.jobs():
        if run not in runs:
            continue
        path = layout.run(run, seed) / "run.json"
        if signature(path) is not None:
            found += 1
            _require_made_for(path, params, run, seed, "train")
    if not found:
        raise UserError(
            f"{layout.results / 'runs'}: has no results of {', '.join(runs)}; train them first"
        )


def adopt_run(params: Params, layout: Layout, folder: Path) -> None:
    """Takes over a run that was trained elsewhere, as if it had been trained here.

    Args:
      params: The scale.
      layout: Where its results go.
      folder: The result files of one run and seed, as `train` writes them.

    Raises:
      UserError: It is no finished run, a file of it is missing or changed, or it was trained from
        something else than the parameters say. The message names what differs.
    """
    path = folder / "run.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        scale, run, seed = (described[key] for key in ("scale", "run", "seed"))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not there, or not what 'relu-sparsity train' wrote") from None
    if scale != params.scale:
        raise UserError(f"{path}: is of scale {scale}; allowed: {params.scale} (or say --scale)")
    params.run(run, seed)
    _require_made_for(path, params, run, seed, "train")
    store = run_store(params, run, seed)
    store.adopt(folder)
    store.export(layout.run(run, seed))
    log.info("%s: taken over from %s", store.name, folder)


def prepare_tokenizer(params: Params, layout: Layout) -> None:
    """Builds the data set and trains the tokenizer on it, or copies the given tokenizer."""
    from relu_sparsity.data.tokenizer import load_tokenizer, train_tokenizer

    config = params.defaults
    folder = prepare_text(config.data)
    given = config.tokenizer.model
    if given is None:
        train_tokenizer(
            sources.documents(config.data, folder, "train"),
            config.tokenizer.vocab_size,
            layout.tokenizer,
            config.tokenizer.train_documents,
        )
        return
    tokenizer = load_tokenizer(given)
    if tokenizer.vocab_size != config.tokenizer.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: {config.tokenizer.vocab_size}, but {given} has "
            f"{tokenizer.vocab_size} tokens; allowed: {tokenizer.vocab_size}"
        )
    with atomic_write(layout.tokenizer) as temporary:
        temporary.write_bytes(epath.Path(given).read_bytes())


def write_manifest(params: Params, layout: Layout) -> None:
    """Describes the data set and the tokenizer by their content."""
    data = params.defaults.data
    folder = prepare_text(data)
    manifest = sources.manifest(data, folder, layout.tokenizer)
    write_json(layout.manifest, manifest | as_keys(fingerprint.text(params)))


def run_store(params: Params, run: str, seed: int) -> RunStore:
    """The store's folder for a run as the parameters describe it now."""
    return RunStore(store_root(), params.scale, run, seed, fingerprint.run(params, run, seed).hash)


def train_run(params: Params, layout: Layout, run: str, seed: int) -> None:
    """Trains a run unless the store has it, and exports its result files.

    Every process of the run calls this; the first one exports.

    Raises:
      UserError: Something it needs is missing or was made for other parameters, another process
        trains the run, or the training diverged.
      relu_sparsity.errors.Interrupted: It was asked to stop.
    """
    from relu_sparsity import distributed

    chosen = params.run(run, seed)
    store = run_store(params, run, seed)
    if distributed.is_leader():
        keep_results(params, layout, run, seed)
    if distributed.ask_leader(store.is_finished):
        log.info("%s is in the store: exports it", store.name)
    else:
        with distributed.held_by_leader(store.lock()):
            if not distributed.ask_leader(store.is_finished):
                _train(params, layout, chosen, seed, store)
    if distributed.is_leader():
        export_run(params, layout, run, seed)


def export_run(params: Params, layout: Layout, run: str, seed: int) -> None:
    """Copies a finished run's result files, and its speed, from the store."""
    store = run_store(params, run, seed)
    store.export(layout.run(run, seed))
    if store.throughput.exists():
        with atomic_write(layout.throughput(run, seed)) as temporary:
            store.throughput.copy(temporary)


def keep_results(params: Params, layout: Layout, run: str, seed: int) -> None:
    """Puts a run's results, whatever they were trained from, into the store if it lacks them.

    They may have been pulled or copied from elsewhere. Kept, they are never trained again, and
    nothing is lost when the results of other parameters take their place.
    """
    folder = layout.run(run, seed)
    made_for = signature(folder / "run.json")
    if made_for is None:
        return
    try:
        RunStore(store_root(), params.scale, run, seed, made_for).adopt(folder)
    except UserError as error:
        log.warning("not kept: %s", error)


def write_mask(params: Params, layout: Layout, run: str, seed: int) -> None:
    """Writes the units that a masked run keeps, as `layer<L>` in an NPZ file."""
    from relu_sparsity import distributed
    from relu_sparsity.training.history import read_units

    chosen = params.run(run, seed)
    if chosen.intervention not in MASKS or chosen.parent is None:
        raise UserError(f"runs.{run}.intervention: {chosen.intervention}; allowed: {_list(MASKS)}")
    mask = chosen.config.mask
    branch = _ensure_branch(params, layout, chosen.parent, seed, mask.step)
    if not distributed.is_leader():
        return
    used = read_units(branch / "units.npz", mask.step)
    kept = (
        interventions.unused_mask(used)
        if chosen.intervention == "mask_unused"
        else interventions.random_mask(used, seed=mask.seed, run_seed=seed, over=mask.random_over)
    )
    arrays: dict[str, Any] = {f"layer{index}": layer for index, layer in enumerate(kept)}
    made_for = np.str_(fingerprint.run(params, run, seed).hash)
    with atomic_write(layout.mask(run, seed)) as temporary:
        np.savez_compressed(temporary, fingerprint=made_for, **arrays)
    total = sum(layer.size for layer in kept)
    off = total - sum(int(layer.sum()) for layer in kept)
    log.info("%s masks %d of %d units (%.1f %%)", run, off, total, 100 * off / total)


def write_widths(params: Params, layout: Layout, run: str, seed: int) -> None:
    """Writes the layers' widths of a run that is as wide as what its parent used."""
    from relu_sparsity.training.history import read_units

    chosen = params.run(run, seed)
    if chosen.intervention != "used_widths" or chosen.parent is None:
        raise UserError(f"runs.{run}.intervention: {chosen.intervention}; allowed: used_widths")
    require_current(params, layout, [chosen.parent])
    folder = layout.run(chosen.parent, seed)
    last = params.run(chosen.parent).config.training.num_steps - 1
    used = read_units(folder / "units.npz", last)
    widths = interventions.used_widths(used, multiple_of=chosen.config.round2.width_multiple_of)
    made_for = as_keys(fingerprint.run(params, run, seed))
    write_json(layout.widths(run, seed), {"mlp_dims": widths, **made_for})
    log.info("%s has the widths %s", run, _list(widths))


def _train(params: Params, layout: Layout, run: RunParams, seed: int, store: RunStore) -> None:
    from relu_sparsity import distributed
    from relu_sparsity.training.loop import train

    job = _training_job(params, layout, run, seed, store)
    history = train(job)
    if not distributed.is_leader():
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        history.write(folder)
        digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / "run.json", _describe(params, run, seed, job) | {"sha256": digests})
        store.finish(folder)


def _training_job(
    params: Params, layout: Layout, run: RunParams, seed: int, store: RunStore
) -> "TrainingJob":
    from relu_sparsity.data.tokenizer import load_tokenizer
    from relu_sparsity.training.loop import TrainingJob

    if signature(layout.manifest) != fingerprint.text(params).hash:
        raise UserError(
            f"{layout.manifest}: is missing or was made for other parameters; run "
            "'relu-sparsity tokenizer' and 'relu-sparsity data' first"
        )
    config = run.config
    folder = prepare_text(config.data)
    tokenizer = load_tokenizer(layout.tokenizer)
    described = json.loads(layout.manifest.read_text())["tokenizer"]["sha256"]
    if tokenizer.sha256 != described:
        raise UserError(
            f"{layout.tokenizer}: SHA-256 {tokenizer.sha256[:16]} is not the one in "
            f"{layout.manifest}, {described[:16]}; run 'relu-sparsity tokenizer' and "
            "'relu-sparsity data'"
        )
    mlp_dims = [config.model.mlp_dim] * config.model.num_layers
    start = unit_masks = None
    if run.intervention in MASKS and run.parent is not None:
        path = layout.mask(run.name, seed)
        _require_made_for(path, params, run.name, seed, "mask")
        with np.load(path) as arrays:
            unit_masks = [arrays[f"layer{index}"] for index in range(config.model.num_layers)]
        step = config.mask.step
        start = (_ensure_branch(params, layout, run.parent, seed, step), step)
    elif run.intervention == "used_widths":
        path = layout.widths(run.name, seed)
        _require_made_for(path, params, run.name, seed, "widths")
        mlp_dims = json.loads(path.read_text())["mlp_dims"]
    return TrainingJob(
        name=store.name,
        config=config,
        seed=seed,
        mlp_dims=mlp_dims,
        train_documents=sources.documents(config.data, folder, "train"),
        heldout_documents=sources.documents(config.data, folder, "heldout"),
        tokenizer=tokenizer,
        checkpoints=store.checkpoints,
        throughput=store.throughput,
        progress=store.progress,
        branches={step: store.branch(step) for step in params.branch_steps(run.name)},
        start=start,
        unit_masks=unit_masks,
    )


def _ensure_branch(params: Params, layout: Layout, run: str, seed: int, step: int) -> AnyPath:
    """The branch of a run at `step`, replayed from the start where the store does not have it."""
    from dataclasses import replace

    from relu_sparsity import distributed

    store = run_store(params, run, seed)

    def is_there() -> bool:
        return distributed.ask_leader(lambda: store.has_branch(step))

    if is_there():
        return store.branch(step)
    from relu_sparsity.training.loop import train

    log.info("%s has no checkpoint at step %d in the store: trains up to it", store.name, step)
    replay = store.replay(step)
    with distributed.held_by_leader(store.lock(patience=math.inf)):
        if is_there():
            return store.branch(step)
        job = _training_job(params, layout, params.run(run, seed), seed, store)
        job = replace(
            job,
            checkpoints=replay / "checkpoints",
            throughput=replay / "throughput.csv",
            progress=replay / "progress.json",
            branches={step: store.branch(step)},
        )
        train(job, until=step)
        if distributed.is_leader():
            replay.rmtree()
    return store.branch(step)


def _require_made_for(path: Path, params: Params, run: str, seed: int, command: str) -> None:
    wanted = fingerprint.run(params, run, seed)
    if signature(path) == wanted.hash:
        return
    before = made_from(path)
    differ = "".join(f"\n  {line}" for line in differences(before, wanted)) if before else ""
    raise UserError(
        f"{path}: {'was made from something else' if path.is_file() else 'is missing'}; run "
        f"'relu-sparsity {command} --run {run} --seed {seed}' first{differ}"
    )


def _describe(params: Params, run: RunParams, seed: int, job: "TrainingJob") -> dict[str, Any]:
    import jax

    from relu_sparsity.training.loop import compaction

    config = run.config.fingerprinted(run.intervention)
    config["model"]["mlp_dims"] = list(job.mlp_dims)
    part = compaction(job)
    config["data"].pop("data_dir")
    parent = None
    if run.parent is not None:
        parent = {"run": run.parent, "seed": seed, "step": job.start[1] if job.start else None}
    return {
        "scale": params.scale,
        "run": run.name,
        "seed": seed,
        **as_keys(fingerprint.run(params, run.name, seed)),
        "intervention": run.intervention,
        "parent": parent,
        "config": config,
        "trained_mlp_dims": list(part.mlp_dims if part else job.mlp_dims),
        "environment": {
            "jax": jax.__version__,
            "device_kind": jax.devices()[0].device_kind,
            "num_devices": jax.device_count(),
        },
    }


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
