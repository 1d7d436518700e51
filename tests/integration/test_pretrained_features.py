"""Pretrained features plugged into models of every kind: what is served takes raw vectors and knows nothing of them."""

import numpy as np
import pytest
import torch

from index.dataset import Dataset
from index.features import from_dataset
from tests.factor_runs import config_of, run
from training.config import ConfigError, parse_config
from training.data.catalogue import Catalogue
from training.data.conditioning import ConditioningConfig
from training.pretraining.features import prepare
from training.pretraining.settings import CorrAeFeatures, PamdFeatures
from training.progress import Unwatched
from training.trainer import train

QUICK = {"dim": 6, "epochs": 5, "batch_size": 16}
FEATURES = [PamdFeatures(pretraining=QUICK), CorrAeFeatures(pretraining=QUICK)]


def raw_items(dataset: Dataset, modalities):
    inputs = from_dataset(dataset, np.arange(dataset.num_items), modalities)
    return [torch.from_numpy(one.copy()) for one in inputs.features], torch.from_numpy(inputs.presence.copy())


@pytest.mark.parametrize("features", FEATURES, ids=lambda one: one.kind)
@pytest.mark.parametrize("conditioning", ["raw", "whiten"])
def test_features_have_the_size_that_conditioned_vectors_have(features, conditioning, toy_dataset):
    catalogue = Catalogue(Dataset.open(toy_dataset))
    prepare(catalogue, ConditioningConfig(kind=conditioning), features, seed=0)
    vectors, presence = catalogue.inputs()
    width = 12 if features.kind == "pamd" else 6
    for m, (one, modality) in enumerate(zip(vectors, catalogue.features.modalities, strict=True)):
        assert one.shape[1] == modality.dim == width
        square = one[presence[:, m]].square().mean() * (width if conditioning == "raw" else 1)
        assert square == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("features", ["pamd", "corr_ae"])
@pytest.mark.parametrize("kind", ["bpr_plus", "mmgcn", "pamd"])
def test_an_id_based_model_on_pretrained_features_learns_and_takes_raw_vectors(kind, features, toy_dataset, tmp_path):
    config = config_of(kind, f"features.kind={features}", "features.pretraining.epochs=5", "features.pretraining.dim=6")
    trained = run(config, toy_dataset, tmp_path)
    assert trained.metrics["test"]["recall@20"] > 0.8
    served = trained.served
    dataset = Dataset.open(toy_dataset)
    raw, presence = raw_items(dataset, served.model.modalities)
    assert [one.dim for one in served.model.modalities] == [one.dim for one in dataset.manifest.modalities]
    with torch.inference_mode():
        states = served.model.project(raw, presence)
    content = [part for part, name in enumerate(served.model.part_names) if name not in served.model.warm_parts]
    torch.testing.assert_close(states[:, content], served.parts.states_IPS[:, content], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("features", ["pamd", "corr_ae"])
def test_a_content_model_on_pretrained_features_takes_raw_vectors(features, toy_dataset, tmp_path):
    text = '[model]\nkind = "base"\ndim = 8\nhistory_length = 10\n[optim]\nmax_steps = 5\n'
    config = parse_config(text, [f"features.kind={features}", "features.pretraining.epochs=2"])
    dataset = Dataset.open(toy_dataset)
    trained = train(config, dataset, checkpoints=tmp_path, observer=Unwatched(), device=torch.device("cpu"))
    items = trained.model.encode_items(*raw_items(dataset, trained.model.modalities))
    assert torch.isfinite(items).all()
    assert [one.dim for one in trained.model.modalities] == [one.dim for one in dataset.manifest.modalities]
    catalogue = Catalogue(dataset)
    prepare(catalogue, config.conditioning, config.features, seed=config.seed)
    # What the first layer makes of raw vectors is what it made of features: their maps have the same rank.
    for m, linear in enumerate(trained.model.projector.linears):
        assert torch.linalg.matrix_rank(linear.weight, rtol=1e-4) <= catalogue.features.modalities[m].dim


def test_masks_of_raw_dimensions_and_pretrained_features_do_not_go_together():
    with pytest.raises(ConfigError, match=r"features\.kind = pamd: invrl masks raw dimensions"):
        config_of("invrl", "features.kind=pamd")


def test_a_setting_of_another_kind_of_features_is_named():
    with pytest.raises(ConfigError, match=r"features\.corr_ae\.pretraining\.tau"):
        config_of("bpr_plus", "features.kind=corr_ae", "features.pretraining.tau=1.0")
