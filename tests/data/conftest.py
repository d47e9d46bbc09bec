"""Real text, built once for all tests of the data."""

from pathlib import Path

import pytest

from relu_sparsity.data import sources
from relu_sparsity.data.sources import Documents
from relu_sparsity.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from relu_sparsity.params import DataParams

SMALL = DataParams(source="docs", packages=("optax",), heldout_fraction=0.2)


@pytest.fixture(scope="session")
def docs_params() -> DataParams:
    return SMALL


@pytest.fixture(scope="session")
def docs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sources.prepare(SMALL, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def train_documents(docs_folder: Path) -> Documents:
    return sources.documents(SMALL, docs_folder, "train")


@pytest.fixture(scope="session")
def heldout_documents(docs_folder: Path) -> Documents:
    return sources.documents(SMALL, docs_folder, "heldout")


@pytest.fixture(scope="session")
def tokenizer_path(train_documents: Documents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(train_documents, 512, path, max_documents=200)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_path)
