"""What is tried, and which models may be compared."""

import pytest

from training.compare.space import draw, enter
from training.config import ConfigError, parse_config

SPACE = {"optim.lr": (1e-3, 3e-3, 1e-2), "optim.l2_tables": (0.0, 1e-2), "model.negatives": (1, 4)}


def config_of(name="a", *overrides, kind="mf_bpr", search=""):
    return parse_config(f'name = "{name}"\n[model]\nkind = "{kind}"\n[search]\n{search}', overrides)


def test_no_settings_are_drawn_twice_and_the_same_ones_every_time():
    drawn = draw(SPACE, num=8)
    assert len(drawn) == len({tuple(one.items()) for one in drawn}) == 8
    assert all(one[key] in values for one in drawn for key, values in SPACE.items())
    assert draw(SPACE, num=8) == drawn


def test_more_trials_begin_with_the_fewer():
    assert draw(SPACE, num=12)[:5] == draw(SPACE, num=5)


def test_a_grid_that_holds_no_more_is_tried_whole():
    assert len({tuple(one.items()) for one in draw(SPACE, num=100)}) == 12


def test_without_a_space_there_is_one_trial_the_configuration_itself():
    (entrant,) = enter([config_of()], num_trials=8)
    assert entrant.trials == ({},)
    assert entrant.run({}, seed=3) == config_of("a", "seed=3")


def test_a_grid_beyond_all_reason_is_refused():
    with pytest.raises(ConfigError, match="combinations"):
        draw({f"k{place}": tuple(range(10)) for place in range(20)}, num=1)


def test_all_models_have_the_same_number_of_trials():
    space = '"optim.lr" = [1e-3, 2e-3, 3e-3]\n"optim.l2_tables" = [0.0, 1e-3]'
    entrants = enter([config_of("a", search=space), config_of("b", kind="vbpr", search=space)], num_trials=4)
    assert [len(entrant.trials) for entrant in entrants] == [4, 4]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("split.kind=users", "split is"),
        ("split.seed=4", "split is"),
        ("eval.cutoffs=[10, 20]", "eval.cutoffs is"),
        ("eval.seen=keep", "eval.seen is mask and keep"),
        ("eval.monitor=ndcg@20", "eval.monitor is recall@20 and ndcg@20"),
    ],
)
def test_models_that_are_judged_differently_are_refused_by_name_and_field(override, field):
    with pytest.raises(ConfigError, match=f"a and b can not be compared: {field}"):
        enter([config_of("a"), config_of("b", override)], num_trials=1)


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two configurations have the name a"):
        enter([config_of("a"), config_of("a", kind="vbpr")], num_trials=1)
