"""Which representations PAMD attends to, on the toy: shares that sum to one, and weights that are the model's."""

import pytest
import torch

from benchmarks.pamd_attention import figures_of, item_weights, markdown
from index.dataset import Dataset
from tests.factor_runs import config_of, run
from training.data.catalogue import Catalogue
from training.models.pamd import fused


@pytest.mark.parametrize("kind", ["pamd", "pamd+bias", "pamd_user"])
def test_every_hit_has_a_kind_and_the_weights_of_an_item_sum_to_one(kind, toy_dataset, tmp_path):
    dataset = Dataset.open(toy_dataset)
    trained = run(config_of(kind, "model.pretraining.epochs=5"), toy_dataset, tmp_path)
    figures = figures_of(trained, dataset)
    assert figures["hits"] > 0
    assert figures["common, largest"] + figures["specific, largest"] == pytest.approx(1)
    weights = [value for name, value in figures.items() if name.endswith("mean weight")]
    assert len(weights) == 2 * len(dataset.manifest.modalities)
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert f"| hits | {figures['hits']:.3f} ± 0.000 |" in markdown([figures])
    if kind != "pamd_user":
        served = trained.served
        modalities = len(dataset.manifest.modalities)
        parts = served.parts.states_IPS[..., : served.model.ids_dim]
        with torch.inference_mode():
            content, presence = item_content(served.model, dataset)
            added = fused(parts[:, modalities], content, presence)
            of_items = item_weights(trained, dataset)
        torch.testing.assert_close(added, parts[:, :modalities], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(of_items.sum(dim=(1, 2)), presence.any(dim=-1).float())


def item_content(model, dataset):
    features, presence = Catalogue(dataset).inputs()
    return model.content(features, presence), presence
