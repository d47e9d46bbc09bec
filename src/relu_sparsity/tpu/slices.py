"""The slices of TPUs that jobs run on: their settings, and what `gcloud` does with them.

A slice is one queued resource of Cloud TPU, and the node in it that has the same name.
"""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from relu_sparsity.errors import UserError
from relu_sparsity.schema import Section, read_yaml, told

OWNER_LABEL = "relu-sparsity-store"
ATTEMPT_LABEL = "relu-sparsity-attempt"
NAME_PREFIX = "relu-sparsity-"
# What the queue says of a request that will yet become a slice.
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
# What it says of one that was a slice: preempted, or taken for maintenance.
LOST = ("SUSPENDING", "SUSPENDED")
# What gcloud prints where the same call may go through later: the cloud's status, in capitals, or
# words that mean nothing else. A status of the cloud is a word of its own: INTERNAL, and not
# "internal IP".
_PASSING = re.compile(
    r"\b(UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED|INTERNAL)\b|"
    r"HTTPError (?:429|5\d\d)|"
    r"(?i:no more capacity|not enough resources|stockout|temporarily|timed out|"
    r"connection (?:reset|refused|aborted|error)|failed to establish a new connection|"
    r"rate limit|per minute)"
)
# What no waiting mends. A quota has the status RESOURCE_EXHAUSTED too; that of calls in a minute
# passes.
_REFUSED = re.compile(
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|FAILED_PRECONDITION)\b|"
    r"HTTPError 40[0-3]|"
    r"(?i:quota|permission|not allowed|denied|invalid|billing|not enabled)"
)
_CALLS_IN_A_MINUTE = re.compile(r"(?i)per minute|rate limit|HTTPError 429")
# google.rpc.Code: INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, UNAUTHENTICATED.
_REFUSING_CODES = (3, 7, 9, 16)
_NOT_FOUND = re.compile(r"NOT_FOUND|HTTPError 404|was not found", re.IGNORECASE)
_ALREADY_EXISTS = re.compile(r"ALREADY_EXISTS|HTTPError 409")


class SliceParams(Section):
    """What a slice is, and how patiently it is watched: a YAML file of the profile.

    Attributes:
      accelerator_type: Kind and size, as `gcloud compute tpus accelerator-types list` has them.
      runtime_version: The hosts' image.
      zone: None takes gcloud's `compute/zone`.
      project: None takes gcloud's `core/project`.
      spot: Cheaper, and preempted at any time.
      network: None takes the project's default network.
      subnetwork: None takes the network's default.
      service_account: None takes the project's default. It reads and writes the bucket.
      python: A Python of the image that has the locked packages; None installs them.
      poll_seconds: How often a host says that it lives, and the controller looks.
      host_timeout_seconds: When a host that says nothing counts as dead.
      hang_timeout_seconds: When a process that takes no step ends itself, to be started again.
      max_restarts: How often a slice's processes may be started again without a new checkpoint.
      stop_seconds: How long a slice that is to be deleted may save its checkpoint.
      max_failures: Slices in a row that may be lost without a new checkpoint.
      max_wait_hours: How long a job may wait for a slice, without one between.
      price_per_chip_hour: Of a chip in the zone, in any currency; None tells no cost.
    """

    accelerator_type: str = Field(default="v2-32", pattern=r"^[a-z0-9]+-\d+$")
    runtime_version: str = Field(default="tpu-ubuntu2204-base", pattern=r"^[a-z0-9.\-]+$")
    zone: str | None = None
    project: str | None = None
    spot: bool = True
    network: str | None = None
    subnetwork: str | None = None
    service_account: str | None = None
    python: str | None = None
    poll_seconds: PositiveFloat = 30.0
    host_timeout_seconds: PositiveFloat = 900.0
    hang_timeout_seconds: int = Field(default=600, ge=5)
    max_restarts: PositiveInt = 3
    stop_seconds: PositiveFloat = 180.0
    max_failures: PositiveInt = 5
    max_wait_hours: PositiveFloat = 72.0
    price_per_chip_hour: PositiveFloat | None = None

    @property
    def num_chips(self) -> int:
        """Chips of a slice: the names of v2 to v5p count cores, two a chip; later ones chips."""
        kind, _, size = self.accelerator_type.partition("-")
        return int(size) // 2 if kind in ("v2", "v3", "v4", "v5p") else int(size)

    @property
    def hourly_price(self) -> float | None:
        """Of a slice; None where no price is given."""
        price = self.price_per_chip_hour
        return None if price is None else price * self.num_chips


