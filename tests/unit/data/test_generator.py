"""Generated data: what is planted is there, can be recovered, and depends on the seed alone."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index.dataset_validate import validate
from training.data.generator import GeneratorConfig, make_dataset
from training.data.generator.catalogue import MODALITIES, NUM_STYLES, make_catalogue
from training.data.generator.covers import COVER_STYLES, NUM_UNIFORMS, draw_cover
from training.data.generator.texts import NUM_UNIFORMS as TEXT_UNIFORMS
from training.data.generator.texts import TOPICS, write_text
from training.data.generator.users import DRIVEN_SHARE, MAX_EVENTS

CONFIG = GeneratorConfig(num_users=300, num_items=400, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("generated") / "data", CONFIG)


@pytest.fixture(scope="module")
def truth(dataset):
    return pq.read_table(dataset.path / "truth.parquet").to_pylist()


@pytest.fixture(scope="module")
def item_styles(dataset):
    return {row["item_id"]: row for row in pq.read_table(dataset.path / "truth_items.parquet").to_pylist()}


@pytest.fixture(scope="module")
def histories(dataset):
    table = dataset.interactions()
    histories = {}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        histories.setdefault(user, []).append(item)
    return histories


def test_it_is_a_valid_dataset_of_the_size_asked_for(dataset):
    assert validate(dataset.path) == []
    manifest = dataset.manifest
    assert (manifest.num_users, manifest.num_items) == (300, 400)
    assert dataset.modality_names == MODALITIES


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    small = {"num_users": 40, "num_items": 32}
    prints = [
        make_dataset(tmp_path / name, GeneratorConfig(seed=seed, **small)).fingerprint()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert prints[0] == prints[1] != prints[2]
    for file in ("truth.parquet", "truth_items.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_more_users_do_not_change_the_items():
    one, other = (make_catalogue(num_items=100, seed=5, missing_share=0.1) for _ in range(2))
    for name in MODALITIES:
        np.testing.assert_array_equal(one.styles[name], other.styles[name])


def test_styles_are_equally_frequent_and_independent_across_modalities():
    catalogue = make_catalogue(num_items=8000, seed=0, missing_share=0.0)
    for name in MODALITIES:
        assert np.bincount(catalogue.styles[name]).tolist() == [1000] * NUM_STYLES
    for first, second in (("visual", "text"), ("visual", "category"), ("text", "category")):
        joint = np.zeros((NUM_STYLES, NUM_STYLES))
        np.add.at(joint, (catalogue.styles[first], catalogue.styles[second]), 1)
        chi_square = ((joint - 125) ** 2 / 125).sum()  # 49 degrees of freedom: mean 49, deviation 10
        assert chi_square < 49 + 4 * 10


def test_some_items_lack_a_cover_and_others_a_text(dataset, item_styles):
    for name in ("visual", "text"):
        present = dataset.presence(name)
        assert 0 < (~present).sum() < 0.06 * 400
        lacking = [item_id for item_id, shown in zip(dataset.item_ids, present, strict=True) if not shown]
        assert all(item_styles[item_id][name] is None for item_id in lacking)
        assert not np.asarray(dataset.features(name))[~present].any()
    assert dataset.presence("category").all()


def test_modalities_drive_equally_many_users_by_one_or_two_styles(truth):
    drivers = [row["modality"] for row in truth]
    assert {name: drivers.count(name) for name in MODALITIES} == dict.fromkeys(MODALITIES, 100)
    assert {len(row["styles"]) for row in truth} == {1, 2}


def test_most_clicks_follow_the_driver_and_the_other_modalities_are_chance(truth, histories, item_styles):
    in_style, by_others = [], {name: np.zeros(NUM_STYLES) for name in MODALITIES}
    names = {name: sorted({row[name] for row in item_styles.values() if row[name]}) for name in MODALITIES}
    for row in truth:
        for item in histories[row["user_id"]]:
            in_style.append(item_styles[item][row["modality"]] in row["styles"])
            for name in MODALITIES:
                style = item_styles[item][name]
                if name != row["modality"] and style is not None:
                    by_others[name][names[name].index(style)] += 1
    # A little more than the driven share, since some of the other clicks fall into a liked style by chance.
    assert DRIVEN_SHARE - 0.03 < np.mean(in_style) < DRIVEN_SHARE + 0.06
    for counts in by_others.values():
        shares = counts / counts.sum()
        assert shares.max() < 2 / NUM_STYLES


def test_the_driver_can_be_read_off_the_features_alone(dataset, truth, histories):
    """A user's items are more alike in the driving modality than chance makes them, and only there."""
    rows = {item_id: row for row, item_id in enumerate(dataset.item_ids)}
    chance, spread, features = {}, {}, {}
    rng = np.random.default_rng(0)
    for name in MODALITIES:
        features[name] = np.asarray(dataset.features(name), dtype=np.float32)
        sample = [_coherence(features[name][rng.choice(400, 15, replace=False)]) for _ in range(200)]
        chance[name], spread[name] = np.mean(sample), np.std(sample)
    found = []
    for row in truth:
        history = [rows[item] for item in histories[row["user_id"]]]
        z = {name: (_coherence(features[name][history]) - chance[name]) / spread[name] for name in MODALITIES}
        found.append(max(z, key=z.__getitem__) == row["modality"])
    assert np.mean(found) > 0.97


