"""A small `c4/en` as TFDS stores it: its features, names and writer; the text is docstrings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.text import c4

from relu_sparsity.data import docs

NAME = "c4/en:3.1.0"
VALIDATION_EVERY = 10  # Of C4 it is one document of a thousand.


class _C4(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS's own builder, but for Common Crawl."""

    name = "c4"
    BUILDER_CONFIGS = (c4.C4.builder_configs["en"],)
    VERSION = BUILDER_CONFIGS[0].version
    code_path = None
    _info = c4.C4._info

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        for number, text in enumerate(docs.documents(["optax", "networkx"])):
            if (split == "validation") == (number % VALIDATION_EVERY == 0):
                url = f"https://docs.example/{number}"
                yield (
                    url,
                    {
                        "text": text,
                        "url": url,
                        "content-type": "text/plain",
                        "content-length": str(len(text.encode())),
                        "timestamp": "2019-04-18T10:15:42Z",
                    },
                )


def store_c4(data_dir: Path, num_shards: int) -> None:
    """Writes it where `data.data_dir` then points to, each split in so many files."""
    tfds.disable_progress_bar()
    builder = _C4(config="en", data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_shards)
    )
