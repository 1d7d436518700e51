"""What the documents say of the service is what the service does."""

import json
import re

from service.cli import app as cli
from service.main import create_app
from service.observability.metrics import Metrics
from service.recommend import answer, recommender
from service.settings import describe_settings, load_settings
from tests.skips import ROOT


def test_every_metric_is_documented_and_nothing_else():
    documented = re.findall(
        r"^\| `(prismrec_[a-z_]+)` \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in documented] == list(Metrics().names())


def test_metric_names_end_in_their_unit():
    units = (
        "_total",
        "_seconds",
        "_bytes",
        "_requests",
        "_versions",
        "_slates",
        "_answers",
        "_in_flight",
        "_up",
        "_items",
    )
    assert [name for name in Metrics().names() if not name.endswith(units)] == []


def test_the_openapi_document_in_the_repository_is_the_one_that_is_served(tmp_path, monkeypatch):
    monkeypatch.delenv("PRISMREC_CONFIG", raising=False)
    served = create_app(load_settings(store=tmp_path)).openapi()
    written = json.loads((ROOT / "docs/openapi.json").read_text())
    assert written == served, "run: make docs (prismrec-serve openapi > docs/openapi.json)"


def test_every_setting_has_a_description():
    assert [row.variable for row in describe_settings() if not row.description.endswith((".", ";"))] == []


def test_every_reason_of_a_degraded_answer_is_documented_and_nothing_else():
    documented = re.findall(r"^\| `([a-z_]+)` \| ", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert set(documented) == {answer.MODEL_FAILED, *recommender.DEGRADED}


def test_the_command_line_is_there():
    assert {command.name for command in cli.registered_commands} >= {"new-key"}