def _coherence(rows_LD):
    mean = rows_LD.mean(axis=0)
    return float(mean @ mean)


def test_styles_can_be_told_apart_in_every_modality(dataset, item_styles):
    for name in MODALITIES:
        present = dataset.presence(name)
        features = np.asarray(dataset.features(name), dtype=np.float32)[present]
        styles = np.array([item_styles[item_id][name] for item_id in np.array(dataset.item_ids)[present]])
        cosines = features @ features.T
        np.fill_diagonal(cosines, -1)
        assert (styles[cosines.argmax(axis=1)] == styles).mean() > 0.99


def test_histories_are_in_time_order_without_repeats_and_leave_something_to_recommend(dataset, truth, histories):
    assert all(len(set(items)) == len(items) for items in histories.values())
    lengths = [len(items) for items in histories.values()]
    assert min(lengths) >= 10
    assert max(lengths) <= MAX_EVENTS
    times = dataset.interactions()["timestamp"].to_numpy()
    assert times.min() > 1_700_000_000
    assert times.max() < 1_900_000_000


def test_popular_items_are_popular_and_popularity_is_no_style(dataset, histories, item_styles):
    clicks = dict.fromkeys(dataset.item_ids, 0)
    for items in histories.values():
        for item in items:
            clicks[item] += 1
    counts = np.array(sorted(clicks.values(), reverse=True))
    assert counts[:40].sum() > 1.5 * 0.1 * counts.sum()
    most = sorted(clicks, key=clicks.__getitem__, reverse=True)[:40]
    for name in MODALITIES:
        assert len({item_styles[item][name] for item in most} - {None}) == NUM_STYLES


def test_titles_read_well_and_items_have_attributes_to_filter_by(dataset):
    items = dataset.items()
    assert {"brand": pa.string(), "price": pa.float64(), "year": pa.int64(), "available": pa.bool_()} == {
        field.name: field.type for field in items.schema if field.name in ("brand", "price", "year", "available")
    }
    titles = items["title"].to_pylist()
    assert all(5 <= len(title) <= 80 and title[0].isupper() for title in titles)
    assert len(set(titles)) > 0.8 * len(titles)
    assert all(len(names) == 2 for names in items["categories"].to_pylist())
    assert items["image_url"].null_count == items.num_rows


def test_no_text_has_a_wrong_article():
    rng = np.random.default_rng(0)
    words = " ".join(" ".join(write_text(topic, rng.random(TEXT_UNIFORMS))) for topic in TOPICS for _ in range(200))
    pairs = zip(words.split(), words.split()[1:], strict=False)
    wrong = {(article, word) for article, word in pairs if _wrong(article.lower(), word.lower())}
    assert not wrong


def _wrong(article, word):
    return (article == "a" and word[0] in "aeiou") or (article == "an" and word[0] not in "aeiou")


@pytest.mark.parametrize("style", COVER_STYLES, ids=lambda style: style.name)
def test_a_cover_is_the_same_picture_in_every_size(style):
    uniforms = np.random.default_rng(0).random(NUM_UNIFORMS)
    small, large = (draw_cover(style, uniforms, side=side) for side in (64, 256))
    assert small.tobytes() == draw_cover(style, uniforms, side=64).tobytes()
    assert small.tobytes() != draw_cover(style, uniforms[::-1], side=64).tobytes()
    shrunk = np.asarray(large.resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    assert np.abs(shrunk - np.asarray(small)).mean() < 16


def test_covers_are_kept_where_asked_for_and_addressed(tmp_path):
    config = GeneratorConfig(num_users=5, num_items=40, covers_side=48, missing_share=0.2)
    dataset = make_dataset(tmp_path / "data", config)
    for address, shown in zip(dataset.items()["image_url"].to_pylist(), dataset.presence("visual"), strict=True):
        assert (address is not None) == shown
        if shown:
            with Image.open(dataset.path / address) as picture:
                assert picture.size == (48, 48)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_users": 0},
        {"num_items": 3},
        {"seed": -1},
        {"missing_share": 0.5},
        {"missing_share": float("nan")},
        {"covers_side": 2},
    ],
)
def test_a_number_out_of_range_is_named_and_leaves_nothing(tmp_path, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is "):
        make_dataset(tmp_path / "data", GeneratorConfig(**wrong))
    assert list(tmp_path.iterdir()) == []
