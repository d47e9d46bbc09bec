"""Where the files of a scale are. The Snakefile and the command line both ask here."""

import os
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from relu_sparsity.files import is_remote

TABLE_FORMATS = ("csv", "md", "tex")
CLAIM_FORMATS = ("json", "md")
RUN_FILES = (
    "unit_use.csv",
    "training.csv",
    "evaluation.csv",
    "evaluation_sequences.csv",
    "units.npz",
    "run.json",
)


def store_root() -> epath.Path:
    """The folder of trained runs and compiled programs, on a disk or in a bucket (`gs://`).

    No result is declared in it, so neither Snakemake nor DVC ever deletes it. The environment
    variable RELU_SPARSITY_STORE moves it.
    """
    root = epath.Path(os.environ.get("RELU_SPARSITY_STORE", "store"))
    if is_remote(root):
        import fsspec.config

        # Else a listing is read once, and what another host writes later is never seen.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return root


def data_root() -> Path:
    """The folder of prepared data sets: always on a disk of this machine."""
    store = store_root()
    return Path("store" if is_remote(store) else store) / "data"


@dataclass(frozen=True)
class Layout:
    """The files of one scale.

    Attributes:
      scale: The scale.
      root: The results of all scales.
      stamps: What tells Snakemake which jobs have to run.
    """

    scale: str
    root: Path = Path("results")
    stamps: Path = Path(".stamps")

    @property
    def results(self) -> Path:
        """All results of the scale."""
        return self.root / self.scale

    @property
    def manifest(self) -> Path:
        """What the text and the tokenizer are, by their content."""
        return self.results / "data" / "manifest.json"

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model."""
        return self.results / "data" / "tokenizer.model"

    def run(self, run: str, seed: int | str) -> Path:
        """The folder of one training run's results."""
        return self.results / "runs" / run / f"seed{seed}"

    def mask(self, run: str, seed: int | str) -> Path:
        """The units that a masked run keeps."""
        return self.run(run, seed) / "mask.npz"

    def widths(self, run: str, seed: int | str) -> Path:
        """The widths of a run whose layers are as wide as what its parent used."""
        return self.run(run, seed) / "widths.json"

    @property
    def claims(self) -> list[Path]:
        """The claims, in every format."""
        return [self.results / f"claims.{suffix}" for suffix in CLAIM_FORMATS]

    def table(self, table: str) -> list[Path]:
        """One table, in every format."""
        return [self.results / "tables" / f"{table}.{suffix}" for suffix in TABLE_FORMATS]

    def figure(self, figure: str) -> Path:
        """One figure."""
        return self.results / "figures" / f"{figure}.svg"

    @staticmethod
    def record(result: Path) -> Path:
        """Where it is written what a result was made from; a trained run has its run.json."""
        return result.parent / "made_from" / f"{result.stem}.json"

    @property
    def sensitivity(self) -> list[Path]:
        """What the claims hang on, as a table in two formats and as a figure."""
        return [self.results / f"sensitivity.{suffix}" for suffix in ("csv", "md", "svg")]

    @property
    def summary(self) -> Path:
        """A few numbers of every run, and the count of verdicts."""
        return self.results / "metrics.yaml"

    @property
    def curves(self) -> list[Path]:
        """The curves of all runs in two files, for `dvc plots`."""
        return [self.results / "curves" / f"{name}.csv" for name in ("heldout_loss", "batch_use")]

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.results / "report.html"

    def log(self, name: str) -> Path:
        """The log of a job."""
        return Path("logs") / self.scale / f"{name}.log"

    def benchmark(self, name: str) -> Path:
        """Time and memory of a job: never the same twice, so it is no result."""
        return Path("benchmarks") / self.scale / f"{name}.tsv"

    def throughput(self, run: str, seed: int | str) -> Path:
        """Tokens per second over a run's steps, as it was first trained."""
        return Path("benchmarks") / self.scale / "throughput" / f"{run}.seed{seed}.csv"

    def stamp(self, name: str) -> Path:
        """A file whose content changes when the job `name` has to run again."""
        return self.stamps / self.scale / f"{name}.txt"
