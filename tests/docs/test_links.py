"""Documents point at things that exist."""

import re

import pytest

from tests.docs import tree
from tests.skips import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", tree.documents(), ids=tree.name)
def test_every_link_of_a_document_leads_somewhere(document):
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        if not path.exists() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(path.read_text())):
            broken.append(link)
    assert not broken


def test_the_list_of_decisions_is_the_folder():
    folder = ROOT / "docs/adr"
    listed = {}
    for cells in tree.rows((folder / "README.md").read_text()):
        number, file = re.fullmatch(r"\[(\d{4})\]\((\S+)\)", cells[0]).groups()
        assert file.startswith(number)
        listed[file] = cells[1]
    pages = {path.name: path.read_text() for path in folder.glob("[0-9]*.md")}
    assert sorted(listed) == sorted(pages)
    for file, title in listed.items():
        assert pages[file].startswith(f"# {file[:4]}: {title}\n")


@pytest.mark.parametrize("page", sorted((ROOT / "docs/adr").glob("[0-9]*.md")), ids=tree.name)
def test_a_decision_states_its_status_context_consequences_and_alternatives(page):
    text = page.read_text()
    assert "\n**Status**: " in text
    for heading in ("Context", "Decision", "Consequences", "Alternatives"):
        assert tree.section(text, heading).strip()
