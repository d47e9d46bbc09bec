"""How `mini` was chosen: its baseline under one other choice at a time.

    python bench/explore.py                # every row that has no result yet, on one core
    python bench/explore.py --table        # only the table of those that have one

Each row is a run of its own in build/explore, so an ended search goes on where it stopped. The
table is results/bench/explore.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from relu_sparsity.files import read_json, write_text
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.processes import use_huge_pages

FOLDER = Path("build/explore")
TABLE = Path("results/bench/explore.md")
OLD = {"embedding_init_std": 0.02, "scale_embeddings": False}
# What differs from the scale mini, by name. The first three are its seeds.
ROWS: dict[str, dict[str, Any]] = {
    "mini_0": {},
    "mini_1": {"seeds": [1]},
    "mini_2": {"seeds": [2]},
    "small_embeddings": {"model": OLD},
    "small_embeddings_2e2": {"model": OLD, "optimizer": {"peak_lr": 2e-2}},
    "tied": {"model": {"tie_embeddings": True}},
    "tied_2e2": {"model": {"tie_embeddings": True}, "optimizer": {"peak_lr": 2e-2}},
    "tied_small_embeddings": {"model": OLD | {"tie_embeddings": True}},
    "no_biases": {"model": {"mlp_bias": False}},
    "peak_lr_5e3": {"optimizer": {"peak_lr": 5e-3}},
    "peak_lr_2e2": {"optimizer": {"peak_lr": 2e-2}},
    "weight_decay_0": {"optimizer": {"weight_decay": 0.0}},
    "weight_decay_03": {"optimizer": {"weight_decay": 0.3}},
    "rmsnorm": {"model": {"norm": "rmsnorm"}},
    "post_norm_5e3": {"model": {"norm_position": "post"}, "optimizer": {"peak_lr": 5e-3}},
    "learned_positions": {"model": {"positions": "learned"}},
    "warmup_400": {"optimizer": {"warmup_steps": 400}},
    "emb_dim_64": {"model": {"emb_dim": 64, "embedding_init_std": 0.125}},
    "steps_4000": {"training": {"num_steps": 4000}, "metrics": {"convergence_window": 400}},
}


def main() -> None:
    """Trains the rows that have no result, and writes the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table")
    only_table = parser.parse_args().table
    _write_params()
    use_huge_pages()
    names = list(ROWS)
    for number, name in enumerate(names, 1):
        seed = ROWS[name].get("seeds", [0])[0]
        if not only_table:
            print(f"{number} of {len(names)}: {name}", flush=True)
            for command in (["tokenizer"], ["data"], ["train", "--run", name, "--seed", str(seed)]):
                _call(*command)
        write_text(TABLE, _table())


def _write_params() -> None:
    """The scale mini, with every row as a run."""
    document = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    mini = {key: each for key, each in document["scales"]["mini"].items() if key != "runs"}
    runs = {"scale": "mini", "scales": {"mini": mini}, "runs": ROWS, "branches": {}}
    text = yaml.safe_dump(document | runs, sort_keys=False)
    write_text(FOLDER / "params.yaml", text)


def _call(*arguments: str) -> None:
    """Calls `relu-sparsity` in the search's folder, where its results and its store are then."""
    threads = ["--threads", "1"] if arguments[0] == "train" else []
    command = [sys.executable, "-m", "relu_sparsity.cli", *arguments, *threads]
    subprocess.run(command, check=True, cwd=FOLDER)


def _table() -> str:
    """Loss, accuracy and use of every row that has a result."""
    params = load_params(FOLDER / "params.yaml")
    layout = Layout("mini", FOLDER / "results")
    rows = []
    for name, choice in ROWS.items():
        seed = params.runs[name].seeds[0]
        folder = layout.run(name, seed)
        if not (folder / "run.json").exists():
            continue
        evaluation = pd.read_csv(folder / "evaluation.csv")
        use = pd.read_csv(folder / "unit_use.csv")
        steps = params.runs[name].config.training.num_steps
        late = use[use.step >= 0.9 * steps].groupby("layer").mean()
        early = evaluation[evaluation.step >= 0.1 * steps].iloc[0]
        ngrams = read_json(folder / "run.json")["ngram_losses"]
        rows.append(
            {
                "row": name,
                "differs in": _text(choice) or "nothing",
                "loss at 10 %": f"{early.loss:.2f}",
                "at the end": f"{evaluation.loss.iloc[-1]:.3f}",
                "accuracy (%)": f"{100 * evaluation.accuracy.iloc[-1]:.1f}",
                **{
                    f"{title} (%)": " ".join(f"{100 * each:.0f}" for each in late[metric])
                    for metric, title in (("batch_use", "batch use"), ("p50", "p50"))
                },
            }
        )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return ""
    head = (
        "Baselines of the scale `mini`, one choice changed in each row; use of the layers 0 to 5 "
        f"is the mean over the last tenth of the run. Held-out loss of unigrams "
        f"{ngrams['unigram_loss']:.3f}, of bigrams {ngrams['bigram_loss']:.3f} nats. "
        "`bench/explore.py` writes this table.\n\n"
    )
    return head + frame.to_markdown(index=False, disable_numparse=True) + "\n"


def _text(choice: dict[str, Any]) -> str:
    flat = [
        f"{key} {value}"
        for section, values in choice.items()
        for key, value in (values.items() if isinstance(values, dict) else [(section, values)])
    ]
    return ", ".join(flat)


if __name__ == "__main__":
    main()
