"""Titles and descriptions from templates: a topic fixes the vocabulary, chance the words and the sentence.

Words that carry no topic (adjectives, frames of sentences) are shared by all topics, as in real texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_UNIFORMS = 16
"""Uniform numbers that one text may use."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What the texts of one topic are about."""

    name: str
    things: tuple[str, ...]
    places: tuple[str, ...]
    doings: tuple[str, ...]


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split(", "))


TOPICS: tuple[Topic, ...] = (
    Topic(
        "sailing",
        _listed("Lighthouse, Schooner, Anchor, Compass, Harbour Bell, Trawler, Rigging, Seagull, Buoy, Mast"),
        _listed("the Harbour, the Quay, the Open Sea, the Regatta, the Estuary, the Lagoon"),
        _listed("sailing out, hauling nets, tying knots, watching the tide"),
    ),
    Topic(
        "mountains",
        _listed("Summit, Glacier, Ridge, Alpine Hut, Marmot, Edelweiss, Cairn, Crevasse, Ice Axe, Avalanche"),
        _listed("the North Face, the High Pass, the Snowfield, the Base Camp, the Moraine, the Plateau"),
        _listed("climbing before dawn, roping up, skiing downhill, counting peaks"),
    ),
    Topic(
        "jazz",
        _listed(
            "Saxophone, Trumpet, Double Bass, Quartet, Piano Solo, Snare Drum, Ballad, Swing Band, Vinyl, Clarinet"
        ),
        _listed("the Basement Club, the Ballroom, the Late Session, the Bandstand, the Studio, the Jukebox"),
        _listed("improvising, counting in, tuning up, playing the blues"),
    ),
    Topic(
        "astronomy",
        _listed("Comet, Telescope, Nebula, Eclipse, Star Map, Meteor, Galaxy, Pulsar, Moonrise, Orbit"),
        _listed("the Observatory, the Milky Way, the Night Sky, the Planetarium, the Outer Planets, the Zodiac"),
        _listed("stargazing, charting constellations, grinding lenses, waiting for the equinox"),
    ),
    Topic(
        "garden",
        _listed("Foxglove, Watering Can, Greenhouse, Hedgehog, Rosebush, Bumblebee, Trellis, Lavender, Tulip, Compost"),
        _listed("the Orchard, the Kitchen Garden, the Flower Bed, the Potting Shed, the Lawn, the Hedge"),
        _listed("pruning, sowing seeds, picking berries, raking leaves"),
    ),
    Topic(
        "railway",
        _listed(
            "Locomotive, Signal Box, Sleeper Train, Porter, Dining Car, Whistle, Viaduct, Timetable, Railcar, Tunnel"
        ),
        _listed("Platform Nine, the Junction, the Branch Line, the Terminus, the Engine Shed, the Level Crossing"),
        _listed("changing trains, stoking coal, punching tickets, waving at the guard"),
    ),
    Topic(
        "bakery",
        _listed(
            "Sourdough, Croissant, Rolling Pin, Gingerbread, Baguette, Whisk, Cinnamon Bun, Teacake, Pretzel, Meringue"
        ),
        _listed("the Village Oven, the Pastry Counter, the Flour Mill, the Tea Room, the Cake Shop, the Pantry"),
        _listed("kneading dough, proving overnight, icing a cake, sifting flour"),
    ),
    Topic(
        "desert",
        _listed("Camel, Sand Dune, Oasis, Cactus, Caravan, Scorpion, Mirage, Date Palm, Canyon, Falcon"),
        _listed("the Salt Flats, the Dry Riverbed, the Souk, the Badlands, the Wadi, the Red Rocks"),
        _listed("crossing at noon, digging for water, riding at dusk, pitching a tent"),
    ),
)

_ADJECTIVES = _listed(
    "Quiet, Golden, Hidden, Wandering, Little, Grand, Forgotten, Bright, Sleepy, Curious, Old, Gentle, "
    "Secret, Patient, Merry, Lonely, Brave, Silver, Early, Last, Second, Northern, Painted, Restless"
)

_TITLES = (
    "The {adjective} {thing}",
    "{thing} by {place}",
    "{adjective} {thing} at {place}",
    "The {thing} and the {other}",
    "{a_adjective} {thing}",
    "{thing}, {other} and {third}",
    "From {place}",
    "The {adjective} {thing} of {place}",
)

_DESCRIPTIONS = (
    "{a_thing}, {a_other} and {a_third} near {place}. For everyone who loves {doing}.",
    "Somebody is {doing} near {place}, and {a_thing} is never far. Find the {other}!",
    "The {thing} meets the {other} at {place}, with {a_third} for company. Good for {doing}.",
    "{doing}: {place}, {a_thing}, and the {other} that everyone remembers.",
)


def write_text(topic: Topic, uniforms: NDArray[np.float64]) -> tuple[str, str]:
    """Write a title and a description.

    Args:
        topic: Fixes the vocabulary.
        uniforms: `[NUM_UNIFORMS]` in [0, 1): the same ones give the same text.
    """
    chance = iter(uniforms.tolist())

    def one_of(values: Sequence[str]) -> str:
        return values[int(next(chance) * len(values))]

    def three_things() -> tuple[str, str, str]:
        left = list(topic.things)
        thing, other, third = (left.pop(int(next(chance) * len(left))) for _ in range(3))
        return thing, other, third

    thing, other, third = three_things()
    adjective = one_of(_ADJECTIVES)
    title = one_of(_TITLES).format(
        adjective=adjective,
        a_adjective=_with_article(adjective),
        thing=thing,
        other=other,
        third=third,
        place=one_of(topic.places),
    )
    thing, other, third = (name.lower() for name in three_things())
    description = one_of(_DESCRIPTIONS).format(
        thing=thing,
        other=other,
        a_thing=_with_article(thing),
        a_other=_with_article(other),
        a_third=_with_article(third),
        place=one_of(topic.places),
        doing=one_of(topic.doings),
    )
    return _capitalised(title), f"{_capitalised(description)} From the {topic.name} series."


def _with_article(words: str) -> str:
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
