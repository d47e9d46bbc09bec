"""A run from its parameters to its results: what is trained, on what, from where.

Every process of a run calls these functions; the first one writes.
"""

import logging
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relu_sparsity import distributed, interventions
from relu_sparsity.data import sources
from relu_sparsity.data.prepare import prepare_text
from relu_sparsity.data.tokenizer import load_tokenizer
from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, atomic_write, read_json, write_json
from relu_sparsity.params import MASKS
from relu_sparsity.provenance import record_keys
from relu_sparsity.runs import Run
from relu_sparsity.training import loop
from relu_sparsity.training.history import read_units
from relu_sparsity.training.job import TrainingJob

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Trains a run unless the store has it, and exports its result files.

    Raises:
      UserError: Another process trains the run, or the training diverged.
      relu_sparsity.errors.Interrupted: It was asked to stop.
    """
    store = run.store
    if distributed.is_leader():
        run.keep_results()
    if distributed.ask_leader(store.is_finished):
        log.info("%s is in the store: exports it", store.name)
    else:
        with distributed.held_by_leader(store.lock()):
            if not distributed.ask_leader(store.is_finished):
                _train(run)
    if distributed.is_leader():
        run.export()


def write_mask(run: Run) -> None:
    """Writes the units that a masked run keeps, as `layer<L>` in an NPZ file (section 4.1.1)."""
    parent, choice = run.parent, run.config.mask
    if run.intervention not in MASKS or parent is None:
        raise UserError(
            f"runs.{run.name}.intervention: {run.intervention}; allowed: {', '.join(MASKS)}"
        )
    branch = ensure_branch(parent, choice.step)
    if not distributed.is_leader():
        return
    used = read_units(branch / "units.npz", choice.step)
    kept = (
        interventions.unused_mask(used)
        if run.intervention == "mask_unused"
        else interventions.random_mask(
            used, seed=choice.seed, run_seed=run.seed, over=choice.random_over
        )
    )
    arrays: dict[str, Any] = {f"layer{index}": layer for index, layer in enumerate(kept)}
    with atomic_write(run.intervention_file) as temporary:
        np.savez_compressed(temporary, **arrays)
    total = sum(layer.size for layer in kept)
    off = total - sum(int(layer.sum()) for layer in kept)
    log.info("%s masks %d of %d units (%.1f %%)", run.name, off, total, 100 * off / total)


def write_widths(run: Run) -> None:
    """Writes the layers' widths of a run that is as wide as what its parent used (section 4.4)."""
    parent = run.parent
    if run.intervention != "used_widths" or parent is None:
        raise UserError(f"runs.{run.name}.intervention: {run.intervention}; allowed: used_widths")
    last = parent.config.training.num_steps - 1
    used = read_units(parent.folder / "units.npz", last)
    multiple_of = run.config.round2.width_multiple_of
    widths = interventions.used_widths(used, multiple_of=multiple_of)
    write_json(run.intervention_file, {"mlp_dims": widths})
    log.info("%s has the widths %s", run.name, ", ".join(map(str, widths)))


def ensure_branch(run: Run, step: int) -> AnyPath:
    """The branch of a run at `step`, replayed from the start where the store does not have it."""
    store = run.store

    def is_there() -> bool:
        return distributed.ask_leader(lambda: store.has_branch(step))

    if is_there():
        return store.branch(step)
    log.info("%s has no checkpoint at step %d in the store: trains up to it", store.name, step)
    replay = store.replay(step)
    with distributed.held_by_leader(store.lock(patience=math.inf)):
        if is_there():
            return store.branch(step)
        job = replace(
            training_job(run),
            checkpoints=replay / "checkpoints",
            throughput=replay / "throughput.csv",
            progress=replay / "progress.json",
            branches={step: store.branch(step)},
        )
        loop.train(job, until=step)
        if distributed.is_leader():
            replay.rmtree()
    return store.branch(step)


def training_job(run: Run) -> TrainingJob:
    """What the loop needs to train a run whose text, mask or widths are there."""
    config, store = run.config, run.store
    folder = prepare_text(config.data)
    start = unit_masks = None
    if run.intervention in MASKS and run.parent is not None:
        with np.load(run.intervention_file) as arrays:
            unit_masks = [arrays[f"layer{index}"] for index in range(config.model.num_layers)]
        step = config.mask.step
        start = (ensure_branch(run.parent, step), step)
    elif run.intervention == "used_widths":
        config = config.with_mlp_dims(read_json(run.intervention_file)["mlp_dims"])
    return TrainingJob(
        name=store.name,
        config=config,
        seed=run.seed,
        train_documents=sources.documents(config.data, folder, "train"),
        heldout_documents=sources.documents(config.data, folder, "heldout"),
        tokenizer=load_tokenizer(run.tokenizer),
        checkpoints=store.checkpoints,
        throughput=store.throughput,
        progress=store.progress,
        branches={step: store.branch(step) for step in run.branch_steps},
        start=start,
        unit_masks=unit_masks,
        ngram_losses=_heldout_text(run).get("ngram_losses", {}),
    )


def _train(run: Run) -> None:
    job = training_job(run)
    history = loop.train(job)
    if not distributed.is_leader():
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        history.write(folder, job.ngram_losses)
        record = record_keys(run.job.fingerprint, sorted(folder.iterdir()))
        write_json(folder / "run.json", _describe(run, job) | record)
        run.store.finish(folder)


def _heldout_text(run: Run) -> dict[str, Any]:
    """What is known of the held-out sequences; nothing where the run cuts others than its scale."""
    known, training = read_json(run.manifest)["heldout_text"], run.config.training
    shape = (known["seq_len"], len(known["documents"]))
    return known if shape == (training.seq_len, training.eval_sequences) else {}


def _describe(run: Run, job: TrainingJob) -> dict[str, Any]:
    config = job.config.fingerprinted(run.intervention)
    config["model"]["mlp_dims"] = list(job.config.model.mlp_dims)
    part = loop.compaction(job)
    config["data"].pop("data_dir")
    parent = None
    if run.parent is not None:
        step = job.start[1] if job.start else None
        parent = {"run": run.parent.name, "seed": run.seed, "step": step}
        if job.start is not None:
            parent["device_kind"] = loop.device_kind_of(job.start[0])
    return {
        "scale": run.scale,
        "run": run.name,
        "seed": run.seed,
        "intervention": run.intervention,
        "parent": parent,
        "config": config,
        "ngram_losses": job.ngram_losses,
        "heldout_documents": _heldout_text(run).get("documents", []),
        "trained_mlp_dims": list(part.mlp_dims if part else job.config.model.mlp_dims),
        "environment": {
            "jax": jax.__version__,
            "device_kind": jax.devices()[0].device_kind,
            "num_devices": jax.device_count(),
            # On a CPU they decide last bits, as XLA splits its sums by them; not in a fingerprint.
            "cpu_threads": int(os.environ.get("NPROC") or os.cpu_count() or 1),
        },
    }
