"""From a trained model to a published bundle: graphs, proof, figures, faithfulness, all or nothing."""

import json
import math
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from api_schemas.manifest import RANKER_METHODS, BundleManifest, ExplanationMethod
from index.artefacts import MANIFEST, write_durably
from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import METHODS
from index.features import ModelInputs, from_dataset
from index.store import UNPUBLISHED, ArtifactStore
from training.config import RunConfig, to_toml
from training.export import export_graphs, graphs_of
from training.faithfulness import JudgedUsers, measure_faithfulness
from training.golden import TOLERANCE, check_parity, make_golden
from training.models import Retriever, ServableModel

GOLDEN_FILE = "golden.npz"
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.json"

_GOLDEN_ITEMS = 64
"""Items that the golden replay draws on."""

Extras = Callable[[Path], dict[str, Any]]
"""Writes further files of a bundle into its folder; returns the manifest's fields about them."""

OnProgress = Callable[[str, int, int], None]
"""Hears what is being done, how many units are done, and of how many."""


def publish_bundle(
    store: ArtifactStore,
    *,
    model: ServableModel,
    config: RunConfig,
    dataset: Dataset,
    metrics: Mapping[str, Mapping[str, float]],
    judged: JudgedUsers,
    extras: Extras | None = None,
    on_progress: OnProgress | None = None,
) -> str:
    """Export a model, prove the graphs, measure its explanations, and publish the bundle.

    Nothing is in the store unless all of it went well. No GPU is needed, wherever the model was trained.

    Args:
        store: Where to.
        model: Trained; it is not changed.
        config: Of the run, resolved.
        dataset: What it was trained on.
        metrics: By part of the users (`test`, `valid`), the figures by name. The manifest takes those of `test`, or
            of `valid` when there is no test.
        extras: What the family brings beside graphs: writes its files into the folder that it is given, and returns the
            fields of the manifest that speak of them.
        judged: Held-out users for the faithfulness of explanations; may be none.
        on_progress: Hears how it goes.

    Returns:
        The bundle's version.

    Raises:
        ValueError: A parameter of the model or a metric is not finite.
        ParityError: An exported graph does not compute what the model computes.
        OSError: The disk is full or fails.
    """
    report = on_progress or _silent
    for part, values in metrics.items():
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"metrics: {name} of {part} is {value}")
    graphs = graphs_of(model)
    with store.stage("bundle", name=config.name) as stage:
        specs = export_graphs(model, stage.path, on_graph=lambda done, total: report("export", done, total))
        golden = make_golden(model, graphs, _some_items(dataset, model))
        check_parity(stage.path, graphs, golden)
        np.savez(stage.path / GOLDEN_FILE, allow_pickle=False, **golden)
        (stage.path / CONFIG_FILE).write_text(to_toml(config), encoding="utf-8")
        (stage.path / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        manifest = BundleManifest(
            version=UNPUBLISHED,
            created_at=datetime.now(UTC),
            family=config.model.kind,
            modalities=list(model.modalities),
            dim=model.dim,
            history_dim=model.history_dim,
            state_dim=model.state_dim,
            history_length=model.history_length,
            history_ages=model.reads_ages,
            num_queries=model.num_queries,
            history_is_candidate=model.history_is_candidate,
            scorer=model.scorer,
            query_dim=model.query_dim if model.scorer == "ranker" else None,
            graphs=specs,
            golden=GOLDEN_FILE,
            golden_atol=TOLERANCE,
            explanation_methods=_methods(model),
            metrics=dict(metrics.get("test") or metrics.get("valid") or {}),
            dataset_name=dataset.manifest.name,
            data_fingerprint=dataset.fingerprint(),
            code_revision=code_revision(),
            files=[],
            parts=list(model.part_names) if model.extra_parts else [],
            **(extras(stage.path) if extras is not None else {}),
        )
        # The bundle is measured as it will be served: from its files, through the code that serves it.
        write_durably(stage.path / MANIFEST, manifest.model_dump_json().encode())
        bundle = Bundle.open(stage.path)
        bundle.check_golden()
        faithfulness = measure_faithfulness(
            bundle,
            dataset,
            judged,
            methods=manifest.explanation_methods,
            seed=config.seed,
            on_user=lambda done, total: report("explanations", done, total),
        )
        return stage.publish(manifest.model_copy(update={"faithfulness": faithfulness}))


def _methods(model: ServableModel) -> list[ExplanationMethod]:
    """Return the methods, the default first.

    Where the score is linear, its decomposition is exact on both sides; where it sums over queries, Shapley values
    alone add up to it. A ranker's have no gradients.
    """
    if not isinstance(model, Retriever):
        return list(RANKER_METHODS)
    first: ExplanationMethod = METHODS[0]
    if model.user_map is not None:
        first = "decomposition"
    elif model.scorer == "logsumexp":
        first = "shapley"
    return [first, *(method for method in METHODS if method != first)]


def _some_items(dataset: Dataset, model: ServableModel) -> ModelInputs:
    """Return items from all over the catalogue, those with the most modalities first."""
    rows_N = np.linspace(0, dataset.num_items - 1, num=min(dataset.num_items, _GOLDEN_ITEMS)).astype(np.int64)
    counts_N = sum(dataset.presence(modality.name)[rows_N].astype(np.int64) for modality in model.modalities)
    return from_dataset(dataset, rows_N[np.argsort(-counts_N, kind="stable")], model.modalities)


def code_revision() -> str:
    """Return the git commit of this code, with `-dirty` for uncommitted changes; the package's version outside git."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # or else we lie, installed, in a stranger's checkout
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return _package_version()


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    found = subprocess.run(  # noqa: S603  # fixed arguments
        ["git", *arguments],  # noqa: S607  # git from PATH
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return found.stdout.strip()


def _package_version() -> str:
    try:
        return f"prismrec {version('prismrec')}"
    except PackageNotFoundError:
        return "unknown"


def _silent(_what: str, _done: int, _total: int) -> None:
    pass
