"""What every id-based family must do while it is trained: the tests enrol from the union."""

import pytest
import torch

from index.dataset import Dataset
from tests.factor_runs import FAMILIES, TRAINED_ENCODERS, config_of
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import make_split
from training.factors.data import FactorData
from training.factors.plan import Plan
from training.models import IdModel

STILL = ("optim.l2_tables=0", "optim.l2_projection=0")
"""Nothing but the loss moves anything."""

BEHIND_RECTIFIERS = ("ranker.layers.hidden.", "first_user.", "first_id_WG", "first_content.")
"""Weights of rankers that units which are off keep still."""


@pytest.fixture(params=[*FAMILIES, *TRAINED_ENCODERS])
def plan(request, toy_dataset) -> Plan:
    config = config_of(request.param, *STILL)
    dataset = Dataset.open(toy_dataset)
    split = make_split(read_interactions(dataset), config.split, seed=0, seen=config.eval.seen)
    catalogue = Catalogue(dataset)
    catalogue.condition(config.conditioning)
    return Plan(config, FactorData(split.train, split.train_users, catalogue, seed=0), catalogue.features)


def one_step_of_each(plan: Plan):
    """Take one step of each stage in turn; give the stage, and its parameters before."""
    carry = plan.first_carry
    for number, planned in enumerate(plan.stages):
        stage = planned.make(number, carry)
        optimiser = torch.optim.Adam(stage.groups())
        before = {name: value.detach().clone() for name, value in stage.module.named_parameters()}
        torch.autograd.backward(stage.losses(0)["total"])
        optimiser.step()
        stage.stepped()
        yield stage, before
        carry = {**carry, **stage.finish()[0]}


def test_after_one_step_every_parameter_of_every_stage_has_moved(plan):
    """Each column of a table, each raw dimension, each environment; some rows are in no pair, some hidden units off."""
    for stage, before in one_step_of_each(plan):
        assert before, stage.name
        tables = {id(table) for table in stage.module.tables()} if isinstance(stage.module, IdModel) else set()
        for name, value in stage.module.named_parameters():
            moved, where = value != before[name], f"{name} in {stage.name}"
            if id(value) in tables:
                moved_NF = moved.view(len(moved), -1)
                assert moved_NF.any(dim=0).all(), where
                # Rows, not numbers: where the largest of some counts, the others stay.
                assert moved_NF.any(dim=1).float().mean() > 0.5, where
            elif stage.name == "network" or name.startswith(BEHIND_RECTIFIERS):
                assert moved.float().mean() > 0.5, where
            else:
                assert moved.all(), where


def test_the_optimiser_has_every_parameter_of_a_stage_once(plan):
    for stage, _ in one_step_of_each(plan):
        held = [id(value) for group in stage.groups() for value in group["params"]]
        assert sorted(held) == sorted(id(value) for value in stage.module.parameters()), stage.name
