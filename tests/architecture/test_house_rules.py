"""Rules of this code base that the linters cannot see."""

import ast
import re

import pytest

from tests.docs import tree
from tests.skips import ROOT

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
MOST_LINES = 400


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.split(".")[0]}
    return set()


def _unsafe(node: ast.AST) -> bool:
    if _imported(node) & UNSAFE_MODULES:
        return True
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in {"torch.load", "torch.save", "torch.jit.load"}
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "print"}


def test_no_module_unpickles_evaluates_or_prints():
    found = {
        tree.name(module): [ast.unparse(node) for node in ast.walk(ast.parse(module.read_text())) if _unsafe(node)]
        for module in tree.modules()
    }
    assert len(found) > 50
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "print(x)",
    ],
)
def test_the_rule_sees_what_it_forbids(source):
    assert any(_unsafe(node) for node in ast.walk(ast.parse(source)))


def test_every_module_can_be_read_in_one_sitting():
    lengths = {tree.name(module): len(module.read_text().splitlines()) for module in tree.modules()}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_every_module_says_what_it_holds():
    silent = []
    for module in tree.modules():
        source = module.read_text()
        if source.strip() and not ast.get_docstring(ast.parse(source)):
            silent.append(tree.name(module))
    assert not silent


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [tree.name(module) for module in tree.modules() if module.stem in empty]


# Each has a class of one letter, so that this file does not find itself.
FOREIGN = {
    "a path of one machine": r"(?<![\w.\-:])/(?:wor[k]|roo[t]|h[o]me/\w+|User[s])/",
    "a number of a tracker outside this repository": r"(?i)(?<!faiss )(?<!onnxruntime )(?<!torch )\bissu[e] #?\d+\b",
    "a page that is not part of this repository": r"\b(?:d[e]sign|convention[s]|method[s]|ap[i])\.md\b",
    "unfinished work": r"\b(?:TOD[O]|FIXM[E]|XX[X])\b",
}
IMAGE_PATHS = {"Dockerfile"}  # paths inside an image


@pytest.mark.parametrize("what", FOREIGN)
def test_the_tree_speaks_of_nothing_that_a_reader_of_it_cannot_see(what):
    pattern = re.compile(FOREIGN[what])
    found = [
        f"{tree.name(path)}:{number}: {line.strip()[:100]}"
        for path in tree.texts()
        if path.name not in IMAGE_PATHS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_nothing_large_or_binary_is_committed():
    large = {tree.name(path): path.stat().st_size for path in tree.files() if path.stat().st_size > 500_000}
    binary = [
        tree.name(path) for path in tree.files() if path.suffix in {".npy", ".npz", ".onnx", ".parquet", ".faiss"}
    ]
    assert not large
    assert not binary


def test_the_root_holds_what_a_newcomer_looks_for():
    for name in (
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "Dockerfile",
    ):
        assert (ROOT / name).is_file(), name
