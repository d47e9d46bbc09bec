"""Do the tests notice a broken line? A table of lines that a careless edit could break.

    python bench/mutations.py                # half an hour to an hour
    python bench/mutations.py --only tri     # one of them, and again and again; the others stay

Each line is broken in a copy of this checkout. There the test files that should notice it run until
the first failure, without what needs a whole workflow, as in `make test`. Before that, they pass as
they are. The table is results/bench/mutations.md. The exit status is 1 where a broken line passes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "workflow")]

from projects import copy_checkout  # type: ignore[import-not-found]  # noqa: E402

from relu_sparsity.files import write_text  # noqa: E402

PACKAGE = Path("src/relu_sparsity")
TABLE = ROOT / "results/bench/mutations.md"
NOT_CAUGHT = "**not caught**"


@dataclass(frozen=True)
class Mutation:
    """A line that a careless edit could break.

    Attributes:
      what: What is wrong then.
      file: Of the package.
      old: Text that is in the file once.
      new: What it becomes.
      tests: The test files that should notice it, below tests/.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def change(self) -> str:
        """The change on one line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: `{old}` → `{new}`"

    def make(self, folder: Path) -> None:
        """Breaks the line in a checkout.

        Raises:
          SystemExit: The text is not there once.
        """
        path = folder / PACKAGE / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise SystemExit(
                f"error: {PACKAGE / self.file}: has {text.count(self.old)} times {self.old!r}; "
                f"allowed: once (it is for: {self.what})"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


MUTATIONS = {
    # The metrics.
    "zero": Mutation(
        "a unit at zero counts as used", "sparsity.py",
        "on = (activations > 0)", "on = (activations >= 0)", "test_sparsity.py",
    ),
    "long": Mutation(
        "counts of a long sequence overflow", "sparsity.py",
        "dtype = jnp.int16 if seq_len < 2**15", "dtype = jnp.int16 if seq_len <= 2**15",
        "test_sparsity.py",
    ),
    "batch": Mutation(
        "batch use is over every n-th sequence, not over device batches", "sparsity.py",
        "groups = on.reshape(-1, group_size, on.shape[-1]).any(axis=1)",
        "groups = on.reshape(group_size, -1, on.shape[-1]).any(axis=0)", "test_sparsity.py",
    ),
    "used": Mutation(
        "the used units are those of one sequence", "sparsity.py",
        "used=groups[0]", "used=on[0]", "training/test_step.py",
    ),
    "percentile": Mutation(
        "percentiles are over all units, not over those used", "sparsity.py",
        "used = jnp.sum(counts > 0, axis=-1, dtype=jnp.int32)[:, None]",
        "used = jnp.sum(counts >= 0, axis=-1, dtype=jnp.int32)[:, None]", "test_sparsity.py",
    ),
    "rank": Mutation(
        "ranks are one too high", "sparsity.py",
        "low = hidden - 1 - a // 100", "low = hidden - a // 100", "test_sparsity.py",
    ),
    "sort": Mutation(
        "accelerators sort sequences, not units", "sparsity.py",
        "jnp.sort(counts, axis=-1)", "jnp.sort(counts, axis=0)", "test_sparsity.py",
    ),
    "share": Mutation(
        "the share over layers ignores their widths", "paper/extract.py",
        "np.average(values, axis=-1, weights=history.mlp_dims)", "np.average(values, axis=-1)",
        "paper/test_extract.py",
    ),
    "window": Mutation(
        "the convergence window has one step too many", "paper/history.py",
        "self.steps > self.num_steps - 1 - window", "self.steps >= self.num_steps - 1 - window",
        "paper/test_paper_history.py",
    ),
    # Interventions.
    "mask": Mutation(
        "the mask keeps the unused units", "interventions.py",
        "[np.array(layer, bool)", "[~np.array(layer, bool)", "test_interventions.py",
    ),
    "random": Mutation(
        "every layer is shuffled alike", "interventions.py",
        "return [generator.permutation(np",
        "return [np.random.default_rng([seed, run_seed]).permutation(np", "test_interventions.py",
    ),
    "seed": Mutation(
        "every seed of a run gets the same random mask", "interventions.py",
        "default_rng([seed, run_seed])", "default_rng([seed, seed])", "test_interventions.py",
    ),
    "widths": Mutation(
        "round 2's widths are rounded down", "interventions.py",
        "-(-int(layer.sum()) // multiple_of)", "int(layer.sum()) // multiple_of",
        "test_interventions.py",
    ),
    # The model.
    "tri": Mutation(
        "a token sees the next one", "kernels.py",
        "np.tri(length, dtype=bool)", "np.tri(length, k=1, dtype=bool)", "test_kernels.py",
    ),
    "scale": Mutation(
        "attention is scaled by the dimension, not by its root", "kernels.py",
        "scores / np.sqrt(dim)", "scores / dim", "test_kernels.py",
    ),
    "positions": Mutation(
        "frequencies fall half as far as they should", "model.py",
        "np.arange(0, emb_dim, 2) / emb_dim", "np.arange(emb_dim // 2) / emb_dim", "test_model.py",
    ),
    "embedding": Mutation(
        "positions are scaled with the embeddings", "model.py",
        "(self.embedding_scale * self.embed(tokens) + positions)",
        "(self.embedding_scale * (self.embed(tokens) + positions))", "test_model.py",
    ),
    "post": Mutation(
        "post-norm leaves the residual out of the norm", "model.py",
        "return self.mlp_norm(x + self.mlp(x, kept.mask, probe))",
        "return x + self.mlp_norm(self.mlp(x, kept.mask, probe))", "test_model.py",
    ),
    # Training.
    "decay": Mutation(
        "the decay ends a warm-up too early", "training/step.py",
        "decay_steps=max(num_steps, ", "decay_steps=max(num_steps - optimizer.warmup_steps, ",
        "training/test_step.py",
    ),
    "rates": Mutation(
        "the schedule is one step ahead", "training/step.py",
        "jnp.arange(num_steps)", "jnp.arange(1, num_steps + 1)", "training/test_step.py",
    ),
    "adamw": Mutation(
        "weight decay goes through Adam's moments", "training/step.py",
        "        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),\n"
        "        optax.add_decayed_weights"
        "(optimizer.weight_decay, _DECAYED[optimizer.weight_decay_on]),\n",
        "        optax.add_decayed_weights"
        "(optimizer.weight_decay, _DECAYED[optimizer.weight_decay_on]),\n"
        "        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),\n",
        "training/test_step.py",
    ),
    "norm": Mutation(
        "the gradients' norm is that of the update", "training/step.py",
        "optax.global_norm(grads)", "optax.global_norm(updates)",
        "training/test_loop.py",
    ),
    "padding": Mutation(
        "held-out losses count the rows that pad a batch", "training/loop.py",
        "np.asarray(values)[: len(rows)]", "np.asarray(values)", "training/test_loop.py",
    ),
    "sequences": Mutation(
        "held-out accuracy is that of positions, not of sequences", "training/step.py",
        "hits.mean(axis=1)", "hits.mean(axis=0)", "training/test_step.py",
    ),
    "branch": Mutation(
        "a run skips the batch at which another branches off", "training/loop.py",
        "        self._batches.set_state(restored.data_state)\n", "", "training/test_loop.py",
    ),
    "compaction": Mutation(
        "units that the mask leaves out count as unit 0", "training/compaction.py",
        "np.full(width, units.size, np.int32)", "np.zeros(width, np.int32)",
        "training/test_compaction.py",
    ),
    "put_back": Mutation(
        "masked units that only fill a width are written back", "training/compaction.py",
        "merged[self.units[layer][kept]] = np.moveaxis(values, axis, 0)[kept]",
        "merged[self.units[layer]] = np.moveaxis(values, axis, 0)", "training/test_compaction.py",
    ),
    "checkpoint": Mutation(
        "a checkpoint's digest leaves its history out", "training/checkpoints.py",
        "tree_leaves_with_path((checkpoint.state, checkpoint.history))",
        "tree_leaves_with_path(checkpoint.state)",
        "training/test_checkpoints.py training/test_loop.py",
    ),
    # Data.
    "shuffle": Mutation(
        "neighbouring seeds share their epochs", "data/pipeline.py",
        "int(np.random.SeedSequence(seed).generate_state(1)[0])", "seed", "data/test_pipeline.py",
    ),
    "epochs": Mutation(
        "every epoch has the same order", "data/pipeline.py",
        ".repeat()", ".repeat(reseed_each_epoch=False)", "data/test_pipeline.py",
    ),
    "row": Mutation(
        "a held-out row is taken to have no target more", "data/pipeline.py",
        "row_len = seq_len + 1", "row_len = seq_len", "data/test_pipeline.py",
    ),
    "leak": Mutation(
        "held-out documents are trained on too", "data/builders.py",
        "if is_heldout(document, self.builder_config.heldout_fraction) == heldout",
        "if is_heldout(document, self.builder_config.heldout_fraction) >= heldout",
        "data/test_sources.py",
    ),
    "split": Mutation(
        "C4's held-out text is its training text", "data/sources.py",
        'return "validation" if data', 'return "train" if data', "data/test_c4.py",
    ),
    "borders": Mutation(
        "a manifest does not tell where documents end", "data/sources.py",
        'len(encoded).to_bytes(8, "big") + encoded', "encoded", "data/test_sources.py",
    ),
    "bigrams": Mutation(
        "what precedes a token weighs in place of what follows", "data/ngrams.py",
        "pairs.sum(axis=1)", "pairs.sum(axis=0)", "data/test_ngrams.py",
    ),
    # What results rest on.
    "keys": Mutation(
        "a fingerprint depends on the order of parameters", "fingerprint.py",
        'sort_keys=True, separators=(",", ":")', 'separators=(",", ":")', "test_fingerprint.py",
    ),
    "imports": Mutation(
        "imports inside functions do not make results stale", "fingerprint.py",
        "yield from _imports(node)", "yield from ()", "test_fingerprint.py",
    ),
    "files": Mutation(
        "another caption does not make the report stale", "fingerprint.py",
        "hashlib.sha256(file.read_bytes())", "hashlib.sha256(file.name.encode())",
        "test_fingerprint.py",
    ),
    "made_from": Mutation(
        "other results before it do not make a result stale", "fingerprint.py",
        '"made_from": dict(self.made_from)', '"made_from": sorted(self.made_from)',
        "test_fingerprint.py",
    ),
    "digests": Mutation(
        "a number that is edited to another of its length is not seen", "provenance.py",
        "known[:3] != state", "known[0] != state[0]", "test_provenance.py",
    ),
    "finished": Mutation(
        "an export that is half in a bucket counts as finished", "store.py",
        'return (self.finished / "run.json").exists()', "return self.finished.exists()",
        "test_store.py",
    ),
    "newest": Mutation(
        "step 8 is newer than step 16", "store.py",
        "max(steps, default=None)", "max(steps, key=str, default=None)", "test_store.py",
    ),
    "flops": Mutation(
        "attention's FLOPs are counted for one of its two products", "flops.py",
        "4 * emb_dim**2 + 2 * seq_len", "4 * emb_dim**2 + seq_len", "test_flops.py",
    ),
    # Claims.
    "sides": Mutation(
        "a one-sided test is two-sided", "paper/evidence.py",
        'return _p_of_mean(differences, 0.0, "less")',
        'return _p_of_mean(differences, 0.0, "two-sided")', "paper/test_evidence.py",
    ),
    "tost": Mutation(
        "one of two tests is enough for equivalence", "paper/evidence.py",
        "return max(_p_of_mean", "return min(_p_of_mean", "paper/test_evidence.py",
    ),
    "holm": Mutation(
        "Holm's procedure does not step down", "paper/evidence.py",
        "alpha / (len(order) - rank)", "alpha / len(order)", "paper/test_evidence.py",
    ),
    "collapse": Mutation(
        "one of a collapse's two conditions is enough", "paper/rules.py",
        "COLLAPSE) and use[0] <=", "COLLAPSE) or use[0] <=", "paper/test_rules.py",
    ),
    "half_of_none": Mutation(
        "a layer without any unit is far below another one without", "paper/rules.py",
        "use[0] < lowest_other and use[0]", "use[0]", "paper/test_rules.py",
    ),
    "margin": Mutation(
        "any significant loss is a collapse", "paper/run_rules.py",
        "any(each.mean() > -margin for", "any(each.mean() > margin for", "paper/test_rules.py",
    ),
    "chance": Mutation(
        "a large loss that may be chance is none", "paper/run_rules.py",
        'return False, "the loss of accuracy is beyond the margin, and not significant"',
        'return False, ""', "paper/test_rules.py",
    ),
    "control": Mutation(
        "without a random mask, that of unused units proves something", "paper/run_rules.py",
        "(control if holds else", "(control if holds and random is not None else",
        "paper/test_rules.py",
    ),
    "by_depth": Mutation(
        "the smallest depth is the one that a list has first", "paper/run_rules.py",
        "runs = sorted(depths, key=lambda run: depths[run])", "runs = list(depths)",
        "paper/test_rules.py",
    ),
    "shallow": Mutation(
        "two layers tell an order", "paper/verdicts.py",
        "claim.runs if claim.compares_layers else ()", "()", "paper/test_verdicts.py",
    ),
    "mask_step": Mutation(
        "the evaluation before the mask counts as one after it", "paper/run_rules.py",
        "after = pairs.steps > _mask_step", "after = pairs.steps >= _mask_step",
        "paper/test_rules.py",
    ),
    "converged": Mutation(
        "the run that drifts least stands for all", "paper/verdicts.py",
        "worst = max(drift", "worst = min(drift", "paper/test_verdicts.py",
    ),
    "learned": Mutation(
        "what a model has to have learned is counted from bigrams", "paper/verdicts.py",
        "most = unigrams - share", "most = bigrams - share", "paper/test_verdicts.py",
    ),
    "scope": Mutation(
        "three seeds do not speak of training", "paper/verdicts.py",
        "and len(seeds) < MIN_SEEDS", "and len(seeds) <= MIN_SEEDS", "paper/test_verdicts.py",
    ),
    "shared": Mutation(
        "a mean of three seeds stands against one seed", "paper/verdicts.py",
        "results = results.of_seeds(seeds, *claim.runs)", "", "paper/test_verdicts.py",
    ),
    "no_voice": Mutation(
        "a seed that decides nothing agrees", "paper/verdicts.py",
        'one = "cannot be told" if finding.undecided else', "one =", "paper/test_verdicts.py",
    ),
    "ties": Mutation(
        "layers that tie are the highest", "paper/rules.py",
        "batch[lowest].min() > batch[others].max()", "batch[lowest].min() >= batch[others].max()",
        "paper/test_rules.py",
    ),
    "full": Mutation(
        "use that falls from 100 % has no room to rise", "paper/rules.py",
        "(stays & ~(at_limit & (change >= -AT_LIMIT))).any()", "(stays & ~at_limit).any()",
        "paper/test_rules.py",
    ),
    "dead": Mutation(
        "layers without any unit have few frequent ones", "paper/rules.py",
        "return Finding(bool(holds), evidence, _dead_layers(results))\n\n\ndef ratios",
        "return Finding(bool(holds), evidence)\n\n\ndef ratios", "paper/test_rules.py",
    ),
    "late_mask": Mutation(
        "at convergence are steps from before the mask", "params_file.py",
        "run.config.training.num_steps - window:", "run.config.training.num_steps:",
        "test_params.py",
    ),
    "edited": Mutation(
        "a job runs the code that its server imported, and is said to be made by that on disk",
        "forkserver.py", "is_other or not self._is_of_now()", "is_other",
        "test_forkserver.py",
    ),
    "alike": Mutation(
        "what trains runs with the server's settings of JAX, and not with the user's",
        "forkserver.py", "is_other = arguments[1] in TRAINING and ", "is_other = False and ",
        "test_forkserver.py",
    ),
    "dip": Mutation(
        "units that come back count as turned off", "paper/run_rules.py",
        "total[0] - early[-1], total[0] - total.min()",
        "total[0] - early.min(), total[0] - total.min()", "paper/test_rules.py",
    ),
    "never": Mutation(
        "a layer that never falls is before all others", "paper/run_rules.py",
        "steps[dropped.argmax(axis=0)], np.inf)", "steps[dropped.argmax(axis=0)], -np.inf)",
        "paper/test_rules.py",
    ),
    "ceiling": Mutation(
        "where no unit is off, that none turns on is a finding", "paper/rules.py",
        "if lowest < 100 - AT_LIMIT:", "if lowest < 1000 - AT_LIMIT:", "paper/test_rules.py",
    ),
    "arm": Mutation(
        "an arm that fails decides nothing", "paper/verdicts.py",
        "if not claim.is_test or run == claim.runs[0]:", "if claim.runs:", "paper/test_verdicts.py",
    ),
    "logits": Mutation(
        "logits are rounded to the type of the computation", "model.py",
        "                preferred_element_type=jnp.float32,\n", "", "test_model.py",
    ),
    "half_branch": Mutation(
        "a branch counts as there before it is whole", "training/loop.py",
        "        restored = branch.restore(step, self._whole_state)",
        '        write_units(folder / "units.npz", {step: units})\n'
        "        restored = branch.restore(step, self._whole_state)", "training/test_loop.py",
    ),
    "foreign": Mutation(
        "results are published over somebody's files", "publication.py",
        "if folder.exists() and not is_ours:", "if folder.is_file() and not is_ours:",
        "test_publication.py",
    ),
    "accepted": Mutation(
        "what was trained before an upgrade is freed with what is stale", "tidy.py",
        'read_json(run.job.record).get("accepted", [])', "()", "test_tidy.py",
    ),
    "twice": Mutation(
        "of a key that stands twice the last one counts", "schema.py",
        "            if key.value in seen:", "            if key in seen:", "test_params.py",
    ),
    "one_program": Mutation(
        "runs of few steps keep every step", "training/loop.py",
        "if step in self._recorded:", "if output.unit_use is not None:", "training/test_loop.py",
    ),
    # Results that are not what they are taken for.
    "stale_published": Mutation(
        "results of other parameters are published", "publication.py",
        "    require_results(shown, params.scale)", "    require_results([], params.scale)",
        "test_publication.py",
    ),
    "notes": Mutation(
        "a reader's notes beside what is published are lost", "publication.py",
        "for path in (*kept, *_not_written_here(folder)):", "for path in kept:",
        "test_publication.py",
    ),
    "killed_copy": Mutation(
        "notes are lost where publishing was killed", "publication.py",
        "if not folder.exists() and (partial / _MADE_FROM).is_file():", "if False:",
        "test_publication.py",
    ),
    "lacking": Mutation(
        "numbers that are not there agree with the published ones", "publication.py",
        "lacking = published.index.difference(own.index)", "lacking = published.index[:0]",
        "test_publication.py",
    ),
    "stale_compared": Mutation(
        "two commits are compared by results of other parameters", "paper/compare/revisions.py",
        "if path in stale:", "if path in ():", "paper/test_compare.py",
    ),
    "whose_text": Mutation(
        "a mask is taken of a parent on another text", "jobs.py",
        "            table[before].after\n", "            ()\n", "test_jobs.py",
    ),
    "accepted_before": Mutation(
        "results after those that were accepted before are refused", "accept.py",
        'before[job.name] = {told["fingerprint"] for told in history}', "before[job.name] = set()",
        "test_accept.py",
    ),
    "whose_slice": Mutation(
        "a slice of another store is taken over", "tpu/work.py",
        "which = owner_of(store_root())[:6] + self.store.folder.name[:8]",
        "which = self.store.folder.name[:8]", "tpu/test_work.py",
    ),
    "editor": Mutation(
        "an editor's lock file ends everybody's jobs", "forkserver.py",
        "except (OSError, metadata.PackageNotFoundError):", "except metadata.PackageNotFoundError:",
        "test_forkserver.py",
    ),
    "pulled": Mutation(
        "what was pulled counts as not started", "status.py",
        "if has_results or store.is_finished():", "if store.is_finished():", "test_status.py",
    ),
    "given_up": Mutation(
        "a workflow waits for what has failed", "dag_view.py",
        "given_up = self._failed - running.keys()", "given_up: set[str] = set()",
        "test_dag_view.py",
    ),
    # What a run is, from its parameters to the loop.
    "one_seed": Mutation(
        "every seed is the first one", "training/run.py",
        "        seed=run.seed,\n        train", "        seed=0,\n        train",
        "training/test_run.py",
    ),
    "loop_seed": Mutation(
        "every seed has the first one's batches", "training/loop.py",
        "            seed=job.seed,", "            seed=0,", "training/test_loop.py",
    ),
    "no_control": Mutation(
        "the random mask is that of the unused units", "training/run.py",
        'if run.intervention == "mask_unused"', "if True", "training/test_run.py",
    ),
    "first_widths": Mutation(
        "round 2 is as wide as what round 1 used at its first step", "training/run.py",
        "last = parent.config.training.num_steps - 1", "last = 0", "training/test_run.py",
    ),
    "same_text": Mutation(
        "runs are evaluated on what they train on", "training/run.py",
        'sources.documents(config.data, folder, "heldout")',
        'sources.documents(config.data, folder, "train")', "training/test_run.py",
    ),
    "rmsnorm": Mutation(
        "the other norm is never used", "model.py",
        'norm = {"layernorm": nnx.LayerNorm, "rmsnorm": nnx.RMSNorm}[params.norm]',
        "norm = nnx.LayerNorm", "test_model.py",
    ),
    "pairing": Mutation(
        "seeds are paired in opposite orders", "paper/evidence.py",
        "for seed in shared] for run in (first, second)]",
        "for seed in (shared if run == first else shared[::-1])] for run in (first, second)]",
        "paper/test_evidence.py",
    ),
    "own_window": Mutation(
        "every run has the baseline's convergence window", "paper/evidence.py",
        "self.params.runs[run].config.metrics", 'self.params.runs["baseline"].config.metrics',
        "paper/test_evidence.py",
    ),
    "other_code": Mutation(
        "results of other code are accepted", "accept.py",
        'for part in ("parameters", "code")', 'for part in ("parameters",)', "test_accept.py",
    ),
    "own_copy": Mutation(
        "a copy of one's own in the store is freed", "tidy.py",
        "        if not seed.isdecimal():\n            continue\n        is_known",
        '        seed = "".join(filter(str.isdecimal, seed))\n        is_known', "test_tidy.py",
    ),
    "verified": Mutation(
        "other results than the published ones are verified", "sharing.py",
        "if not found.passed:", "if False:", "test_publication.py",
    ),
}  # fmt: skip


def main() -> None:
    """Breaks the lines and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=MUTATIONS, help="only this one")
    chosen = parser.parse_args().only or list(MUTATIONS)
    rows = _rows() if len(chosen) < len(MUTATIONS) else {}
    files = sorted({file for name in chosen for file in MUTATIONS[name].tests.split()})
    with tempfile.TemporaryDirectory() as temporary:
        # All of them at once: what is edited meanwhile changes nothing.
        folders = {
            name: copy_checkout(Path(temporary) / name).folder for name in ("unbroken", *chosen)
        }
        for name in chosen:
            MUTATIONS[name].make(folders[name])
        print("runs the tests of unbroken code", flush=True)
        failed, _ = _run(folders["unbroken"], files)
        if failed:
            raise SystemExit(f"error: {failed} fails already; allowed: tests that pass")
        for number, name in enumerate(chosen, 1):
            failed, seconds = _run(folders[name], MUTATIONS[name].tests.split())
            rows[name] = _row(name, failed or NOT_CAUGHT, f"{seconds:.0f}")
            print(f"{number} of {len(chosen)}: {' | '.join(rows[name].values())}", flush=True)
            write_text(TABLE, _text([rows[each] for each in MUTATIONS if each in rows]))
    if passed := [name for name, row in rows.items() if row["caught by"] == NOT_CAUGHT]:
        raise SystemExit(f"error: no test has noticed: {', '.join(passed)}")


