"""Settings: where they come from, in which order, and what is said of a wrong one."""

from pathlib import Path

import pytest

from service.settings import ServiceSettings, SettingsError, describe_settings, load_settings, unknown_variables


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("PRISMREC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path):
    file = tmp_path / "service.toml"
    file.write_text('store = "from-toml"\nport = 1\nhost = "toml"\n[http]\ndrain_s = 1\nkeep_alive_s = 7\n')
    return file


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_the_defaults(toml, monkeypatch):
    monkeypatch.setenv("PRISMREC_PORT", "2")
    monkeypatch.setenv("PRISMREC_HTTP__DRAIN_S", "2")
    monkeypatch.setenv("PRISMREC_WORKERS", "2")
    settings = load_settings(config_file=toml, workers=3, host=None)
    assert (settings.workers, settings.port, settings.host) == (3, 2, "toml")
    assert (settings.http.drain_s, settings.http.keep_alive_s, settings.http.max_body_bytes) == (2, 7, 4_194_304)
    assert settings.store == Path("from-toml")


def test_the_environment_may_name_the_file(toml, monkeypatch):
    monkeypatch.setenv("PRISMREC_CONFIG", str(toml))
    assert load_settings().port == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = 99999", "PRISMREC_PORT: Input should be less than"),
        ("[http]\ndrain = 1", "PRISMREC_HTTP__DRAIN: is no setting"),
        ("prot = 1", "PRISMREC_PROT: is no setting"),
        ("port = ", "service.toml: "),
        ('history = "mysql://x"', "PRISMREC_HISTORY: .*sqlite:PATH or redis"),
        ('history = "sqlite:"', "PRISMREC_HISTORY"),
        ('[log]\nlevel = "loud"', "PRISMREC_LOG__LEVEL"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(tmp_path, text, says):
    file = tmp_path / "service.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=says):
        load_settings(config_file=file, store=tmp_path)


def test_every_wrong_setting_has_a_line(monkeypatch):
    monkeypatch.setenv("PRISMREC_PORT", "many")
    monkeypatch.setenv("PRISMREC_HTTP__DRAIN_S", "-1")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert [line.partition(":")[0] for line in sorted(str(error.value).splitlines())] == [
        "PRISMREC_HTTP__DRAIN_S",
        "PRISMREC_PORT",
        "PRISMREC_STORE",
    ]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings(config_file=tmp_path / "none.toml")


def test_a_misspelled_variable_is_found(monkeypatch):
    monkeypatch.setenv("PRISMREC_PROT", "1")
    monkeypatch.setenv("PRISMREC_HTTP__DRAIN_S", "1")
    monkeypatch.setenv("PRISMREC_TEST_SHARED", "/x")
    assert unknown_variables() == ["PRISMREC_PROT"]


def test_a_password_in_the_address_of_the_store_is_not_shown(tmp_path):
    settings = load_settings(store=tmp_path, history="redis://:hunter2@host/0")
    assert "hunter2" not in repr(settings)
    assert settings.history_url == "redis://:hunter2@host/0"


def test_the_events_lie_in_the_store_folder_by_default(tmp_path):
    assert load_settings(store=tmp_path).history_url == f"sqlite:{tmp_path}/events.db"


def test_settings_survive_the_way_to_a_worker_whatever_its_environment(tmp_path, monkeypatch):
    settings = load_settings(store=tmp_path, history="redis://:hunter2@host/0", port=1)
    written = settings.model_dump_json()
    monkeypatch.setenv("PRISMREC_PORT", "2")
    monkeypatch.setenv("PRISMREC_HTTP__DRAIN_S", "99")
    assert ServiceSettings.model_validate_json(written).model_dump() == settings.model_dump()


def test_every_setting_can_be_described():
    rows = describe_settings()
    assert len({row.variable for row in rows}) == len(rows) > 20
    assert all(row.description for row in rows)
