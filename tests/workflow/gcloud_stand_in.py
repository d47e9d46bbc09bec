"""A stand-in for the command `gcloud`: slices whose hosts are processes of this machine.

It knows the calls of the launcher and of the start-up script, checks names as Cloud TPU does, and
keeps its state in files. A slice has as many hosts as one of Cloud TPU, and four simulated CPU
devices in all. Each host really runs the start-up script that the slice was created with, and is
told of itself by a metadata server, as in the cloud. Preemption kills all of them at once.
"""

import datetime
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NUM_DEVICES = 4
STATE_VARIABLE = "GCLOUD_STAND_IN"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[-_a-z0-9]{0,63}")
_ATTRIBUTES = "computeMetadata/v1/instance/attributes/"


def num_hosts(accelerator_type: str) -> int:
    """The hosts of a slice of TPU v2 or v3: one for eight cores."""
    return int(accelerator_type.partition("-")[2]) // 8


class Cloud:
    """The project's slices, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def install(cls, folder: Path) -> "Cloud":
        """Makes the command and an empty project."""
        (folder / "bin").mkdir(parents=True)
        (folder / "slices").mkdir()
        command = folder / "bin" / "gcloud"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} "$@"\n')
        command.chmod(0o755)
        cloud = cls(folder)
        cloud._serve_metadata()
        cloud.configure(**{"core/project": "a-project", "compute/zone": "a-zone", "account": "me"})
        cloud.fail_next(0)
        cloud.refuse("")
        return cloud

    def configure(self, **values: str) -> None:
        """Sets gcloud's own configuration."""
        (self.folder / "config.json").write_text(json.dumps(values))

    def fail_next(self, count: int, message: str = "There is no more capacity in the zone") -> None:
        """Lets the next requests fail."""
        (self.folder / "failing.json").write_text(json.dumps([message] * count))

    def refuse(self, message: str, verb: str = "") -> None:
        """Lets every call of a verb (of none: of all) end with this message; "" ends that."""
        (self.folder / "refused.json").write_text(json.dumps([verb, message]))

    def environment(self, path: str) -> dict[str, str]:
        """The variables of a process that is to find this command first."""
        return {
            "PATH": os.pathsep.join([str(self.folder / "bin"), path]),
            STATE_VARIABLE: str(self.folder),
        }

    def shadow(self, command: str, script: str) -> None:
        """Lets another command, of the hosts too, do something else."""
        path = self.folder / "bin" / command
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def slices(self) -> dict[str, dict[str, Any]]:
        """All slices by name."""
        return {path.stem: json.loads(path.read_text()) for path in self._files()}

    def calls(self) -> list[str]:
        """Every call of the command so far."""
        path = self.folder / "calls.log"
        return path.read_text().splitlines() if path.exists() else []

    def preempt(self, name: str) -> None:
        """Takes a slice away, as happens to spot ones."""
        self._kill_hosts(name)
        self._change(name, state="SUSPENDED")

    def kill_host(self, name: str, worker: int) -> None:
        """Ends all processes of one host; the cloud does not notice."""
        _kill_session(self.slices()[name]["hosts"][worker])

    def trainer_of(self, name: str, worker: int) -> int:
        """The process that trains on a host."""
        session = self.slices()[name]["hosts"][worker]
        for process in _session(session):
            command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            if "train" in command:
                return process
        raise LookupError(f"host {worker} of {name} does not train")

    def destroy(self) -> None:
        """Ends everything."""
        for name in self.slices():
            self._kill_hosts(name)
        self._metadata.shutdown()
        self._metadata.server_close()

    def _serve_metadata(self) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        file = self._file

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, name, worker, *attribute = self.path.split("/")
                count = num_hosts(json.loads(file(name).read_text())["accelerator_type"])
                known = {
                    "agent-worker-number": worker,
                    "worker-network-endpoints": ",".join(["unknown:unknown:127.0.0.1"] * count),
                }
                found = known.get("/".join(attribute).removeprefix(_ATTRIBUTES))
                if self.headers["Metadata-Flavor"] != "Google":
                    self.send_error(403)
                elif found is None:
                    self.send_error(404)
                else:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(found.encode())

            def log_message(self, format: str, *values: object) -> None:
                pass

        self._metadata = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._metadata.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{self._metadata.server_port}"
        (self.folder / "metadata.txt").write_text(address)

    def create(self, name: str, options: dict[str, str]) -> None:
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(options["node-id"]):
            _refuse(f"INVALID_ARGUMENT: {name} is no name")
        labels = dict(pair.split("=") for pair in options["labels"].split(","))
        if not all(_LABEL.fullmatch(text) for pair in labels.items() for text in pair):
            _refuse(f"INVALID_ARGUMENT: {labels} are no labels")
        if self._file(name).exists():
            _refuse(f"ALREADY_EXISTS: {name}")
        script = Path(options["metadata-from-file"].removeprefix("startup-script="))
        kept = self.folder / f"{name}.startup.sh"
        shutil.copyfile(script, kept)
        failing = json.loads((self.folder / "failing.json").read_text())
        described = {
            "state": "FAILED" if failing else "WAITING_FOR_RESOURCES",
            "message": failing.pop() if failing else "",
            "labels": labels,
            "accelerator_type": options["accelerator-type"],
            "spot": "spot" in options,
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
            "startup": str(kept),
            "hosts": [],
        }
        (self.folder / "failing.json").write_text(json.dumps(failing))
        self._file(name).write_text(json.dumps(described))
        if described["state"] != "FAILED":
            subprocess.Popen(
                [sys.executable, "-S", __file__, "provision", name],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def provision(self, name: str) -> None:
        """What the cloud does by itself after a request."""
        time.sleep(0.5)
        self._change(name, state="PROVISIONING")
        time.sleep(0.5)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        described = self.slices()[name]
        metadata = (self.folder / "metadata.txt").read_text()
        count = num_hosts(described["accelerator_type"])
        hosts = []
        for worker in range(count):
            work = self.folder / "hosts" / name / str(worker)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            environment = os.environ | {
                "RELU_SPARSITY_WORK": str(work),
                "GCE_METADATA_IP": f"{metadata}/{name}/{worker}",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(worker),
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={NUM_DEVICES // count}",
            }
            environment.pop("RELU_SPARSITY_STORE", None)  # The script has to set it.
            with (work / "startup.log").open("w") as log:
                process = subprocess.Popen(
                    ["bash", described["startup"]],
                    cwd=work,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            hosts.append(process.pid)
        if not self._change(name, state="ACTIVE", hosts=hosts):
            for host in hosts:
                _kill_session(host)

    def describe(self, name: str) -> dict[str, Any]:
        if not self._file(name).exists():
            _refuse(f"NOT_FOUND: {name}")
        found = self.slices()[name]
        state: dict[str, Any] = {"state": found["state"]}
        if found["state"] == "FAILED":
            state["failedData"] = {"error": {"code": 8, "message": found["message"]}}
        node = {"acceleratorType": found["accelerator_type"], "labels": found["labels"]}
        return {
            "name": f"projects/a-project/locations/a-zone/queuedResources/{name}",
            "createTime": found["created"],
            "state": state,
            "tpu": {"nodeSpec": [{"nodeId": name, "node": node}]},
        } | ({"spot": {}} if found["spot"] else {})

    def delete(self, name: str) -> None:
        if not self._file(name).exists():
            _refuse(f"NOT_FOUND: {name}")
        self._kill_hosts(name)
        self._file(name).unlink()

    def _kill_hosts(self, name: str) -> None:
        for host in self.slices()[name]["hosts"]:
            _kill_session(host)

    def _change(self, name: str, **values: Any) -> bool:
        if not self._file(name).exists():
            return False
        temporary = self._file(name).with_suffix(".new")
        temporary.write_text(json.dumps(self.slices()[name] | values))
        temporary.replace(self._file(name))
        return True

    def _file(self, name: str) -> Path:
        return self.folder / "slices" / f"{name}.json"

    def _files(self) -> list[Path]:
        return sorted((self.folder / "slices").glob("*.json"))


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.name))
    return found


def _kill_session(leader: int) -> None:
    while processes := _session(leader):
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _refuse(message: str) -> None:
    print(f"ERROR: (gcloud.compute.tpus.queued-resources) {message}", file=sys.stderr)
    sys.exit(1)


def _download(source: str, target: str) -> None:
    url = os.environ["STORAGE_EMULATOR_HOST"]
    quoted = urllib.parse.quote(source.removeprefix("gs://"))
    urllib.request.urlretrieve(f"{url}/{quoted}", target)


def _upload(source: str, target: str) -> None:
    url = os.environ["STORAGE_EMULATOR_HOST"]
    quoted = urllib.parse.quote(target.removeprefix("gs://"))
    content = Path(source).read_bytes()
    urllib.request.urlopen(urllib.request.Request(f"{url}/{quoted}", content, method="PUT"))


def main(arguments: Sequence[str]) -> None:
    cloud = Cloud(Path(os.environ[STATE_VARIABLE]))
    if arguments[0] == "provision":
        cloud.provision(arguments[1])
        return
    with (cloud.folder / "calls.log").open("a") as log:
        print(*arguments, file=log)
    verb, refused = json.loads((cloud.folder / "refused.json").read_text())
    if refused and verb in ("", *arguments):
        _refuse(refused)
    words = [each for each in arguments if not each.startswith("--")]
    flags = (each[2:].partition("=") for each in arguments if each.startswith("--"))
    options = {key: value for key, _, value in flags}
    match words:
        case ["config", "get-value", key]:
            print(json.loads((cloud.folder / "config.json").read_text()).get(key, "(unset)"))
        case ["storage", "cp", source, target] if target.startswith("gs://"):
            _upload(source, target)
        case ["storage", "cp", source, target]:
            _download(source, target)
        case ["compute", "tpus", "queued-resources", "create", name]:
            cloud.create(name, options)
        case ["compute", "tpus", "queued-resources", "describe", name]:
            print(json.dumps(cloud.describe(name)))
        case ["compute", "tpus", "queued-resources", "delete", name]:
            cloud.delete(name)
        case ["compute", "tpus", "queued-resources", "list"]:
            print(json.dumps([cloud.describe(name) for name in cloud.slices()]))
        case _:
            _refuse(f"INVALID_ARGUMENT: the stand-in does not know {' '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[1:])
