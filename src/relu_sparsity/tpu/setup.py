"""What has to be set up before slices can be asked for, and the slices that there are."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence

from relu_sparsity.errors import UserError
from relu_sparsity.files import is_remote
from relu_sparsity.layout import store_root
from relu_sparsity.params import Params
from relu_sparsity.tpu.slice_job import SliceJob
from relu_sparsity.tpu.slices import (
    OWNER_LABEL,
    Gcloud,
    PassingTrouble,
    Slice,
    SliceParams,
    configured,
    owner_of,
)

log = logging.getLogger(__name__)


def connect(settings: SliceParams) -> Gcloud:
    """Finds the project and the zone.

    Raises:
      UserError: `gcloud` is missing or not set up. The message tells all that is.
    """
    gcloud, missing = look_for_gcloud(settings)
    if gcloud is None:
        raise _not_set_up(missing)
    return gcloud


def require_setup(settings: SliceParams, params: Params) -> Gcloud:
    """Checks that jobs can be launched, before anything is started.

    Args:
      settings: The slices.
      params: The scale; its data have to be where the hosts can read them.

    Raises:
      UserError: Something has to be set up. One message tells all of it.
    """
    gcloud, missing = look_for_gcloud(settings)
    store, data = store_root(), params.defaults.data
    if not is_remote(store):
        missing.append(
            f"a bucket for trained runs: export RELU_SPARSITY_STORE=gs://BUCKET/relu-sparsity "
            f"(now {os.fspath(store)!r}, which the hosts of a slice cannot reach)"
        )
    if importlib.util.find_spec("gcsfs") is None:
        missing.append("the extra `tpu`: pip install -e '.[tpu]' (gcsfs is missing)")
    if data.source == "tfds" and "://" not in (data.data_dir or ""):
        missing.append(
            f"the text: set scales.{params.scale}.data.data_dir in params.yaml to the folder in a "
            f"bucket where TFDS stored {data.tfds_name} (now {data.data_dir or 'null'})"
        )
    if data.source == "text":
        missing.append(
            "the text: a slice's hosts cannot read your files; allowed: data.source tfds, in a "
            "bucket, or docs, which comes with the packages"
        )
    model = params.defaults.tokenizer.model
    if model is not None and not is_remote(model):
        missing.append(f"the tokenizer: copy tokenizer.model to a bucket (now {model!r})")
    if missing or gcloud is None:
        raise _not_set_up(missing)
    return gcloud


def look_for_gcloud(settings: SliceParams) -> tuple[Gcloud | None, list[str]]:
    """The project and the zone, or what has to be set up to know them."""
    if shutil.which("gcloud") is None:
        return None, [
            "the Google Cloud CLI: the command `gcloud` is not found; install it, then log in"
        ]
    project = settings.project or configured("core/project")
    zone = settings.zone or configured("compute/zone")
    missing = []
    if project is None:
        missing.append("a project: gcloud config set project PROJECT, or `project:` in the profile")
    if zone is None:
        missing.append("a zone: gcloud config set compute/zone ZONE, or `zone:` in the profile")
    if configured("account") is None:
        missing.append("an account: gcloud auth login")
    if missing or project is None or zone is None:
        return None, missing
    return Gcloud(project, zone), missing


def _not_set_up(missing: Sequence[str]) -> UserError:
    return UserError(
        "the slices cannot be launched; docs/tpu.md tells how to set this up:\n  - "
        + "\n  - ".join(missing)
    )


def owned_slices(gcloud: Gcloud, *, all_stores: bool = False) -> list[Slice]:
    """The slices of launchers of this project.

    Args:
      gcloud: Project and zone.
      all_stores: Also those whose jobs write to another store: they may be someone else's.

    Raises:
      UserError: The cloud refuses, or does not answer.
    """
    try:
        found = gcloud.list()
    except PassingTrouble as trouble:
        raise UserError(f"the cloud does not answer: {trouble}") from None
    owner = owner_of(store_root())
    return [each for each in found if all_stores or each.labels.get(OWNER_LABEL) == owner]


def delete_left_over(job: SliceJob, settings: SliceParams) -> None:
    """Deletes the slice of a launcher that was killed before its job was done.

    Raises:
      UserError: The cloud refuses, or the slice is still there.
    """
    gcloud, missing = look_for_gcloud(settings)
    try:
        if gcloud is None:
            raise PassingTrouble("; ".join(missing))
        if gcloud.describe(job.name) is None:
            return
    except PassingTrouble as trouble:
        log.warning(
            "%s: is done; whether its slice was left over is not known (%s): look with "
            "'relu-sparsity tpu list'", job.name, trouble,
        )  # fmt: skip
        return
    log.info("%s: deletes the slice of a launcher that was killed", job.name)
    gcloud.delete(job.name)
    job.write_usage({key: use.marked("gone") for key, use in job.usage().items()})
