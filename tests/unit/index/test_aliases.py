"""Aliases: changed at once or not at all, under a condition, and what they name is not pruned."""

import pytest

from api_schemas.aliases import MAX_EARLIER, AliasTarget
from index.aliases import AliasConflict, AliasStore, NoSuchAlias
from index.artefacts import ArtefactError
from index.store import ArtifactStore
from tests import toy
from tests.bundles import make_snapshot


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def snapshots(store, tmp_path) -> list[str]:
    data = toy.make_dataset(tmp_path / "data")
    return [make_snapshot(store, data, seed=seed, dim=8, history_length=5) for seed in range(3)]


def one(version: str) -> AliasTarget:
    return AliasTarget(index=version)


def half_and_half(versions: list[str]) -> AliasTarget:
    arms = [{"name": f"arm{number}", "index": version, "weight": 1} for number, version in enumerate(versions)]
    return AliasTarget.model_validate({"experiment": "colours", "arms": arms})


def test_an_alias_is_made_changed_rolled_back_and_removed(store, snapshots):
    aliases = AliasStore(store)
    with pytest.raises(NoSuchAlias):
        aliases.get("home")
    assert aliases.set("home", one(snapshots[0])).rollback_to is None
    changed = aliases.set("home", half_and_half(snapshots[:2]))
    assert changed.target.versions == tuple(snapshots[:2])
    assert changed.rollback_to == one(snapshots[0])
    assert AliasStore(store).get("home") == changed
    back = aliases.roll_back("home")
    assert (back.target, back.rollback_to) == (one(snapshots[0]), None)
    with pytest.raises(AliasConflict, match="no earlier"):
        aliases.roll_back("home")
    aliases.remove("home")
    assert aliases.scenarios() == []
    for change in (aliases.remove, aliases.roll_back):
        with pytest.raises(NoSuchAlias):
            change("home")


def test_setting_what_is_set_already_changes_nothing(store, snapshots):
    aliases = AliasStore(store)
    aliases.set("home", one(snapshots[0]))
    before = aliases.get("home")
    assert aliases.set("home", one(snapshots[0])) == before


def test_the_way_back_is_bounded(store, snapshots):
    aliases = AliasStore(store)
    for number in range(MAX_EARLIER + 3):
        aliases.set("home", one(snapshots[number % 2]))
    for _ in range(MAX_EARLIER):
        aliases.roll_back("home")
    with pytest.raises(AliasConflict):
        aliases.roll_back("home")


def test_the_default_alias_is_current(store, snapshots):
    aliases = AliasStore(store)
    store.set_current(snapshots[0])
    assert aliases.get("default").target == one(snapshots[0])
    state = aliases.set("default", one(snapshots[1]))
    assert store.current() == snapshots[1]
    assert state.rollback_to == one(snapshots[0])
    aliases.roll_back("default")
    assert store.current() == snapshots[0]
    with pytest.raises(AliasConflict, match="one version"):
        aliases.set("default", half_and_half(snapshots))
    with pytest.raises(AliasConflict):
        aliases.remove("default")


@pytest.mark.parametrize("scenario", ["default", "home"])
def test_a_change_under_a_condition_that_does_not_hold_changes_nothing(store, snapshots, scenario):
    aliases = AliasStore(store)
    before = aliases.set(scenario, one(snapshots[0]))
    stale = before.tag
    aliases.set(scenario, one(snapshots[1]))
    now = aliases.get(scenario)
    assert now.tag != stale
    with pytest.raises(AliasConflict):
        aliases.set(scenario, one(snapshots[2]), if_state=lambda state: state.tag == stale)
    with pytest.raises(AliasConflict):
        aliases.roll_back(scenario, if_state=lambda state: state.tag == stale)
    assert aliases.get(scenario) == now
    aliases.set(scenario, one(snapshots[2]), if_state=lambda state: state.tag == now.tag)


def test_a_version_that_is_not_whole_is_refused_and_the_alias_stays(store, snapshots):
    aliases = AliasStore(store)
    before = aliases.set("home", one(snapshots[0]))
    (store.path_of(snapshots[1]) / "candidates.npy").write_bytes(b"cut")
    for target in (one(snapshots[1]), half_and_half(snapshots), one("snapshot-20200101t000000z-000000")):
        with pytest.raises(ArtefactError):
            aliases.set("home", target)
    assert aliases.get("home") == before


def test_aliases_name_a_bounded_number_of_versions(store, snapshots):
    aliases = AliasStore(store, max_versions=2)
    aliases.set("home", half_and_half(snapshots[:2]))
    aliases.set("cart", one(snapshots[0]))
    with pytest.raises(AliasConflict, match="2 at most"):
        aliases.set("cart", one(snapshots[2]))


def test_what_aliases_name_and_would_name_after_a_rollback_is_not_pruned(store, snapshots):
    aliases = AliasStore(store)
    aliases.set("home", one(snapshots[0]))
    aliases.set("home", one(snapshots[1]))
    assert [entry.aliases for entry in store.list() if entry.kind == "snapshot"] == [(), ("home",), ("default",)]
    assert store.prune(keep=0) == ()
    aliases.remove("home")
    assert store.prune(keep=0)[0] == snapshots[0]


def test_an_alias_that_can_not_be_read_keeps_everything_from_being_pruned(store, snapshots):
    AliasStore(store).set("home", one(snapshots[0]))
    (store.root / "aliases" / "home.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"home\.json"):
        store.prune(keep=0)
    with pytest.raises(ArtefactError):
        AliasStore(store).all()
    assert len([entry for entry in store.list() if entry.kind == "snapshot"]) == 3


@pytest.mark.parametrize("name", ["../CURRENT", "a/b", ".tmp-x", "", "Home", "x" * 65])
def test_a_name_is_never_a_path(store, snapshots, name):
    with pytest.raises(NoSuchAlias):
        AliasStore(store).get(name)
    with pytest.raises(NoSuchAlias):
        AliasStore(store).remove(name)
    with pytest.raises(ValueError, match="scenario"):
        AliasStore(store).set(name, one(snapshots[0]))
