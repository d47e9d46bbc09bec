"""The three sources of text behind one interface: identity, preparation, documents, manifest.

TensorFlow Datasets is imported only where a data set is built or read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from relu_sparsity.data import docs, text
from relu_sparsity.errors import TryAgain, UserError, is_unreachable
from relu_sparsity.files import write_json
from relu_sparsity.params import DataParams

if TYPE_CHECKING:
    import grain
    import tensorflow_datasets as tfds
    from etils import epath

Split = Literal["train", "heldout"]

# Raised whenever the same packages or files would give other documents than before.
FORMAT_VERSION = "1.0.0"

_SOURCE_FILE = "source.json"
_NAME = re.compile(r"(?P<dataset>[a-z0-9_]+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_BUILT = {"docs": "docs/docs", "text": "text_files/text_files"}


def identity(data: DataParams) -> dict[str, object]:
    """Returns all that decides the documents' bytes, in values that JSON knows.

    The held-out fraction is not part of it: it decides the split, not the documents.

    Args:
      data: The section `data` of a scale.

    Returns:
      `source`, `version` and, for docs, the packages' versions; for text, the files' names and
      SHA-256; for TFDS, name and data_dir. TFDS's version is None where the name does not have it
      and the folder is remote or empty.

    Raises:
      UserError: A package is not installed, or a file is missing.
    """
    match data.source:
        case "docs":
            packages = docs.versions(data.packages)
            return {"source": "docs", "version": FORMAT_VERSION, "packages": packages}
        case "text":
            files = [list(pair) for pair in text.digests(data.files)]
            return {"source": "text", "version": FORMAT_VERSION, "files": files}
        case "tfds":
            return {
                "source": "tfds",
                "version": _stored_version(data),
                "name": _parse(data.tfds_name).group().partition(":")[0],
                "data_dir": data.data_dir,
            }


def prepare(data: DataParams, root: Path, code: str = "") -> Path:
    """Builds the data set, or checks the stored one, in a folder of its own.

    A finished folder is used again. Two processes at once are safe: the second one waits. The
    paper's C4 stays where TFDS stored it; only TFRecord files are copied, as ArrayRecord.

    Args:
      data: The section `data` of a scale.
      root: Where the folders of all data sets live.
      code: A hash of the code that builds it: other code builds another folder.

    Returns:
      `root/<hash of the identity and the held-out fraction>`.

    Raises:
      UserError: The text is missing or bad, or too small to be split.
    """
    described = identity(data)
    if data.source != "tfds":
        described["heldout_fraction"] = data.heldout_fraction
    built_from = json.dumps(described | {"code": code}, sort_keys=True)
    key = hashlib.sha256(built_from.encode()).hexdigest()[:16]
    folder = root / key
    with _lock(root / f".{key}.lock"):
        if not folder.exists():
            partial = root / f".{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            if data.source == "tfds":
                name, _, version = _adopt(data, partial).rpartition("/")
                described |= {"name": name, "version": version}
            else:
                _build(data, partial)
            write_json(partial / _SOURCE_FILE, described)
            partial.replace(folder)
    return folder


class Documents(Sequence[str]):
    """Random access to the texts of one split.

    Args:
      records: The TFDS data source of the split.
      read_threads: Threads that read ahead of whoever reads all texts in order.
    """

    def __init__(self, records: Sequence[dict[str, Any]], read_threads: int = 0):
        self._records = records
        self._read_threads = read_threads

    def __iter__(self) -> Iterator[str]:
        if not self._read_threads:
            return super().__iter__()
        import grain

        source = grain.MapDataset.source(self)
        return iter(source.to_iter_dataset(read_options(self._read_threads)))

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._records[range(len(self))[index]]["text"].decode()


def read_options(threads: int) -> "grain.ReadOptions":
    """How Grain reads documents: so many threads, each some documents ahead; 0: the caller does."""
    import grain

    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)


def documents(data: DataParams, folder: Path, split: Split) -> Documents:
    """Opens one split of a prepared data set.

    Args:
      data: The section `data` of a scale.
      folder: What `prepare` returned for it.
      split: `heldout` is TFDS's own validation split where the data set comes from TFDS.

    Raises:
      UserError: The folder is not there, or the TFDS data set has gone.
    """
    builder = _builder(data, folder)
    return Documents(builder.as_data_source(_stored_split(data, split)), data.read_threads)


def manifest(data: DataParams, folder: Path, tokenizer_path: str | Path) -> dict[str, object]:
    """Describes the data set and its tokenizer by their content, the same on every machine.

    Args:
      data: The section `data` of a scale.
      folder: What `prepare` returned for it.
      tokenizer_path: The SentencePiece model, local or `gs://`.

    Returns:
      `name`, `version`, `source`, `splits` with documents and bytes (of UTF-8 text, or of
      records for TFDS) and, but for TFDS, SHA-256 of each split's documents, and `tokenizer`
      with SHA-256 and vocabulary size.

    Raises:
      UserError: The folder or the tokenizer is not there.
    """
    from relu_sparsity.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    builder = _builder(data, folder)
    source = json.loads((folder / _SOURCE_FILE).read_text())
    source.pop("data_dir", None)  # Where it lies says nothing about what it is.
    splits = {}
    for split in ("train", "heldout"):
        if data.source == "tfds":
            info = builder.info.splits[_stored_split(data, split)]
            splits[split] = {"documents": info.num_examples, "bytes": info.num_bytes}
        else:
            splits[split] = _content(documents(data, folder, split))
    return {
        "name": source.get("name", data.source),
        "version": str(builder.version),
        "source": source,
        "splits": splits,
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
    }


def _content(split: Documents) -> dict[str, object]:
    digest, size = hashlib.sha256(), 0
    for document in split:
        encoded = document.encode()
        # The length in front tells ["ab", "c"] from ["a", "bc"].
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
        size += len(encoded)
    return {"documents": len(split), "bytes": size, "sha256": digest.hexdigest()}


def _stored_split(data: DataParams, split: Split) -> str:
    return "validation" if data.source == "tfds" and split == "heldout" else split


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(data: DataParams, folder: Path) -> None:
    import tensorflow_datasets as tfds

    from relu_sparsity.data import builders

    shared: dict[str, Any] = {"version": FORMAT_VERSION, "heldout_fraction": data.heldout_fraction}
    written: dict[str, Any] = {"data_dir": folder, "file_format": "array_record"}
    builder: builders.DocumentsBuilder
    if data.source == "docs":
        packages = builders.DocsConfig(name="docs", packages=data.packages, **shared)
        builder = builders.Docs(config=packages, **written)
    else:
        files = builders.TextFilesConfig(name="text_files", files=data.files, **shared)
        builder = builders.TextFiles(config=files, **written)
    # Bad text is found here, before a byte is written.
    sizes = Counter(
        "heldout" if builders.is_heldout(document, data.heldout_fraction) else "train"
        for _, document in builder.documents()
    )
    for split in ("train", "heldout"):
        if not sizes[split]:
            raise UserError(
                f"data.heldout_fraction: {data.heldout_fraction} of {sizes.total()} documents "
                f"leaves none in the {split} split; allowed: at least one document in each "
                "(give more text, or another fraction)"
            )
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def _builder(data: DataParams, folder: Path) -> "tfds.core.DatasetBuilder":
    source = folder / _SOURCE_FILE
    if not source.exists():
        raise UserError(f"{source}: no such file; allowed: the folder of a prepared data set")
    if data.source != "tfds":
        return _open(_BUILT[data.source], str(folder))
    found = json.loads(source.read_text())
    name = f"{found['name']}:{found['version']}"
    if (folder / found["name"] / found["version"]).exists():
        return _open(name, str(folder))
    return _open_stored(name, data.data_dir)


def _open(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    if array_record in builder.info.available_file_formats():
        builder.info.set_file_format(array_record, override=True, override_if_initialized=True)
    return builder


def _open_stored(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    try:
        return _open(name, data_dir)
    except (tfds.core.DatasetNotFoundError, OSError, ImportError) as error:
        where = _data_dir(data_dir)
        if is_unreachable(error):
            raise TryAgain(f"data.data_dir: {str(where)!r} does not answer ({error!r})") from error
        raise UserError(
            f"data.tfds_name: no data set {name!r} in data.data_dir {str(where)!r}, which holds "
            f"{_stored_names(where)}; allowed: a data set that TFDS stored there. To store it, "
            f"where TensorFlow is installed (the extra `tf`): `tfds build {name} "
            f"--data_dir={where} --file_format=array_record`; for C4 see docs/c4.md "
            f"({type(error).__name__})"
        ) from error


def _adopt(data: DataParams, folder: Path) -> str:
    """Checks the TFDS data set; copies it to `folder` if it is stored without random access.

    Returns:
      Its name, configuration and version: what older versions of TFDS have stored tells them only
      by its folder.
    """
    builder = _open_stored(data.tfds_name, data.data_dir)
    where = f"data.tfds_name: {data.tfds_name!r} in {builder.data_dir}"
    for split in ("train", "validation"):
        if split not in builder.info.splits:
            raise UserError(
                f"{where}: no split {split!r} among {sorted(builder.info.splits)}; "
                "allowed: data sets with the splits train and validation"
            )
    if "text" not in builder.info.features:
        raise UserError(
            f"{where}: no feature 'text' among {sorted(builder.info.features)}; "
            "allowed: data sets with a feature 'text'"
        )
    stored = {path.name for path in builder.data_path.iterdir()}
    for split in ("train", "validation"):
        missing = sorted(set(builder.info.splits[split].filenames) - stored)
        if missing:
            raise UserError(
                f"{where}: {missing[0]} is missing ({len(missing)} of the {split} split's "
                f"{builder.info.splits[split].num_shards} files are); allowed: complete data sets"
            )
    stored_as = builder.data_path.relative_to(_data_dir(data.data_dir)).as_posix()
    match builder.info.file_format.value:
        case "array_record":
            pass
        case "tfrecord":
            _convert(builder, folder / stored_as, where)
        case other:
            raise UserError(f"{where}: stored as {other}; allowed: array_record, tfrecord")
    return stored_as


def _convert(builder: "tfds.core.DatasetBuilder", target: Path, where: str) -> None:
    """Copies a TFRecord data set as ArrayRecord; TFDS's own way needs TensorFlow and Beam."""
    import grain
    from tensorflow_datasets.core import dataset_info, file_adapters

    if "://" in str(builder.data_dir):
        raise UserError(
            f"{where}: remote TFRecord files; allowed: ArrayRecord, or TFRecord on a local disk "
            "(`tfds convert_format` converts)"
        )
    adapter = file_adapters.ArrayRecordFileAdapter
    info = dataset_info.read_proto_from_builder_dir(builder.data_dir)
    target.mkdir(parents=True)
    shutil.copy(builder.data_path / "features.json", target)
    for split in ("train", "validation"):
        for path in builder.info.splits[split].filepaths:
            records = grain.experimental.TFRecordIterDataset(os.fspath(path))
            name = path.name.replace(".tfrecord-", ".array_record-")
            try:
                adapter.write_examples(target / name, enumerate(records))
            except ValueError as error:
                raise UserError(f"{path}: damaged: {error}; allowed: TFRecord files") from error
    kept = [split for split in info.splits if split.name in ("train", "validation")]
    del info.splits[:]
    info.splits.extend(kept)
    info.file_format = file_adapters.FileFormat.ARRAY_RECORD.value
    dataset_info.write_dataset_info_proto(info, target)


def _parse(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"data.tfds_name: {name!r} is not a data set's name; allowed: dataset, "
            "dataset/config, dataset:1.0.0 or dataset/config:1.0.0"
        )
    return match


def _data_dir(data_dir: str | None) -> "epath.Path":
    from etils import epath

    default = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    return epath.Path(data_dir or default).expanduser()


def _stored_version(data: DataParams) -> str | None:
    name = _parse(data.tfds_name)
    folder = _data_dir(data.data_dir)
    if name["version"] or "://" in str(folder):
        return name["version"]
    folder = folder / name["dataset"] / (name["config"] or "")
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    versions = [version for version in found if re.fullmatch(r"\d+\.\d+\.\d+", version)]
    return max(versions, key=lambda version: [*map(int, version.split("."))], default=None)


def _stored_names(folder: "epath.Path") -> str:
    try:
        files = [*folder.glob("*/*/dataset_info.json"), *folder.glob("*/*/*/dataset_info.json")]
        names = sorted(str(path.parent.relative_to(folder)) for path in files)
    except (OSError, ImportError):
        return "no readable folder"
    return ", ".join(names) or "none"
