"""Does one job of the table of jobs."""

import importlib
import logging
from dataclasses import replace

from relu_sparsity import fingerprint
from relu_sparsity.errors import UserError
from relu_sparsity.jobs import job_table, require_current
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.provenance import write_record
from relu_sparsity.runs import resolve

log = logging.getLogger(__name__)


def perform(params: Params, layout: Layout, name: str) -> None:
    """Does a job: checks what it reads, makes its results, records what they were made from.

    Args:
      params: The scale.
      layout: Where its results go.
      name: The job.

    Raises:
      UserError: There is no such job, or what it reads is not what the parameters say.
    """
    table = job_table(params, layout)
    if name not in table:
        raise UserError(f"{name}: params.yaml has nothing for it at the scale {params.scale}")
    job = table[name]
    missing = require_current(job, table, layout.scale)
    module, _, function = job.writer.partition(":")
    write = getattr(importlib.import_module(f"{fingerprint.NAME}.{module}"), function)
    if job.takes_run:
        write(resolve(params, layout, job.arguments["run"], job.arguments["seed"]))
    else:
        write(params, layout, **job.arguments)
    if job.writes_record or not all(path.is_file() for path in job.outputs):
        # The first process of a run, or its writer, sees to it.
        return
    made_from = {key: hash for key, hash in job.fingerprint.made_from.items() if key not in missing}
    write_record(job.record, replace(job.fingerprint, made_from=made_from), job.outputs)
    log.info("wrote %s", ", ".join(map(str, job.outputs)))
