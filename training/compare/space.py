"""Which settings of a model are tried: drawn from the grid of its `[search]` table, never the same ones twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.config import AnyRun, ConfigError, SearchSpace, SearchValue, with_settings

_SEED = 0
"""Of the draw: the same file gives the same trials, and more of them begin with the fewer."""

_MAX_GRID = 1_000_000

Settings = Mapping[str, SearchValue]

_SHARED = ("split", "eval.cutoffs", "eval.seen", "eval.monitor", "eval.sampled")
"""Fields that decide which users and which figures runs are judged by."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model in the comparison, with the settings that are tried for it."""

    config: AnyRun
    trials: tuple[Settings, ...]

    @property
    def name(self) -> str:
        """Return what it is called, everywhere."""
        return self.config.name

    def run(self, settings: Settings, *, seed: int) -> AnyRun:
        """Return one run of it."""
        return with_settings(self.config, {**settings, "seed": seed})


def draw(space: SearchSpace, *, num: int) -> tuple[Settings, ...]:
    """Return settings at random from the grid of a space, without repetition: all of it when it holds no more.

    Values of each key come in turns, in an order drawn anew for every turn, so that few trials still try all of them.

    Raises:
        ConfigError: The grid is too large to be drawn from.
    """
    size = int(np.prod([len(values) for values in space.values()], dtype=np.float64))
    if size > _MAX_GRID:
        raise ConfigError(f"search: {size:,} combinations, at most {_MAX_GRID:,}")
    rng = np.random.default_rng(_SEED)
    turns = [_in_turns(len(values), rng) for values in space.values()]
    left = iter(rng.permutation(list(np.ndindex(*[len(values) for values in space.values()]))).tolist())
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < min(num, size):
        places = tuple(next(turn) for turn in turns)
        while places in chosen:
            places = tuple(next(left))
        chosen[places] = None
    return tuple(
        {key: values[place] for (key, values), place in zip(space.items(), places, strict=True)} for places in chosen
    )


def _in_turns(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Give the places of `count` values, each once a turn, without end."""
    while True:
        yield from rng.permutation(count).tolist()


def enter(configs: Sequence[AnyRun], *, num_trials: int) -> list[Entrant]:
    """Return the models of a comparison, each with the same number of trials where its space holds so many.

    Raises:
        ConfigError: Two have one name, are judged differently, or values of a space do not go together.
    """
    for other in configs[1:]:
        for field in _SHARED:
            first, second = _value(configs[0], field), _value(other, field)
            if first != second:
                raise ConfigError(
                    f"{configs[0].name} and {other.name} can not be compared: {field} is {first} and {second}"
                )
    names = [config.name for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two configurations have the name {min(twice)}: each needs its own")
    entrants = []
    for config in configs:
        try:
            entrant = Entrant(config, draw(config.search, num=num_trials))
            for settings in entrant.trials:
                entrant.run(settings, seed=0)
        except ConfigError as error:
            raise ConfigError(f"{config.name}: {error}") from error
        entrants.append(entrant)
    return entrants


def _value(config: AnyRun, field: str) -> object:
    value: object = config.model_dump(mode="json")
    for name in field.split("."):
        assert isinstance(value, dict)
        value = value[name]
    return value
