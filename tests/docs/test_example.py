"""The example that the README shows rests on the demo's data."""

import json
import re

from index.dataset import Dataset
from tests.skips import ROOT
from training.data.generator import GeneratorConfig, make_dataset

REQUEST = json.loads((ROOT / "docs/example-request.json").read_text())


def test_the_example_asks_for_things_of_one_text_and_five_categories(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    num_items = int(re.search(r"^DEMO_ITEMS \?= (\d+)$", makefile, re.MULTILINE)[1])
    path = tmp_path / "data"
    make_dataset(path, GeneratorConfig(num_users=20, num_items=num_items, seed=0))
    items = {item["item_id"]: item for item in Dataset.open(path).items().to_pylist()}
    clicked = [items[entry["item_id"]] for entry in REQUEST["history"]]
    assert all(item["description"].endswith("From the railway series.") for item in clicked)
    assert len({item["categories"][0] for item in clicked}) == len(clicked)


def test_the_readme_shows_the_command_that_the_demo_prints():
    makefile = (ROOT / "Makefile").read_text()
    command = re.search(r"^EXAMPLE := (.*)$", makefile, re.MULTILINE)[1].replace("$(PORT)", "8000")
    assert command in (ROOT / "README.md").read_text()
