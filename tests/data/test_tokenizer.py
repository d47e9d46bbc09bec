import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import yaml
from hypothesis import given
from hypothesis import strategies as st
from repository import PARAMS

from relu_sparsity.data.prepare import write_tokenizer
from relu_sparsity.data.sources import Documents
from relu_sparsity.data.tokenizer import EOS_ID, Tokenizer, load_tokenizer, train_tokenizer
from relu_sparsity.errors import UserError
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import parse_params


def test_training_again_gives_the_same_bytes(
    train_documents: Documents, tokenizer_path: Path, tmp_path: Path
):
    train_tokenizer(train_documents, 512, tmp_path / "again.model", max_documents=200)
    assert (tmp_path / "again.model").read_bytes() == tokenizer_path.read_bytes()


def test_the_vocabulary_is_as_large_as_asked(tokenizer: Tokenizer):
    assert tokenizer.vocab_size == 512
    assert tokenizer.eos_id == EOS_ID


def test_real_documents_come_back(tokenizer: Tokenizer, heldout_documents: Documents):
    for document in heldout_documents:
        tokens = tokenizer.encode(document)
        assert tokenizer.decode(tokens) == document
        assert tokens.dtype == np.int32
        assert len(tokens) < len(document)
        assert (tokens == EOS_ID).nonzero()[0].tolist() == [len(tokens) - 1]


# SentencePiece writes a blank as U+2581 and so cannot tell the two apart.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert (tokens[:-1] != EOS_ID).all()
    assert ((tokens >= 0) & (tokens < tokenizer.vocab_size)).all()


@given(st.sampled_from(["</s>", "<unk>", "<pad>", "<0x41>"]), st.text("ab "))
def test_text_cannot_write_control_tokens(tokenizer: Tokenizer, control: str, text: str):
    tokens = tokenizer.encode(control + text)
    assert tokenizer.decode(tokens) == control + text
    assert (tokens[:-1] > 2).all()


def test_a_tokenizer_can_be_pickled(tokenizer: Tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode("some text"), tokenizer.encode("some text"))
    assert copy.sha256 == tokenizer.sha256


def test_only_the_first_documents_are_trained_on(train_documents: Documents, tmp_path: Path):
    train_tokenizer(train_documents, 400, tmp_path / "a.model", max_documents=50)
    train_tokenizer(train_documents[:50], 400, tmp_path / "b.model", max_documents=1000)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_long_lines_are_trained_on(tmp_path: Path):
    train_tokenizer(["wonderful " * 10_000], 280, tmp_path / "a.model", max_documents=1)
    assert len(load_tokenizer(tmp_path / "a.model").encode("wonderful")) == 2


def test_a_vocabulary_too_large_names_the_largest(tmp_path: Path):
    documents = ["A short text has few words."] * 3
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 5000 does not fit") as caught:
        train_tokenizer(documents, 5000, tmp_path / "a.model", max_documents=10)
    largest = int(re.search(r"at most (\d+)", str(caught.value))[1])
    assert list(tmp_path.iterdir()) == []
    train_tokenizer(documents, largest, tmp_path / "a.model", max_documents=10)
    with pytest.raises(UserError, match=f"at most {largest}"):
        train_tokenizer(documents, largest + 1, tmp_path / "b.model", max_documents=10)


def test_a_vocabulary_too_small_names_the_smallest(tmp_path: Path):
    documents = ["".join(map(chr, range(0x4E00, 0x4E00 + 100)))]
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 300 .*at least \d+"):
        train_tokenizer(documents, 300, tmp_path / "a.model", max_documents=10)


@pytest.mark.parametrize("documents", [[], ["", " \n "]])
def test_no_text_to_train_on(documents: list[str], tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 300: .*allowed: text"):
        train_tokenizer(documents, 300, tmp_path / "a.model", max_documents=10)


def test_a_model_that_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer\.model: .*none\.model: cannot be read"):
        load_tokenizer(tmp_path / "none.model")


def test_a_remote_model_without_the_package_that_reads_it():
    program = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from relu_sparsity.data.tokenizer import load_tokenizer\n"
        "load_tokenizer('gs://bucket/a.model')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(r"UserError: tokenizer\.model: gs://bucket/a\.model: .*gcsfs", done.stderr), (
        done.stderr
    )


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 50])
def test_a_model_that_is_none(content: bytes, tmp_path: Path):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "a.model")


def test_a_model_without_end_of_sentence(tmp_path: Path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words of text"]),
        model_prefix=str(tmp_path / "a"),
        vocab_size=20,
        hard_vocab_limit=False,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"a\.model: no end-of-sentence token"):
        load_tokenizer(tmp_path / "a.model")


def test_a_given_vocabulary_has_the_size_that_is_said(
    tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("relu_sparsity.data.prepare.prepare_text", lambda data: tmp_path)
    document = yaml.safe_load(PARAMS.read_text())
    layout = Layout("smoke", tmp_path)
    given = {"model": str(tokenizer_path), "vocab_size": 400}
    document["scales"]["smoke"]["tokenizer"] = given
    with pytest.raises(UserError, match=r"vocab_size: 400, but .* has 512 tokens; allowed: 512"):
        write_tokenizer(parse_params(document, PARAMS, "smoke"), layout)
    given["vocab_size"] = 512
    write_tokenizer(parse_params(document, PARAMS, "smoke"), layout)
    assert layout.tokenizer.read_bytes() == tokenizer_path.read_bytes()
