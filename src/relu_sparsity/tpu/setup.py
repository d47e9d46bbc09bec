"""What has to be set up before slices can be asked for, and the slices that there are."""

import importlib.util
import os
from collections.abc import Sequence

from relu_sparsity.errors import UserError
from relu_sparsity.files import is_remote
from relu_sparsity.layout import store_root
from relu_sparsity.params import Params
from relu_sparsity.tpu.slices import (
    OWNER_LABEL,
    Gcloud,
    PassingTrouble,
    Slice,
    SliceParams,
    configured,
    gcloud_is_installed,
    owner_of,
)


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
    if missing or gcloud is None:
        raise _not_set_up(missing)
    return gcloud


def look_for_gcloud(settings: SliceParams) -> tuple[Gcloud | None, list[str]]:
    """The project and the zone, or what has to be set up to know them."""
    if not gcloud_is_installed():
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