def load_slice_params(path: Path) -> SliceParams:
    """Reads and checks the file of a profile's slices.

    Raises:
      UserError: It is missing or not YAML, or a key or a value is not allowed.
    """
    document = read_yaml(path) or {}
    known = tuple(SliceParams.model_fields)
    if not isinstance(document, Mapping):
        raise UserError(f"{path}: allowed: a mapping with the keys {', '.join(known)}")
    try:
        return SliceParams.model_validate(document)
    except ValidationError as error:
        found = [told(each, known) for each in error.errors()]
        lines = [f"{path}: {'.'.join(location)}: {text}" for location, text in found]
        raise UserError("\n".join(lines)) from None


def slice_name(*parts: str) -> str:
    """A name that Cloud TPU allows: small letters, digits and hyphens, at most 61 of them.

    Args:
      *parts: What it is for; the last one tells it from all others.
    """
    *words, last = (re.sub(r"[^a-z0-9]+", "-", part.lower()) for part in parts)
    head = (NAME_PREFIX + "-".join(words))[: 60 - len(last)].rstrip("-")
    return f"{head}-{last}"


def owner_of(store: os.PathLike[str] | str) -> str:
    """The value of `OWNER_LABEL` on slices that write to a store."""
    return hashlib.sha256(os.fspath(store).rstrip("/").encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Slice:
    """A queued resource.

    Attributes:
      name: Its name, and that of the node in it.
      state: The queue's word: ACTIVE, WAITING_FOR_RESOURCES, FAILED, SUSPENDED, ...
      message: Why it failed.
      code: The same as a google.rpc.Code; 0 where it did not fail.
      accelerator_type: Kind and size.
      spot: Whether it can be preempted.
      labels: The node's labels.
      created: When it was asked for.
    """

    name: str
    state: str
    message: str
    accelerator_type: str
    spot: bool
    labels: Mapping[str, str]
    created: str
    code: int = 0

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> "Slice":
        """Reads what `gcloud ... --format=json` prints of one queued resource."""
        state = described.get("state", {})
        failed = state.get("failedData", {}).get("error", {})
        nodes = described.get("tpu", {}).get("nodeSpec") or [{}]
        node = nodes[0].get("node", {})
        return cls(
            name=described["name"].rpartition("/")[2],
            state=state.get("state", "UNKNOWN"),
            message=failed.get("message", ""),
            accelerator_type=node.get("acceleratorType", ""),
            spot="spot" in described,
            labels=node.get("labels", {}),
            created=described.get("createTime", ""),
            code=failed.get("code", 0),
        )

    def is_refused(self) -> bool:
        """Whether it failed for a reason that waiting does not mend."""
        return self.code in _REFUSING_CODES or is_refusal(self.message)


def is_refusal(message: str) -> bool:
    """Whether the cloud says no: no permission, no quota, no such thing."""
    return bool(_REFUSED.search(message)) and not _CALLS_IN_A_MINUTE.search(message)


class PassingTrouble(Exception):
    """The cloud has no capacity, or does not answer: the same call may go through later."""


class AlreadyExists(UserError):
    """There is a slice of that name."""


class Gcloud:
    """The slices of one project and zone, by the command `gcloud`."""

    def __init__(self, project: str, zone: str) -> None:
        self.project = project
        self.zone = zone

    def create(
        self,
        name: str,
        params: SliceParams,
        *,
        startup_script: Path,
        labels: Mapping[str, str],
    ) -> None:
        """Asks for a slice whose hosts run a script whenever they boot.

        Raises:
          PassingTrouble: No capacity, or no answer.
          AlreadyExists: There is one of that name.
          UserError: The cloud refuses: no permission, no quota, no such type or zone.
        """
        options = [
            f"--node-id={name}",
            f"--accelerator-type={params.accelerator_type}",
            f"--runtime-version={params.runtime_version}",
            f"--metadata-from-file=startup-script={startup_script}",
            "--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()),
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
        ]
        options += ["--spot"] if params.spot else []
        for key in ("network", "subnetwork", "service_account"):
            value = getattr(params, key)
            options += [f"--{key.replace('_', '-')}={value}"] if value else []
        try:
            self._queued_resources("create", name, *options)
        except _NotFound as error:
            raise UserError(f"the cloud refuses the slice {name}: {error}") from None

    def describe(self, name: str) -> Slice | None:
        """One slice; None where there is none of that name.

        Raises:
          PassingTrouble: No answer.
          UserError: The cloud refuses.
        """
        try:
            printed = self._queued_resources("describe", name, "--format=json")
        except _NotFound:
            return None
        return Slice.from_json(json.loads(printed))

    def list(self) -> "list[Slice]":
        """All slices that this project's launchers asked for, whatever store they write to.

        Raises:
          PassingTrouble: No answer.
          UserError: The cloud refuses, or has no such project or zone.
        """
        try:
            printed = self._queued_resources("list", "--format=json")
        except _NotFound as error:
            raise UserError(f"the cloud has no slices there: {error}") from None
        found = (Slice.from_json(each) for each in json.loads(printed or "[]"))
        return [each for each in found if each.name.startswith(NAME_PREFIX)]

    def delete(self, name: str, *, patience: float = 600.0) -> None:
        """Deletes a slice and waits until it is gone. Does nothing where there is none.

        Args:
          name: Its name.
          patience: Seconds to go on trying.

        Raises:
          UserError: It is still there.
        """
        deadline = time.monotonic() + patience
        pause = 1.0
        while True:
            trouble = "it is still there"
            try:
                self._queued_resources("delete", name, "--force", "--quiet")
                if self.describe(name) is None:
                    return
            except _NotFound:
                return
            except (PassingTrouble, UserError) as error:
                trouble = str(error)
            if time.monotonic() > deadline:
                raise UserError(
                    f"the slice {name} could not be deleted ({trouble}) and may cost money; run "
                    "'relu-sparsity tpu cleanup'"
                )
            time.sleep(pause)
            pause = min(30.0, 2 * pause)

    def _queued_resources(self, verb: str, *arguments: str) -> str:
        where = (f"--project={self.project}", f"--zone={self.zone}")
        return call(["compute", "tpus", "queued-resources", verb, *arguments, *where])


class _NotFound(Exception):
    pass


def call(arguments: Sequence[str]) -> str:
    """Runs `gcloud` and returns what it printed.

    Raises:
      PassingTrouble: The same call may go through later.
      UserError: It will not.
    """
    # In a session of its own: Ctrl-C is for the launcher, which still has to delete things.
    try:
        done = subprocess.run(
            ["gcloud", *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        # It is just being updated, or there is no memory for it.
        raise PassingTrouble(f"gcloud could not be started: {error}") from None
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip() or f"exit status {done.returncode}"
    if _ALREADY_EXISTS.search(message):
        raise AlreadyExists(f"gcloud {' '.join(arguments[:4])}: {message}")
    if _NOT_FOUND.search(message):
        raise _NotFound(message)
    if _PASSING.search(message) and not is_refusal(message):
        raise PassingTrouble(message)
    raise UserError(f"gcloud {' '.join(arguments[:4])}: {message}")


def configured(key: str) -> str | None:
    """A value of gcloud's own configuration, or None."""
    try:
        value = call(["config", "get-value", key, "--quiet"]).strip()
    except (PassingTrouble, UserError, _NotFound):
        return None
    return None if value in ("", "(unset)") else value
