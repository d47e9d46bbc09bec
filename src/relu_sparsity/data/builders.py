"""TFDS builders of the `docs` and `text` sources; they need no TensorFlow."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from relu_sparsity.data import docs, text


def is_heldout(document: str, fraction: float) -> bool:
    """Tells whether a document belongs to the held-out split.

    Its own hash decides: adding documents moves none from one split to the other, and equal
    documents are on the same side.

    Args:
      document: The text.
      fraction: The share of all documents to hold out, 0 to 1.
    """
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@dataclasses.dataclass(kw_only=True)
class DocsConfig(tfds.core.BuilderConfig):
    """Which packages' docstrings to take, and the share of documents to hold out."""

    packages: Sequence[str]
    heldout_fraction: float


@dataclasses.dataclass(kw_only=True)
class TextFilesConfig(tfds.core.BuilderConfig):
    """Which files to take, and the share of documents to hold out."""

    files: Sequence[str]
    heldout_fraction: float


class DocumentsBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set of texts, split by document."""

    # TFDS looks for download checksums beside the code, with a package that it does not require.
    code_path = None

    @abc.abstractmethod
    def documents(self) -> Iterator[tuple[str, str]]:
        """Yields every document with a key of its own."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Everything is on this machine.
        return {
            "train": self._generate_examples(heldout=False),
            "heldout": self._generate_examples(heldout=True),
        }

    def _generate_examples(self, heldout: bool) -> Iterator[tuple[str, dict[str, str]]]:
        for key, document in self.documents():
            if is_heldout(document, self.builder_config.heldout_fraction) == heldout:
                yield key, {"text": document}


class Docs(DocumentsBuilder):
    """Docstrings of installed Python packages."""

    @functools.cached_property
    def _docstrings(self) -> list[str]:
        # Parsing the packages takes longer than all else, and each split asks for all documents.
        return list(docs.documents(self.builder_config.packages))

    def documents(self) -> Iterator[tuple[str, str]]:
        for document in self._docstrings:
            yield hashlib.sha256(document.encode()).hexdigest(), document


class TextFiles(DocumentsBuilder):
    """Paragraphs of .txt files and texts of .jsonl files."""

    def documents(self) -> Iterator[tuple[str, str]]:
        for index, path in enumerate(text.find_files(self.builder_config.files)):
            for line, document in text.documents(path):
                yield f"{index}:{line}", document
