"""Shapley values of a game with few players: the mean of what a player adds, over all orders of joining.

Legend: `M` players, `V` coalitions, `K` games that are played at once, `R` orders.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

EXACT_PLAYERS = 6
"""Up to here all 2^M coalitions are asked for; beyond it, orders are sampled."""

SAMPLED_ORDERS = 64
"""Each order and its reverse are both used, so half of them are drawn."""

_SEED = 0

CoalitionValue = Callable[[NDArray[np.bool_]], NDArray[np.floating]]
"""From coalitions `[V, M]` to their values `[V, K]`. The first one asked for is the empty one, the last the whole."""


def shapley_values(value: CoalitionValue, *, num_players: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the players' values `[K, M]` and the value `[K]` of the empty coalition.

    Values and empty coalition sum to the whole: for sampled orders too, as each single order already sums to it.
    Sampling (more than `EXACT_PLAYERS` players) is seeded, so the same game gets the same answer; its standard error
    falls with the square root of `SAMPLED_ORDERS`.
    """
    if num_players <= EXACT_PLAYERS:
        return _exact(value, num_players)
    return _sampled(value, num_players)


def _exact(value: CoalitionValue, num_players: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    codes_V = np.arange(2**num_players)
    coalitions_VM = (codes_V[:, None] >> np.arange(num_players) & 1).astype(np.bool_)
    worth_VK = np.asarray(value(coalitions_VM), dtype=np.float64)
    size_V = coalitions_VM.sum(axis=1)
    phi_MK = np.empty((num_players, worth_VK.shape[1]))
    # With s others already there, a player's contribution has weight s! (M - s - 1)! / M!  (Shapley 1953).
    weight_s = np.array([1 / (num_players * math.comb(num_players - 1, s)) for s in range(num_players)])
    for player in range(num_players):
        without_V = codes_V[~coalitions_VM[:, player]]
        added_VK = worth_VK[without_V + (1 << player)] - worth_VK[without_V]
        phi_MK[player] = weight_s[size_V[without_V]] @ added_VK
    return phi_MK.T, worth_VK[0]


def _sampled(value: CoalitionValue, num_players: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(_SEED)
    drawn = np.stack([rng.permutation(num_players) for _ in range(SAMPLED_ORDERS // 2)])
    orders_RM = np.concatenate([drawn, drawn[:, ::-1]])
    # Position of each player in each order; after t joined, those at positions below t are in.
    position_RM = np.argsort(orders_RM, axis=1)
    steps_T = np.arange(num_players + 1)
    coalitions_RTM = position_RM[:, None, :] < steps_T[None, :, None]
    unique_VM, place_X = np.unique(coalitions_RTM.reshape(-1, num_players), axis=0, return_inverse=True)
    worth_VK = np.asarray(value(unique_VM), dtype=np.float64)
    worth_RTK = worth_VK[place_X.reshape(len(orders_RM), num_players + 1)]
    phi_MK = np.zeros((num_players, worth_VK.shape[1]))
    for order_M, added_MK in zip(orders_RM, np.diff(worth_RTK, axis=1), strict=True):
        phi_MK[order_M] += added_MK
    return (phi_MK / len(orders_RM)).T, worth_VK[0]
