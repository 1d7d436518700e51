"""RecTools' SASRec against the clock, in an environment of its own: `benchmarks.sasrec` starts it.

Reads one JSON object from stdin (file of interactions and settings) and writes seconds of each epoch as JSON.
"""

import json
import sys
import time

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet


class Clock(Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        """Nothing is timed yet."""
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._started)


def main() -> None:
    """Train as told, on the CPU, and say how long each epoch took."""
    told = json.load(sys.stdin)
    torch.set_num_threads(told["threads"])
    frame = pd.read_csv(told["interactions"])
    frame["datetime"] = pd.to_datetime(frame["datetime"], unit="s")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    model = SASRecModel(
        n_factors=told["width"],
        n_blocks=told["blocks"],
        n_heads=1,
        session_max_len=told["length"],
        batch_size=told["batch_size"],
        loss="softmax",
        dropout_rate=0.0,
        dataloader_num_workers=0,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=lambda: Trainer(max_epochs=told["epochs"], accelerator="cpu", callbacks=[Clock()], **quiet),
    )
    model.fit(Dataset.construct(frame))
    (seconds,) = (one.seconds for one in model.fit_trainer.callbacks if isinstance(one, Clock))  # a copy is run
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
