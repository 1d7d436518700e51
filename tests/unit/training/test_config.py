"""Configurations: what is shipped loads, what is wrong is named, and TOML goes both ways."""

from pathlib import Path

import pytest

import training
from training.config import ConfigError, ContentRun, FactorRun, load_config, parse_config, to_toml, with_settings
from training.models import BaseConfig, DemureConfig

SHIPPED = sorted((Path(training.__file__).parent / "configs").glob("*.toml"))
BASE = '[model]\nkind = "base"\n'


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_bears_its_files_name(path):
    assert load_config(path).name == path.stem


def test_the_shipped_ones_are_there():
    assert {"demo", "ml1m-base", "ml1m-demure"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_resolved_configuration_is_toml_that_gives_the_same(path):
    config = load_config(path, ["optim.lr=1e-5", "optim.max_steps=7", "eval.cutoffs=[5, 20]"])
    assert parse_config(to_toml(config)) == config.model_copy(update={"search": {}})
    assert "beta2 = 0.99" in to_toml(config)


def test_overrides_are_values_of_toml_or_bare_words():
    config = parse_config(BASE, ["optim.lr=1e-3", "seed=4", "optim.schedule=cosine", 'name="x"', "eval.cutoffs=[20]"])
    assert (config.optim.lr, config.seed, config.optim.schedule, config.name) == (1e-3, 4, "cosine", "x")
    assert config.eval.cutoffs == (20,)


def test_an_override_can_make_a_table_and_change_the_family():
    config = parse_config(BASE, ["negatives.kind=sampled", "negatives.count=10", "model.kind=demure"])
    assert config.negatives.count == 10
    assert isinstance(config.model, DemureConfig)
    assert isinstance(parse_config(BASE).model, BaseConfig)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (BASE, ["optim.learning_rate=1"], r"optim.learning_rate: Extra inputs are not permitted"),
        (BASE, ["optim.lr=-1"], r"optim.lr: Input should be greater than 0"),
        (BASE, ["optim.lr=nan"], r"optim.lr"),
        (BASE, ["optim.lr=inf"], r"optim.lr: Input should be a finite number"),
        (BASE, ["optim.lr=fast"], r"optim.lr: Input should be a valid number"),
        (BASE, ["optim.lr"], r"--set optim.lr: expected key=value"),
        (BASE, ["name=x", "name.y=1"], r"name is a value, not a table"),
        (BASE, ["eval.monitor=recall@7"], r"monitor 'recall@7' is not measured"),
        (BASE, ["eval.monitor=speed@20"], r"eval.monitor"),
        (BASE, ["model.augment.views=2"], r"model.base.augment: Extra inputs are not permitted"),
        ('[model]\nkind = "demur"\n', [], r"'demure', 'base'"),
        ("", [], r"model: Field required"),
        ("model = [", [], r"is not TOML"),
    ],
)
def test_what_is_wrong_is_named(text, overrides, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(text, overrides)


def test_a_search_space_may_have_dotted_keys_with_and_without_quotes():
    text = '[model]\nkind = "mf_bpr"\n[search]\n"optim.lr" = [1e-3, 3e-3]\nmodel.negatives = [1, 4]\n'
    config = parse_config(text, ["search.optim.l2_tables=[0.0, 1e-2]"])
    assert config.search == {"optim.lr": (1e-3, 3e-3), "model.negatives": (1, 4), "optim.l2_tables": (0.0, 1e-2)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"optim.speed" = [1]', r"search.optim.speed = 1: optim.speed: Extra inputs are not permitted"),
        ('"optim.lr" = [1e-3, -1.0]', r"search.optim.lr = -1.0: optim.lr: Input should be greater than 0"),
        ('"optim.lr" = [1, 1.0]', r"search.optim.lr: has a value twice"),
        ('"optim.lr" = []', r"search.optim.lr: Tuple should have at least 1 item"),
        ('"optim.lr" = 1e-3', r"search.optim.lr: Input should be a valid tuple"),
        ('"optim.lr.x" = [1]', r"lr is a value, not a table"),
        ('"conditioning.kind" = ["raw", "whiten"]', r"search.conditioning.kind = \"whiten\": .*masks raw dimensions"),
        ('"seed" = [1, 2]', r"search.seed: is the same for all runs that are compared"),
        ('"split.kind" = ["users"]', r"search.split.kind: is the same"),
        ('"model.kind" = ["vbpr"]', r"search.model.kind: is the same"),
        ('"eval.monitor" = ["recall@50"]', r"search.eval.monitor: is the same"),
    ],
)
def test_a_searched_value_that_a_key_can_not_have_is_an_error_that_names_it(line, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(f'[model]\nkind = "invrl"\n[search]\n{line}\n')


def test_what_is_searched_is_no_part_of_what_a_run_does():
    plain = parse_config('[model]\nkind = "mf_bpr"\n')
    searched = parse_config('[model]\nkind = "mf_bpr"\n[search]\n"optim.lr" = [1.0]\n')
    assert to_toml(searched) == to_toml(plain)
    assert with_settings(searched, {"optim.lr": 1.0}).search == {}


def test_a_missing_file_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.toml: can not be read"):
        load_config(tmp_path / "absent.toml")


def test_every_field_says_what_it_is_unless_its_name_does():
    bare = {"kind", "model", "split", "pairs", "conditioning", "negatives", "optim", "eval", "export", "augment"}
    bare |= {
        "serving",
        "partition",
        "masking",
        "network",
        "batch_size",
        "lr",
        "beta1",
        "beta2",
        "eps",
        "cutoffs",
        "count",
    }
    seen: set[str] = set()

    def walk(schema):
        for name, field in schema.get("properties", {}).items():
            if "description" not in field:
                seen.add(name)

    for run in (ContentRun, FactorRun):
        document = run.model_json_schema()
        for schema in (document, *document["$defs"].values()):
            walk(schema)
    assert seen <= bare
