"""Times the input alone, as a host of the paper's slice needs it, and writes a table.

    python bench/input.py                    # a minute

A host of four takes 128 rows of 8 of the 32 streams each step, a million times. The text is that of
the mini scale, with a vocabulary as large as the paper's. It lies on this machine's disk; in a
bucket every document is a request of its own, so each is also read with the wait of one. Processor
time is told beside, as other work on the machine does not change it as much.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from relu_sparsity.data import sources
from relu_sparsity.data.pipeline import TokenBatches, train_batches
from relu_sparsity.data.prepare import prepare_text
from relu_sparsity.data.sources import Documents
from relu_sparsity.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from relu_sparsity.files import write_text
from relu_sparsity.params_file import load_params

RESULTS = Path("results/bench")
HOSTS = 4
# The least time of the baseline's step on its slice, by `make tpu-check` (docs/tpu.md).
STEP_SECONDS = 0.567
LATENCIES = (0.0, 0.02, 0.05)
THREADS = (0, 32, 128)


class Late(Sequence[str]):
    """Documents that come as late as from a bucket."""

    def __init__(self, documents: Documents, seconds: float) -> None:
        self._documents, self._seconds = documents, seconds

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: Any) -> Any:
        time.sleep(self._seconds)
        return self._documents[index]


def seconds_of(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that it takes, by the clock and of processors."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def time_batches(batches: TokenBatches, rounds: int, tokens: int) -> Iterator[str]:
    """The first batch (s), the next ones (s each), and their tokens per second and per core."""
    first, _ = seconds_of(lambda: next(batches))
    clock, processor = seconds_of(lambda: [next(batches) for _ in range(rounds)])
    yield f"{first:.2f}"
    yield f"{clock / rounds:.3f}"
    yield f"{rounds * tokens / clock:,.0f}"
    yield f"{STEP_SECONDS * rounds / clock:.1f}"
    yield f"{rounds * tokens / processor:,.0f}"


def time_parts(documents: Documents, tokenizer: Tokenizer, count: int) -> dict[str, float]:
    """Microseconds of processor time per document: of what, one thread at a time."""
    texts = [documents[index] for index in range(count)]
    parts = {
        "read and parsed": lambda: [documents[index] for index in range(count)],
        "tokenized": lambda: [tokenizer.encode(text) for text in texts],
    }
    return {part: 1e6 * seconds_of(run)[1] / count for part, run in parts.items()}


def measure(rounds: int) -> str:
    """The table, as Markdown."""
    config = load_params(scale="tpu").defaults
    data = load_params(scale="mini").defaults.data
    documents = sources.documents(data, prepare_text(data), "train")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        train_tokenizer(documents, config.tokenizer.vocab_size, path, len(documents))
        tokenizer = load_tokenizer(path)
    training = config.training
    tokens = training.global_batch_size // HOSTS * training.seq_len
    lines = [
        f"Input of one host of {HOSTS}: {tokens:,} tokens a step, and a step takes "
        f"{STEP_SECONDS} s at least, so {tokens / STEP_SECONDS:,.0f} tokens/s are needed.",
        "",
        "| a document comes after | read threads | first batch (s) | a batch (s) | tokens/s | "
        "of what is needed | tokens/s per core |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for latency in LATENCIES:
        for threads in THREADS:
            batches = train_batches(
                Late(documents, latency) if latency else documents,
                tokenizer,
                seq_len=training.seq_len,
                global_batch_size=training.global_batch_size,
                num_shards=config.data.num_shards,
                seed=0,
                process_count=HOSTS,
                read_threads=threads,
            )
            # What is not read ahead takes many seconds a batch.
            cells = time_batches(batches, rounds if threads or not latency else 2, tokens)
            where = f"{1000 * latency:.0f} ms" if latency else "local disk"
            lines.append(f"| {where} | {threads} | " + " | ".join(cells) + " |")
    parts = time_parts(documents, tokenizer, 2000)
    told = ", ".join(f"{part} in {microseconds:.0f} µs" for part, microseconds in parts.items())
    lines += ["", f"Of processor time a document is {told}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30, help="batches; default: %(default)s")
    text = measure(parser.parse_args().rounds)
    write_text(RESULTS / "input.md", text)
    print(text)


if __name__ == "__main__":
    main()
