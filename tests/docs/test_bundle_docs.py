"""What docs/bundles.md says of a bundle's manifest is what the manifest has. Its files: tests/contract."""

import re

from api_schemas.manifest import BundleManifest
from tests.docs import tree
from tests.skips import ROOT


def test_every_field_of_the_manifest_is_documented_and_nothing_else():
    table = tree.rows(tree.section((ROOT / "docs/bundles.md").read_text(), "The manifest"))
    documented = [name for cells in table for name in re.findall(r"`([a-z0-9_]+)`", cells[0])]
    assert sorted(documented) == sorted(BundleManifest.model_fields)