def _run(folder: Path, files: list[str]) -> tuple[str, float]:
    """The first test of a checkout that fails, or nothing; and seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not whole",
         *(f"tests/{file}" for file in files)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
    )  # fmt: skip
    first = re.search(r"^(?:FAILED|ERROR) tests/(\S+?::\w+(?:::\w+)?)", done.stdout, re.MULTILINE)
    # Pytest exits with 1 where a test has failed, and otherwise where there was none to run.
    if done.returncode not in (0, 1) or (first is None) != (done.returncode == 0):
        raise SystemExit(f"{done.stdout}{done.stderr}\nerror: the tests could not run in {folder}")
    return first[1] if first else "", time.perf_counter() - began


def _row(name: str, caught_by: str, seconds: str) -> dict[str, str]:
    mutation = MUTATIONS[name]
    return {
        "name": name,
        "what is wrong": mutation.what,
        "the change": mutation.change,
        "caught by": caught_by,
        "s": seconds,
    }


def _rows() -> dict[str, dict[str, str]]:
    """The rows of the table that is there, by their names, less those of other changes."""
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []:
        cells = [each.strip() for each in line.strip("|").split("|")]
        if cells[0] in MUTATIONS and cells == [*(row := _row(cells[0], *cells[-2:])).values()]:
            rows[cells[0]] = row
    return rows


def _text(rows: list[dict[str, str]]) -> str:
    head = (
        "Lines that a careless edit could break, the first of the tests of `make test` that fails "
        "then, and the seconds until it does. `bench/mutations.py` writes this table.\n\n"
    )
    return head + pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n"


if __name__ == "__main__":
    main()
