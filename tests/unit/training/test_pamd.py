"""PAMD against numbers computed by explicit loops in float64, and what pretraining makes of toys."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from api_schemas.manifest import Modality
from training.blocks.disentangled import DisentangledEncoder, attention, chosen
from training.factors.pretraining_stage import PretrainingStage
from training.models import FeatureSpec, PamdConfig, PamdUserConfig
from training.models.pamd import fused
from training.pretraining.losses import Gaps, encoder_loss, infonce, ordering, squared_gap
from training.pretraining.pretraining import CorrAutoencoder, Disentangling
from training.pretraining.settings import CorrAeConfig, DisentanglingConfig


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def near(found, expected):
    torch.testing.assert_close(found, double(expected), rtol=1e-8, atol=1e-12)


E_TEXT, E_IMAGE = double([[1.0, 0.2], [0.3, -0.5]]), double([[0.8, -0.1], [0.1, 0.6]])
C_TEXT, C_IMAGE = double([[0.6, 0.1], [-0.2, 0.5]]), double([[0.7, -0.1], [0.3, 0.4]])
RAW_TEXT, RAW_IMAGE = double([[1.0, 0.0, 0.5], [-0.2, 0.4, 0.1]]), double([[0.3, 0.9], [0.5, -0.6]])
TO_TEXT, TO_IMAGE = double([[0.9, -0.3, 0.4], [-0.2, 0.5, 0.3]]), double([[0.2, 0.8], [0.5, -0.9]])
ALL_THERE = torch.ones(2, 2, dtype=torch.bool)


@pytest.fixture
def parts():
    """The golden items through the encoder, whose primitive maps take e itself."""
    encoder = DisentangledEncoder([2, 2], dim=2).double()
    with torch.no_grad():
        for weight in encoder.primitive.weights():
            weight.copy_(torch.eye(2))
        encoder.common_MDD.copy_(torch.stack([C_TEXT, C_IMAGE]))
    return encoder([E_TEXT, E_IMAGE], ALL_THERE)


def test_parts_are_equations_1_and_2(parts):
    near(parts.common_BMD[:, 0], [[0.56, 0.2], [0.28, -0.22]])
    near(parts.common_BMD[:, 1], [[0.53, -0.12], [0.25, 0.23]])
    near(parts.specific_BMD[:, 0], [[0.44, 0.0], [0.02, -0.28]])
    near(parts.specific_BMD[:, 1], [[0.27, 0.02], [-0.15, 0.37]])


def test_the_matrices_give_the_parts_at_once():
    encoder = DisentangledEncoder([5, 3], dim=4)
    vectors = [torch.randn(6, 5), torch.randn(6, 3)]
    found = encoder(vectors, torch.ones(6, 2, dtype=torch.bool))
    for m, matrix in enumerate(encoder.matrix(m) for m in range(2)):
        both = torch.cat([found.common_BMD[:, m], found.specific_BMD[:, m]], dim=-1)
        torch.testing.assert_close(vectors[m] @ matrix, both)


def test_the_encoder_loss_is_equation_3(parts):
    rows = [
        encoder_loss(parts.common_BMD[i : i + 1], parts.specific_BMD[i : i + 1], ALL_THERE[:1]).item() for i in range(2)
    ]
    near(double(rows), [0.11741344, 0.21476356])
    near(encoder_loss(parts.common_BMD, parts.specific_BMD, ALL_THERE), 0.1660885)


def test_an_item_without_a_modality_has_no_part_in_the_encoder_loss(parts):
    one_there = torch.tensor([[True, True], [True, False]])
    near(encoder_loss(parts.common_BMD, parts.specific_BMD, one_there), 0.11741344)
    near(encoder_loss(parts.common_BMD, parts.specific_BMD, ~ALL_THERE), 0.0)


def gaps_of(parts) -> Gaps:
    """Return the golden gaps: sums over dimensions and both directions, means over items."""
    found = [
        (squared_gap(of_BMD[:, 1] @ TO_TEXT, RAW_TEXT) + squared_gap(of_BMD[:, 0] @ TO_IMAGE, RAW_IMAGE)).mean()
        for of_BMD in (parts.common_BMD, parts.primitive_BMD, parts.specific_BMD)
    ]
    return Gaps(*found)


def printed(gaps: Gaps) -> torch.Tensor:
    """Return Eq. 10 as it is printed. Never to be used, see the tests."""
    return F.logsigmoid(gaps.common - gaps.primitive) + F.logsigmoid(gaps.primitive - gaps.specific)


def test_the_gaps_and_their_order_are_the_golden_ones(parts):
    gaps = gaps_of(parts)
    near(torch.stack(list(gaps)), [1.219254, 1.2373, 1.133854])
    near(ordering(gaps), 1.4303721062)
    near(printed(gaps), -1.3449721062)


@pytest.mark.parametrize(
    ("difference", "value", "slope", "printed_value", "printed_slope"),
    [
        (-10.0, 4.53988992169e-05, 4.53978687024e-05, -10.0000453989, 0.999954602131),
        (0.0, 0.69314718056, 0.5, -0.69314718056, 0.5),
        (10.0, 10.0000453989, 0.999954602131, -4.53988992169e-05, 4.53978687024e-05),
    ],
)
def test_a_wrong_order_costs_and_has_a_slope_where_the_printed_form_has_none(
    difference, value, slope, printed_value, printed_slope
):
    for form, expected, expected_slope in ((ordering, value, slope), (printed, printed_value, printed_slope)):
        common = double(difference).requires_grad_()
        # The second term is far on the side where it neither costs nor pulls.
        quiet = Gaps(common, double(0.0), double(1e3 if form is ordering else -1e3))
        found = form(quiet)
        found.backward()
        near(found.detach(), expected)
        near(common.grad, expected_slope)


def test_the_ordering_is_bounded_below_and_the_printed_form_is_not():
    far = Gaps(double(0.0), double(1e15), double(2e15))
    assert ordering(far).item() == 0
    assert printed(far).item() < -1e15


def test_infonce_is_the_published_code_with_its_sum_over_the_batch_mended(parts):
    of_3BMD = torch.stack([parts.common_BMD, parts.primitive_BMD, parts.specific_BMD])
    near(infonce(of_3BMD[:, :, 1] @ TO_TEXT, RAW_TEXT, tau=0.5).mean(), 2.65845804241)
    near(infonce(of_3BMD[:, :, 0] @ TO_IMAGE, RAW_IMAGE, tau=0.5).mean(), 1.73674550884)


ITEM = double([0.4, 0.3])
# Of text the common and the specific part, then of the picture: the golden file has both common parts first.
REPRESENTATIONS = double([[0.56, 0.2, 0.44, 0.0], [0.53, -0.12, 0.27, 0.02]])
USER = double([0.6, 0.8])
BOTH = torch.tensor([True, True])


def test_fusion_is_equations_12_and_13():
    kinds = torch.split(REPRESENTATIONS, 2, dim=-1)
    weights = attention(ITEM, kinds, BOTH, scale=1 / math.sqrt(2))
    near(torch.cat(weights), [0.267402050161, 0.247741484008, 0.247741484008, 0.237114981823])
    added = fused(ITEM, REPRESENTATIONS, BOTH)
    near(ITEM + added.sum(dim=0), [0.85407543267, 0.328493731588])
    near(added @ USER, [0.13263141688 + 0.0654037517781, 0.0549986094497 + 0.0422064667645])
    near((ITEM + added.sum(dim=0)) @ USER, 0.775240244872)


def test_an_item_without_a_vector_of_its_own_is_the_mean_of_its_representations():
    near(fused(double([0.0, 0.0]), REPRESENTATIONS, BOTH).sum(dim=0), [0.45, 0.025])


def test_what_is_absent_takes_no_part_in_the_attention():
    alone = fused(ITEM, REPRESENTATIONS[:1], BOTH[:1])
    near(fused(ITEM, REPRESENTATIONS, torch.tensor([True, False])), [alone[0].tolist(), [0.0, 0.0]])
    assert not fused(ITEM, REPRESENTATIONS, ~BOTH).any()


@pytest.mark.parametrize("representations", ["common", "specific", "both"])
def test_some_parts_alone_enter_items(representations):
    features = FeatureSpec((Modality(name="text", dim=3), Modality(name="image", dim=2)))
    model = PamdConfig(dim=4, representations=representations).build(features, num_users=2, num_items=3)
    content = torch.randn(3, 5)
    content[1, 3:] = 0
    presence = torch.tensor([[True, True], [True, False], [True, True]])
    parts = model.content.encoder(torch.split(content, [3, 2], dim=-1), presence)
    wanted = {"common": parts.common_BMD, "specific": parts.specific_BMD}
    both = torch.cat([parts.common_BMD, parts.specific_BMD], dim=-1)
    expected = model.ids_IF + fused(model.ids_IF, wanted.get(representations, both), presence).sum(dim=-2)
    torch.testing.assert_close(model.items(content), expected)
    torch.testing.assert_close(model.items(content[[2, 0]], torch.tensor([2, 0])), expected[[2, 0]])


def world(num_items=400, *, seed=0):
    """Three modalities that share three hidden numbers, and have three of their own; some are absent."""
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=chance)

    shared = draw(num_items, 3)
    vectors = [torch.cat([shared, draw(num_items, 3)], dim=-1) @ draw(6, width) / 6**0.5 for width in (8, 10, 6)]
    presence = torch.rand(num_items, 3, generator=chance) > 0.1
    for m, one in enumerate(vectors):
        one[~presence[:, m]] = torch.nan
    return [one.nan_to_num(1e6) for one in vectors], presence


@pytest.mark.parametrize("contrast", ["infonce", "softplus"])
def test_pretraining_brings_the_gaps_into_order_on_items_that_it_has_not_seen(contrast):
    settings = DisentanglingConfig(dim=8, epochs=40, batch_size=32, lr=5e-3, contrast=contrast)
    task = Disentangling(*world(), settings, seed=0)
    before = task.facts()
    task.run()
    after = task.facts()
    assert after["gap_common"] < after["gap_primitive"] < after["gap_specific"]
    assert after["in_order"] > max(0.55, before["in_order"] + 0.1)
    losses = task.losses(task.total_steps)
    assert all(torch.isfinite(value) and value >= 0 for value in losses.values())


def test_without_contrast_common_parts_come_together_and_nothing_orders_them():
    settings = DisentanglingConfig(dim=8, epochs=20, batch_size=32, lr=5e-3, contrast="none")
    task = Disentangling(*world(), settings, seed=0)
    first = task.losses(0)
    task.run()
    last = task.losses(task.total_steps)
    assert last["common"] < first["common"]
    torch.testing.assert_close(last["contrast"], last["common"])


def test_pretraining_is_a_function_of_its_seed():
    settings = DisentanglingConfig(dim=4, epochs=1)
    matrices = []
    for seed in (0, 0, 1):
        task = Disentangling(*world(), settings, seed=seed)
        task.run()
        matrices.append(task.matrices()[0])
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])


def test_one_modality_alone_has_nothing_to_be_disentangled_from():
    vectors, presence = world()
    task = Disentangling(vectors[:1], presence[:, :1], DisentanglingConfig(dim=4), seed=0)
    assert task.total_steps == 0
    task.run()
    assert task.facts() == {}
    assert task.matrices()[0].shape == (8, 8)
    assert 0 < task.mean_length() < 10, "items have content, though nothing to be told apart from"


def test_of_no_content_nothing_is_learned_and_nothing_grows():
    vectors, presence = world()
    task = Disentangling(vectors, torch.zeros_like(presence), DisentanglingConfig(dim=4), seed=0)
    before = [matrix.clone() for matrix in task.matrices()]
    stage = PretrainingStage("pretrain", 0, task, length=1.0)
    assert (stage.total_steps, task.mean_length()) == (0, 0)
    carry, facts = stage.finish()
    assert all(torch.isfinite(value).all() for value in carry.values())
    assert all(np.isfinite(value) for value in facts.values())
    for one, other in zip(before, task.matrices(), strict=True):
        assert torch.equal(one, other)


def test_corr_ae_rebuilds_and_ties():
    vectors, presence = world()
    task = CorrAutoencoder(vectors, presence, CorrAeConfig(dim=4, epochs=60, batch_size=32, lr=5e-3), seed=0)
    first = task.losses(0)
    task.run()
    last = task.losses(task.total_steps)
    assert last["rebuilt"] < 0.8 * first["rebuilt"]
    torch.testing.assert_close(last["total"].detach(), 0.5 * (last["rebuilt"] + last["tied"]))
    assert [matrix.shape for matrix in task.matrices()] == [(8, 4), (10, 4), (6, 4)]


def test_tied_alone_the_codes_of_an_item_become_one():
    vectors, presence = world()
    task = CorrAutoencoder(vectors, presence, CorrAeConfig(dim=4, epochs=60, batch_size=32, lr=5e-3, tie=1.0), seed=0)
    first = task.losses(0)
    task.run()
    assert task.losses(task.total_steps)["tied"] < 0.05 * first["tied"]


def test_the_users_query_gives_the_published_codes_score_and_its_bound():
    features = FeatureSpec((Modality(name="text", dim=2), Modality(name="image", dim=2)))
    model = PamdUserConfig(dim=2).build(features, torch.ones(1, 2, dtype=torch.bool), num_users=1).double()
    # Vectors that the encoder takes apart into the golden representations: e is their sum, and what is common is c.
    common, specific = REPRESENTATIONS[:, :2], REPRESENTATIONS[:, 2:]
    states = F.pad(torch.cat([common, specific], dim=-1), (0, 1))
    id_state = torch.cat([ITEM, double([0.0, 0.0, 0.0])])
    candidate = model.ranker.fuse(torch.cat([states, id_state[None]]), torch.ones(3, dtype=torch.bool))
    user = USER.view(1, 1, 2)
    near(model.ranker(user, candidate[None])[0, 0].detach(), 0.785907101654)
    weights = model.ranker.attention(user, candidate[None])[0, 0]
    near(weights, [0.304796182479, 0.241686951295, 0.231746313956, 0.22177055227])
    near(USER @ ITEM + (REPRESENTATIONS.reshape(4, 2) @ USER).max(), 0.976)
    assert model.ranker(user, candidate[None]) <= 0.976


@pytest.mark.parametrize("representations", ["common", "specific", "both"])
def test_a_ranker_reads_what_the_encoder_makes_of_content(representations):
    features = FeatureSpec((Modality(name="text", dim=3), Modality(name="image", dim=2)))
    settings = PamdUserConfig(dim=4, representations=representations, modalities=("image",))
    model = settings.build(features, torch.ones(3, 2, dtype=torch.bool), num_users=2)
    content = torch.randn(3, 5)
    states, _ = model.states(content)
    parts = model.encoder(torch.split(content, [3, 2], dim=-1), torch.ones(3, 2, dtype=torch.bool))
    assert not states[:, 0].any(), "a modality that is not used"
    expected = chosen(parts, representations)[:, 1]
    torch.testing.assert_close(states[:, 1, : expected.shape[1]], expected)
