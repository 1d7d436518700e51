"""Shapley values of games whose answer is known."""

import itertools
import math

import numpy as np
import pytest

from index.shapley import EXACT_PLAYERS, shapley_values


def by_definition(worth: dict, num_players: int) -> np.ndarray:
    """The mean of what each player adds, over all orders."""
    values = np.zeros(num_players)
    for order in itertools.permutations(range(num_players)):
        there: frozenset[int] = frozenset()
        for player in order:
            values[player] += worth[there | {player}] - worth[there]
            there |= {player}
    return values / math.factorial(num_players)


def random_game(num_players: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        frozenset(members): float(rng.normal())
        for size in range(num_players + 1)
        for members in itertools.combinations(range(num_players), size)
    }


def as_value(*games):
    def value(coalitions_VM):
        sets = [frozenset(np.flatnonzero(coalition).tolist()) for coalition in coalitions_VM]
        return np.array([[game[members] for game in games] for members in sets])

    return value


@pytest.mark.parametrize("num_players", [1, 2, 3, 4])
def test_exact_values_are_the_mean_over_all_orders(num_players):
    games = [random_game(num_players, seed) for seed in (0, 1)]
    values, empty = shapley_values(as_value(*games), num_players=num_players)
    for row, game in enumerate(games):
        np.testing.assert_allclose(values[row], by_definition(game, num_players), atol=1e-12)
        assert empty[row] == game[frozenset()]


@pytest.mark.parametrize("num_players", [2, EXACT_PLAYERS, EXACT_PLAYERS + 1])
def test_values_and_the_empty_coalition_sum_to_the_whole(num_players):
    game = random_game(num_players, 3)
    values, empty = shapley_values(as_value(game), num_players=num_players)
    assert values.sum() + empty[0] == pytest.approx(game[frozenset(range(num_players))], abs=1e-12)


def test_sampled_values_of_an_additive_game_are_exact_and_the_same_every_time():
    gains = np.arange(9, dtype=float)
    first, _ = shapley_values(lambda coalitions: coalitions @ gains[:, None], num_players=9)
    again, _ = shapley_values(lambda coalitions: coalitions @ gains[:, None], num_players=9)
    np.testing.assert_allclose(first[0], gains, atol=1e-12)
    np.testing.assert_array_equal(first, again)


def test_sampled_values_are_near_the_exact_ones():
    num_players = EXACT_PLAYERS + 1

    def value(coalitions):  # players 0 and 1 are worth something together only; 2 is worth half alone
        return (coalitions[:, :1] & coalitions[:, 1:2]) * 1.0 + 0.5 * coalitions[:, 2:3]

    values, _ = shapley_values(value, num_players=num_players)
    np.testing.assert_allclose(values[0, :3], [0.5, 0.5, 0.5], atol=1e-12)  # reversed pairs make this exact
    np.testing.assert_allclose(values[0, 3:], 0, atol=1e-12)


def test_no_players_leave_the_empty_coalition():
    values, empty = shapley_values(lambda coalitions: np.full((len(coalitions), 2), 3.0), num_players=0)
    assert values.shape == (2, 0)
    np.testing.assert_array_equal(empty, [3.0, 3.0])
