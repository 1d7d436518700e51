"""InvRL's mask stage on the toy: its gradients in closed form are those of autodiff."""

import pytest
import torch

from index.dataset import Dataset
from tests.factor_runs import config_of
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import make_split
from training.factors.data import FactorData
from training.factors.masking import MaskStage, gradient_penalty
from training.factors.plan import Plan


def mask_stage(folder, *overrides: str) -> MaskStage:
    """Return the first mask stage of a run whose stages before it took no step."""
    config = config_of("invrl", *overrides)
    dataset = Dataset.open(folder)
    split = make_split(read_interactions(dataset), config.split, seed=0, seen=config.eval.seen)
    catalogue = Catalogue(dataset)
    catalogue.condition(config.conditioning)
    plan = Plan(config, FactorData(split.train, split.train_users, catalogue, seed=0), catalogue.features)
    carry = plan.first_carry
    for number, planned in enumerate(plan.stages):
        stage = planned.make(number, carry)
        if isinstance(stage, MaskStage):
            return stage
        carry = {**carry, **stage.finish()[0]}
    raise AssertionError("no mask stage")


@pytest.mark.parametrize("form", ["direct", "hrm", "paper", "code"])
def test_an_environments_gradient_is_that_of_autodiff(form, toy_dataset):
    stage = mask_stage(toy_dataset, f"model.masking.penalty={form}")
    work, net = stage._work(0), stage.module
    own = torch.arange(0, len(work.batch.pairs_X), 2)
    mu_R = torch.rand(net.mask_R.shape, generator=torch.Generator().manual_seed(1)) + 0.1
    loss, found_CR = stage._of_environment(work, own, mu_R)
    (gradient_CR,) = torch.autograd.grad(loss, net.weight_CR, retain_graph=True)
    expected_CR = gradient_CR / mu_R if form == "direct" else gradient_CR
    torch.testing.assert_close(found_CR, expected_CR, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("form", "fades"), [("direct", False), ("hrm", True), ("paper", True), ("code", True)])
def test_the_pull_on_a_mask_that_closes_fades_unless_it_is_direct(form, fades):
    pull_ECR = torch.tensor([[[1.0, 2.0]], [[1.0, -2.0]]])  # the first dimension is alike in both, the second not

    def pulls_at(size: float):
        mask_R = torch.full((2,), size, requires_grad=True)
        gradients_ECR = pull_ECR if form == "direct" else pull_ECR * mask_R
        penalty = gradient_penalty(gradients_ECR, mask_R, form=form, normalised=False)
        return torch.autograd.grad(penalty, mask_R)[0]

    open_R, closed_R = pulls_at(1.0), pulls_at(0.1)
    assert open_R[0] == closed_R[0] == 0
    assert open_R[1] > 0
    assert (closed_R[1] < 0.02 * open_R[1]) == fades
