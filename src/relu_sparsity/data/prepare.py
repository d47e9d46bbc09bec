"""Makes a scale's text ready: the data set, the tokenizer, and the manifest of both."""

from pathlib import Path

from etils import epath

from relu_sparsity import fingerprint
from relu_sparsity.data import sources
from relu_sparsity.data.ngrams import ngram_losses
from relu_sparsity.data.pipeline import heldout_batches, heldout_documents
from relu_sparsity.data.tokenizer import load_tokenizer, train_tokenizer
from relu_sparsity.errors import UserError
from relu_sparsity.files import atomic_write, write_json
from relu_sparsity.layout import Layout, data_root
from relu_sparsity.params import DataParams, Params


def prepare_text(data: DataParams) -> Path:
    """Builds the data set on this machine's disk, unless this very code has built it already."""
    code = fingerprint.code(["data.builders"])
    return sources.prepare(data, data_root(), fingerprint.digest(code))


def write_tokenizer(params: Params, layout: Layout) -> None:
    """Builds the data set and trains the tokenizer on it, or copies the given tokenizer."""
    config = params.defaults
    folder = prepare_text(config.data)
    given = config.tokenizer.model
    if given is None:
        train_tokenizer(
            sources.documents(config.data, folder, "train"),
            config.tokenizer.vocab_size,
            layout.tokenizer,
            config.tokenizer.train_documents,
        )
        return
    tokenizer = load_tokenizer(given)
    if tokenizer.vocab_size != config.tokenizer.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: {config.tokenizer.vocab_size}, but {given} has "
            f"{tokenizer.vocab_size} tokens; allowed: {tokenizer.vocab_size}"
        )
    with atomic_write(layout.tokenizer) as temporary:
        temporary.write_bytes(epath.Path(given).read_bytes())


def write_manifest(params: Params, layout: Layout) -> None:
    """Describes the data set and the tokenizer by their content.

    Also what n-grams make of the held-out sequences, and which document each of them is of.
    """
    data, training = params.defaults.data, params.defaults.training
    folder = prepare_text(data)
    tokenizer = load_tokenizer(layout.tokenizer)
    documents = sources.documents(data, folder, "heldout")
    heldout = heldout_batches(
        documents,
        tokenizer,
        seq_len=training.seq_len,
        num_sequences=training.eval_sequences,
        batch_size=training.global_batch_size,
        read_threads=data.read_threads,
    )
    losses = ngram_losses(sources.documents(data, folder, "train"), heldout, tokenizer)
    of_documents = heldout_documents(
        documents,
        tokenizer,
        seq_len=training.seq_len,
        num_sequences=training.eval_sequences,
    )
    manifest = sources.manifest(data, folder, layout.tokenizer)
    heldout_text = {
        "seq_len": training.seq_len,
        "documents": of_documents.tolist(),
        "ngram_losses": losses,
    }
    write_json(layout.manifest, manifest | {"heldout_text": heldout_text})
