"""The SentencePiece vocabulary: trained on the documents, or given as a model file."""

import functools
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from etils import epath
from jaxtyping import Int32

from relu_sparsity.errors import UserError
from relu_sparsity.files import atomic_write, is_remote
from relu_sparsity.params import TokenizerParams

# The ids of T5's C4 vocabulary, so that it can take the place of a trained one.
PAD_ID, EOS_ID, UNK_ID, NO_BOS = 0, 1, 2, -1

# SentencePiece skips longer lines without a word.
_MAX_SENTENCE_BYTES = 1 << 20


class Tokenizer:
    """Text to token ids and back, by a SentencePiece model.

    Args:
      model: The serialized model.

    Raises:
      ValueError: It is not a SentencePiece model.
    """

    def __init__(self, model: bytes):
        self._model = model
        try:
            if not model:  # SentencePiece takes no bytes for no model yet.
                raise RuntimeError("empty")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self._model,)

    @property
    def sha256(self) -> str:
        """SHA-256 of the model."""
        return hashlib.sha256(self._model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._processor.vocab_size()

    @property
    def eos_id(self) -> int:
        """The token that ends every document; -1 if the model has none."""
        return self._processor.eos_id()

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Returns the text's token ids, and the end of the document after them."""
        return np.array([*self._processor.encode(text), self.eos_id], np.int32)

    def decode(self, tokens: Int32[np.ndarray, " tokens"]) -> str:
        """Returns the text of token ids; the ends of documents are left out."""
        return self._processor.decode(np.asarray(tokens).tolist())


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, path: Path, max_documents: int
) -> None:
    """Trains a byte-pair vocabulary that can write any text, and loses no white space.

    The same documents give the same bytes.

    Args:
      documents: The training split.
      vocab_size: Number of token ids, 256 bytes and 3 control tokens among them.
      path: Where to write the SentencePiece model.
      max_documents: How many of the first documents to train on.

    Raises:
      UserError: The documents hold too little text for the vocabulary, or too many different
        characters.

    References:
      Kudo and Richardson, `SentencePiece`, 2018.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(itertools.islice(documents, max_documents)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=NO_BOS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _vocabulary_error(error, vocab_size) from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.getvalue())


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a SentencePiece model.

    Args:
      path: A local file, or `gs://`.

    Raises:
      UserError: The file is missing or not a SentencePiece model, or has no end-of-sentence
        token.
    """
    try:
        tokenizer = Tokenizer(epath.Path(path).expanduser().read_bytes())
    except (OSError, ImportError) as error:  # gs:// needs a package of the extra `tpu`.
        raise UserError(
            f"tokenizer.model: {path}: cannot be read ({error}); "
            "allowed: the path of a SentencePiece model"
        ) from error
    except ValueError as error:
        raise UserError(
            f"tokenizer.model: {path}: not a SentencePiece model ({error}); "
            "allowed: the path of a SentencePiece model"
        ) from error
    if tokenizer.eos_id < 0:
        raise UserError(
            f"tokenizer.model: {path}: no end-of-sentence token; "
            "allowed: SentencePiece models with one"
        )
    return tokenizer


def _lines(documents: Iterable[str]) -> Iterator[str]:
    # SentencePiece learns from sentences, each of which it takes to be a line.
    for document in documents:
        yield from (line for line in document.splitlines() if line.strip())


def _vocabulary_error(error: RuntimeError, vocab_size: int) -> UserError:
    message = str(error)
    if largest := re.search(r"too high .*<= (\d+)", message):
        allowed = f"at most {largest[1]} for this text"
    elif smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        allowed = f"at least {smallest[1]} for this text's characters"
    else:
        return UserError(
            f"tokenizer.vocab_size: {vocab_size}: SentencePiece cannot learn from this text "
            f"({message}); allowed: text with words in it"
        )
    return UserError(f"tokenizer.vocab_size: {vocab_size} does not fit; allowed: {allowed}")


@functools.cache
def tokenizer_identity(params: TokenizerParams) -> dict[str, Any]:
    """All that decides a tokenizer's bytes beside the text, in values that JSON knows.

    Raises:
      UserError: The given model cannot be read.
    """
    if params.model is None:
        return {"vocab_size": params.vocab_size, "train_documents": params.train_documents}
    path = epath.Path(params.model)
    try:
        content = path.read_bytes()
    except Exception as error:
        # Every kind of bucket fails with errors of its own.
        reason = f" ({error})" if is_remote(path) else ""
        raise UserError(
            f"tokenizer.model: {params.model}: no such file{reason}; allowed: a SentencePiece "
            "model, or null to train one"
        ) from None
    return {"model": hashlib.sha256(content).hexdigest()}
