"""One run, whatever the family: trained, and ready to be published."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from index.dataset import Dataset
from training.checkpoint import RunState
from training.config import AnyRun, FactorRun
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions
from training.data.split import HeldOut
from training.exposure import measure_exposure
from training.factors.bundle import write_tables
from training.factors.serving import check_servable
from training.factors.trainer import train_factors
from training.models import ServableModel
from training.models.beside import TRANSITIONS, Beside
from training.models.learned_ids import ID
from training.progress import Observer
from training.publish import Extras
from training.tables import write_warm_items
from training.trainer import Trained, train


@dataclass(frozen=True, slots=True)
class Run:
    """What a run made that a bundle is made of."""

    model: ServableModel
    interactions: Interactions
    unseen: HeldOut
    """Users, or interactions, to judge explanations on."""
    metrics: dict[str, dict[str, float]]
    state: RunState
    extras: Extras | None


def run_training(
    config: AnyRun,
    dataset: Dataset,
    *,
    checkpoints: Path,
    observer: Observer,
    device: torch.device,
    resume: bool,
    should_stop: Callable[[], bool],
) -> Run:
    """Train as the configuration says; arguments and errors as `training.trainer.train`.

    Raises:
        ServingError: The model would serve new users or new items badly.
        ValueError: An id-based model is asked for on another device than the CPU.
    """
    if isinstance(config, FactorRun):
        if device.type != "cpu":
            raise ValueError("--device: id-based models train on the CPU, in minutes")
        made = train_factors(
            config, dataset, checkpoints=checkpoints, observer=observer, resume=resume, should_stop=should_stop
        )
        check_servable(made.served, config)
        unseen = made.split.test if len(made.split.test) > 0 else made.split.valid
        extras = partial(write_tables, made.served)
        return Run(made.served.model, made.interactions, unseen, made.metrics, made.state, extras)
    trained = train(
        config,
        dataset,
        checkpoints=checkpoints,
        observer=observer,
        device=device,
        resume=resume,
        should_stop=should_stop,
    )
    metrics = {"valid": trained.valid_metrics} | ({"test": trained.test_metrics} if trained.test_metrics else {})
    unseen = trained.split.test if trained.test_metrics else trained.split.valid
    return Run(
        trained.model, trained.interactions, unseen, metrics, trained.state, _known_items(trained, dataset, config.seed)
    )


def _known_items(trained: Trained, dataset: Dataset, seed: int) -> Extras | None:
    model = trained.model
    known, part = (model, TRANSITIONS) if isinstance(model, Beside) else (model.ids, ID)
    if known is None:
        return None
    rows_X, states_XS = known.table()
    cold = measure_exposure(model, rows_X, Catalogue(dataset), trained.split.valid, seed=seed)

    def write(folder: Path) -> dict[str, Any]:
        item_ids = [dataset.item_ids[row] for row in rows_X.tolist()]
        warm = write_warm_items(folder, item_ids, states_XS.unsqueeze(1).numpy(), parts=[part])
        return {"warm": warm, "cold_items": cold}

    return write
