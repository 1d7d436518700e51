"""Several interests of one history: the numbers of an independent computation, and the axis that ports get wrong.

Three places, the last one empty; width 2; the numbers were made with plain loops in float64.
"""

import pytest
import torch

from training.blocks import HeadsPool, in_line, places, route
from training.losses import sampled_softmax
from training.objective import next_items

F64 = torch.float64
ROWS = torch.tensor([[[1.0, 0.2], [-0.3, 0.9], [0.5, 0.5]]], dtype=F64)
MASK = torch.tensor([[True, True, False]])


def test_attention_with_heads_looks_by_position_and_sees_without_it():
    pool = HeadsPool(2, hidden=3, heads=2, length=3).double()
    with torch.no_grad():
        pool.position_PD.copy_(torch.tensor([[0.05, 0.0], [0.0, 0.1], [0.02, 0.02]]))
        pool.first.weight.copy_(torch.tensor([[0.4, -0.2], [0.3, 0.6], [-0.5, 0.1]]))
        pool.second.weight.copy_(torch.tensor([[0.7, 0.2, -0.1], [-0.3, 0.5, 0.4]]))
    weights = torch.tensor([[[0.629379365241, 0.370620634759, 0.0], [0.373723721236, 0.626276278764, 0.0]]], dtype=F64)
    interests = torch.tensor([[[0.518193174813, 0.459434444331], [0.185840837607, 0.638393395135]]], dtype=F64)
    torch.testing.assert_close(pool.weights(ROWS, MASK), weights, atol=1e-7, rtol=0)
    torch.testing.assert_close(pool(ROWS, MASK), interests, atol=1e-7, rtol=0)


def test_routing_with_one_map_from_given_logits():
    one_map = torch.tensor([[0.8, 0.1], [-0.2, 0.9]], dtype=F64)
    logits = torch.tensor([[0.3, -0.1, 0.2], [-0.4, 0.5, 0.0]], dtype=F64).T[None]
    found = route((ROWS @ one_map.T).unsqueeze(2), logits, MASK, iterations=3)
    expected = torch.tensor([[[0.240913186119, 0.107422368392], [0.055172783948, 0.271237266632]]], dtype=F64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)


def test_routing_with_maps_of_places_and_interests_splits_items_over_interests():
    maps = torch.tensor(
        [
            [[[0.8, 0.1], [-0.2, 0.9]], [[0.3, 0.5], [0.6, -0.1]]],
            [[[0.7, 0.0], [0.1, 1.0]], [[0.2, 0.4], [0.5, 0.0]]],
            [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]],
        ],
        dtype=F64,
    )
    votes = torch.einsum("pqde,bpe->bpqd", maps, ROWS)
    found = route(votes, torch.zeros_like(votes[..., 0]), MASK, iterations=3)
    expected = torch.tensor([[[0.126110193613, 0.200034475591], [0.114641838926, 0.0760887447021]]], dtype=F64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)
    over_time = torch.tensor([[[0.0604494988961, 0.0874999302566], [0.0592475413539, 0.0382476848557]]], dtype=F64)
    assert not torch.allclose(found, over_time, atol=1e-2)


def test_sampled_softmax_takes_log_q_off_every_logit_and_leaves_accidental_hits_out():
    logits = torch.tensor([[1.0, 0.5, 0.2, -0.3]], dtype=F64)
    log_q = torch.tensor([0.1, 0.3, 0.05, 0.2], dtype=F64).log()
    positive, negative = logits[:, 0], logits[:, 1:]
    corrected = {"log_expected_positive_B": log_q[:1], "log_expected_negative_N": log_q[1:]}
    hits = torch.tensor([[False, True, False]])
    assert sampled_softmax(positive, negative).item() == pytest.approx(0.845177650128)
    assert sampled_softmax(positive, negative, **corrected).item() == pytest.approx(0.805180702202)
    assert sampled_softmax(positive, negative, hit_BN=hits, **corrected).item() == pytest.approx(0.291506836025)


def test_histories_stand_in_line_at_the_end_without_what_lies_between():
    rows = torch.arange(1.0, 6.0)[None, :, None].expand(3, -1, 1)
    mask = torch.tensor([[True, False, True, True, False], [True] * 5, [False] * 5])
    lined, there = in_line(rows, mask, length=3)
    assert lined[..., 0].tolist() == [[1, 3, 4], [3, 4, 5], [0, 0, 0]]
    assert there.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    lined, there = in_line(rows, mask, length=4)
    assert lined[..., 0].tolist() == [[0, 1, 3, 4], [2, 3, 4, 5], [0, 0, 0, 0]]
    assert places(mask, length=4)[0].tolist() == [1, -1, 2, 3, -1]


def test_every_place_is_to_find_what_follows_it_and_the_last_one_the_target():
    rows = torch.tensor([[7, 0, 5, 6, 0], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[True, False, True, True, False], [True] * 5])
    after = next_items(rows, mask, torch.tensor([9, 8]))
    assert after[0, 2:].tolist() == [5, 6, 9]
    assert after[1].tolist() == [2, 3, 4, 5, 8]
