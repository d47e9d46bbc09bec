"""A small Google Cloud Storage on this machine, for tests of `gs://` paths.

Speaks the parts of the JSON API that gcsfs, TensorStore, ArrayRecord and plain HTTP clients use,
with generations, preconditions and atomic moves as the real service has them; objects are kept in
memory. `python tests/gcs_emulator.py FOLDER` prints the variables to export and serves.
"""

import contextlib
import itertools
import json
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

BUCKET = "test-bucket"  # TensorStore, as the real service, rejects names of less than 3 letters.
_OBJECT = re.compile(rf"(?:/download)?/storage/v1/b/{BUCKET}/o/([^/]+)")
_COPY = re.compile(rf"/storage/v1/b/{BUCKET}/o/([^/]+)/(?:(moveTo)|rewriteTo/b/{BUCKET})/o/([^/]+)")


class Answer(NamedTuple):
    """A response; its body is JSON unless it is bytes."""

    status: int
    body: Any = b""
    headers: dict[str, str] | None = None


class RequestError(Exception):
    """A request that the service refuses: a status and a message."""


class StoredObject(NamedTuple):
    """One generation of one object, and what the API says of it."""

    data: bytes
    about: dict[str, str]


class GcsEmulator:
    """A running emulator and what it holds.

    Attributes:
      bucket: The bucket that exists.
      url: Where it listens.
      environment: The variables that send a process's `gs://` paths here, without any look for
        credentials. Set them before it starts: TensorStore and etils read them once.
      requests: The requests so far, as "METHOD path?query STATUS".
      latency: Seconds that each request waits first; the real service takes some 0.03.
      failing: The fraction of requests that the service answers with 503, to be sent again.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.bucket = BUCKET
        self.url = url
        self.requests: list[str] = []
        self.latency = 0.0
        self.failing = 0.0
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs
            "TENSORSTORE_GCS_HTTP_URL": url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # ArrayRecord
            "FSSPEC_GCS_TOKEN": "anon",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "testing",  # TensorStore
            # Else gcsfs asks for the bucket's kind by gRPC with TLS: a minute for every path.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "EPATH_USE_TF": "false",  # TensorFlow, where installed, would ask the real service.
            # No metadata server, no credentials of the developer's own, no proxy.
            "NO_GCE_CHECK": "true",
            "CLOUDSDK_CONFIG": str(folder / "gcloud"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._objects: dict[str, StoredObject] = {}
        self._uploads: dict[str, tuple[dict[str, str], bytearray]] = {}
        self._generations = itertools.count(time.time_ns() // 1000)

    def names(self, prefix: str = "") -> list[str]:
        """The names of the objects that start with `prefix`, in order."""
        with self._lock:
            return sorted(name for name in self._objects if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        with self._lock:
            return self._objects[name].data

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces an object, as another machine would."""
        with self._lock:
            self._put(name, data, {})

    def remove(self, name: str) -> None:
        """Deletes an object, as another machine would."""
        with self._lock:
            del self._objects[name]

    def answer(self, method: str, target: str, headers: Message, body: bytes) -> Answer:
        """Carries out one request as a whole, so that none sees another half done."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        time.sleep(self.latency)
        with self._lock:
            try:
                if self._random.random() < self.failing:
                    raise RequestError(503, "We encountered an internal error. Please try again.")
                answer = self._route(method, parts.path, query, headers, body)
            except RequestError as error:
                status, message = error.args
                answer = Answer(status, {"error": {"code": status, "message": message}})
            except (LookupError, ValueError) as error:
                answer = Answer(400, {"error": {"code": 400, "message": repr(error)}})
            self.requests.append(f"{method} {target} {answer.status}")
        return answer

    def _route(
        self, method: str, path: str, query: dict[str, str], headers: Message, body: bytes
    ) -> Answer:
        if method == "GET" and path == f"/storage/v1/b/{BUCKET}":
            return Answer(200, {"kind": "storage#bucket", "id": BUCKET, "name": BUCKET})
        if method == "GET" and path == f"/storage/v1/b/{BUCKET}/o":
            return Answer(200, self._list(query))
        if method in ("POST", "PUT") and path == f"/upload/storage/v1/b/{BUCKET}/o":
            return self._upload(query, headers, body)
        if method == "POST" and (found := _COPY.fullmatch(path)):
            source, move, target = unquote(found[1]), found[2], unquote(found[3])
            about = self._put(target, self._get(source, query, "ifSourceGeneration").data, query)
            if move and source != target:
                del self._objects[source]
            return Answer(200, about if move else {"done": True, "resource": about})
        if method == "GET" and (found := _OBJECT.fullmatch(path)):
            stored = self._get(unquote(found[1]), query)
            media = query.get("alt") == "media"
            return _download(stored, headers) if media else Answer(200, stored.about)
        if method == "DELETE" and (found := _OBJECT.fullmatch(path)):
            self._get(unquote(found[1]), query)
            del self._objects[unquote(found[1])]
            return Answer(204)
        if method in ("GET", "PUT") and path.startswith(f"/{BUCKET}/"):  # The XML API
            name = unquote(path.removeprefix(f"/{BUCKET}/"))
            if method == "GET":
                return _download(self._get(name, query), headers)
            self._put(name, body, query)
            return Answer(200)
        raise RequestError(404, f"the emulator has no {method} {path}")

    def _check(self, name: str, query: dict[str, str], condition: str) -> None:
        """Raises unless the preconditions hold; generation 0 stands for no object."""
        now = self._objects[name].about["generation"] if name in self._objects else "0"
        if query.get(f"{condition}Match", now) != now:
            raise RequestError(412, "At least one of the pre-conditions did not hold.")
        if query.get(f"{condition}NotMatch") == now:
            raise RequestError(304, "Not modified")

    def _get(
        self, name: str, query: dict[str, str], condition: str = "ifGeneration"
    ) -> StoredObject:
        if name not in self._objects:
            raise RequestError(404, f"No such object: {BUCKET}/{name}")
        self._check(name, query, condition)
        return self._objects[name]

    def _put(self, name: str, data: bytes, query: dict[str, str]) -> dict[str, str]:
        if not 0 < len(name.encode()) <= 1024:
            raise RequestError(400, "An object's name has 1 to 1024 bytes.")
        self._check(name, query, "ifGeneration")
        generation = str(next(self._generations))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        about = {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(data)),
            "generation": generation,
            "metageneration": "1",
            "timeCreated": now,
            "updated": now,
            "etag": f"g{generation}",
        }
        self._objects[name] = StoredObject(data, about)
        return about

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        entries: dict[str, dict[str, str] | None] = {}  # None for a prefix
        for name in sorted(self._objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                entries[name] = self._objects[name].about
            else:
                entries[name[: cut + len(delimiter)]] = None
        most = int(query.get("maxResults", 1000))
        left = [key for key in sorted(entries) if key > query.get("pageToken", "")]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        for key in left[:most]:  # The service leaves out the lists that are empty.
            if about := entries[key]:
                answer.setdefault("items", []).append(about)
            else:
                answer.setdefault("prefixes", []).append(key)
        return answer | ({"nextPageToken": left[most - 1]} if len(left) > most else {})

    def _upload(self, query: dict[str, str], headers: Message, body: bytes) -> Answer:
        """One request of a whole (`media`), a two-part or a resumable upload."""
        if "upload_id" in query:
            return self._resume(query["upload_id"], headers.get("Content-Range", ""), body)
        if query["uploadType"] == "resumable":
            upload = uuid.uuid4().hex
            self._uploads[upload] = (json.loads(body or b"{}") | query, bytearray())
            at = f"{self.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable"
            return Answer(200, {}, {"Location": f"{at}&upload_id={upload}"})
        if query["uploadType"] == "multipart":
            boundary = re.findall(r'boundary="?([^";]+)', headers["Content-Type"])[0]
            marker = b"--" + boundary.encode()
            _, first, rest = body.split(marker, 2)
            second = rest[: rest.rindex(marker)].removesuffix(b"\n").removesuffix(b"\r")
            query = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1]) | query
            body = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1]
        return Answer(200, self._put(query["name"], body, query))

    def _resume(self, upload: str, content_range: str, body: bytes) -> Answer:
        query, received = self._uploads[upload]
        given = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(\*|\d+)", content_range)
        start = int(given[1]) if given and given[1] else len(received)
        if start > len(received):
            raise ValueError("the upload has a gap")
        received[start:] = body
        if given and (given[2] == "*" or len(received) < int(given[2])):
            return Answer(308, b"", {"Range": f"bytes=0-{len(received) - 1}"} if received else {})
        del self._uploads[upload]
        return Answer(200, self._put(query["name"], bytes(received), query))


def _download(found: StoredObject, headers: Message) -> Answer:
    size = len(found.data)
    about = {"ETag": found.about["etag"], "x-goog-generation": found.about["generation"]}
    given = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
    if not given:
        return Answer(200, found.data, about)
    start = int(given[1]) if given[1] else max(size - int(given[2]), 0)
    stop = min(int(given[2]) + 1, size) if given[1] and given[2] else size
    if start >= size:
        return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
    about["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Answer(206, found.data[start:stop], about)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # Tests kill clients.
            super().handle_error(request, client_address)


@contextlib.contextmanager
def start_gcs_emulator(folder: Path) -> Iterator[GcsEmulator]:
    """Serves one empty bucket from threads of this process until the block ends.

    Args:
      folder: An empty folder, where clients find no credentials.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not thread.is_alive():  # A connection kept from before the end
                self.close_connection = True
                return
            answer = emulator.answer(self.command, self.path, self.headers, body)
            data = answer.body
            if not isinstance(data, bytes):
                data = json.dumps(data).encode() if answer.status != 304 else b""
            self.send_response(answer.status)
            for name, value in (answer.headers or {}).items():
                self.send_header(name, value)
            if answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_DELETE = do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Writes nothing; `GcsEmulator.requests` has the requests."""

    server = _Server(("127.0.0.1", 0), Handler)
    emulator = GcsEmulator(f"http://127.0.0.1:{server.server_port}", folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield emulator
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with start_gcs_emulator(Path(sys.argv[1])) as served:
        for key, value in served.environment.items():
            print(f"export {key}={value}")
        print(f"# gs://{served.bucket}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
