"""What a ranker costs: the recommender that retrieves a top 20 against one that retrieves 500 items and orders them.

The ranker has the encoders of the retriever and scores by a network of random weights over query, item and their
product (as NeuMF++ does): what is measured is time, and that does not depend on what was learned. Both are measured in
process, by turns, under callers that each wait for their answer. Prints a table; writes nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.rerank --items 100000 --seconds 3
    OMP_NUM_THREADS=1 python -m benchmarks.rerank --store STORE      a store whose current snapshot has a ranker
"""

import argparse
import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from api_schemas.manifest import RANKER_METHODS, BundleManifest, GraphSpec, TensorSpec
from benchmarks import machine, prepare, stages
from index.dataset import Dataset
from index.rebuild import rebuild
from index.store import ArtefactError, ArtifactStore
from service.runtime.servable import NUM_CANDIDATES, load_servable

HIDDEN = (128, 64)
ROUNDS = 3
CALLERS = (1, 8)


def ranked_store(num_items: int) -> Path:
    """Return a store whose current snapshot has a ranker, making it the first time."""
    folder = prepare.FOLDER / f"ranked-{num_items}"
    versions = ArtifactStore(folder)
    if versions.current() is None:
        shutil.rmtree(folder, ignore_errors=True)
        data: Dataset = prepare.dataset(num_items)
        retriever = prepare.publish(versions, data)
        rebuild(versions, bundle_version=retriever, dataset=data)
        rebuild(versions, bundle_version=retriever, ranker_version=publish_ranker(versions, retriever), dataset=data)
    return folder


def publish_ranker(versions: ArtifactStore, retriever: str) -> str:
    """Publish a ranker with the encoders of a retriever."""
    path, manifest = versions.open_bundle(retriever)
    random = np.random.default_rng(0)
    sizes = (manifest.dim, *HIDDEN)
    q, v, p = (_weights(random, sizes[0], sizes[1]) for _ in range(3))
    deeper, last = _weights(random, sizes[1], sizes[2]), _weights(random, sizes[2])
    graph = _network([q, v, p, deeper, last], manifest)
    with np.load(path / manifest.golden) as arrays:
        golden = {name: arrays[name] for name in arrays.files if not name.startswith("explainer/")}
    queries, candidates = golden["user_encoder/out/queries"][:, :1], golden["item_encoder/out/candidate"]
    hidden = np.maximum(queries @ q + candidates @ v + (queries * candidates) @ p, 0)
    golden |= {"ranker/in/queries": golden["user_encoder/out/queries"], "ranker/in/candidates": candidates}
    golden["ranker/out/scores"] = np.maximum(hidden @ deeper, 0) @ last
    with versions.stage("bundle", name="ranker") as stage:
        for name in ("item_encoder", "state_encoder", "user_encoder"):
            shutil.copy(path / manifest.graphs[name].file, stage.path)
        onnx.save(graph, stage.path / "ranker.onnx")
        np.savez(stage.path / manifest.golden, allow_pickle=False, **golden)
        graphs = {name: spec for name, spec in manifest.graphs.items() if name != "explainer"}
        changes = {
            "family": "benchmark-ranker",
            "scorer": "ranker",
            "graphs": {**graphs, "ranker": _spec(manifest)},
            "explanation_methods": list(RANKER_METHODS),
            "faithfulness": {},
            "golden_atol": 1e-4,
        }
        return stage.publish(manifest.model_copy(update=changes))


def _weights(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return np.asarray(random.standard_normal(shape) / np.sqrt(shape[0]), np.float32)


def _spec(manifest: BundleManifest) -> GraphSpec:
    shapes: dict[str, list[int | str]] = {
        "queries": ["batch", manifest.num_queries, manifest.dim],
        "candidates": ["candidates", manifest.dim],
        "scores": ["batch", "candidates"],
    }
    tensors = [TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()]
    return GraphSpec(file="ranker.onnx", inputs=tensors[:2], outputs=tensors[2:])


def _network(weights: list[NDArray[np.float32]], manifest: BundleManifest) -> onnx.ModelProto:
    """Return `relu(relu(q Wq + v Wv + (q * v) Wp) W) w`, of a user's first query, for every user and candidate."""
    names = ["to_q", "to_v", "to_p", "deeper", "last"]
    constants = [numpy_helper.from_array(array, name) for name, array in zip(names, weights, strict=True)]
    constants += [numpy_helper.from_array(np.array([number]), name) for name, number in (("zero", 0), ("one", 1))]
    steps = [
        ("Slice", ["queries", "zero", "one", "one"], "q"),
        ("Unsqueeze", ["candidates", "zero"], "v"),
        ("Mul", ["q", "v"], "product"),
        ("MatMul", ["q", "to_q"], "of_q"),
        ("MatMul", ["v", "to_v"], "of_v"),
        ("MatMul", ["product", "to_p"], "of_p"),
        ("Sum", ["of_q", "of_v", "of_p"], "first"),
        ("Relu", ["first"], "first_on"),
        ("MatMul", ["first_on", "deeper"], "second"),
        ("Relu", ["second"], "second_on"),
        ("MatMul", ["second_on", "last"], "scores"),
    ]
    spec = _spec(manifest)
    inputs, outputs = (
        [helper.make_tensor_value_info(one.name, TensorProto.FLOAT, one.shape) for one in tensors]
        for tensors in (spec.inputs, spec.outputs)
    )
    nodes = [helper.make_node(op, given, [made]) for op, given, made in steps]
    graph = helper.make_graph(nodes, "ranker", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def plain_of(versions: ArtifactStore, ranked: str) -> str:
    """Return a snapshot of the same retriever without a ranker."""
    retriever = versions.open_snapshot(ranked)[1].bundle_version
    for entry in reversed(versions.list()):
        if entry.bundle_versions == (retriever,):
            return entry.version
    raise ArtefactError(versions.root, f"has no snapshot of {retriever} without a ranker to compare with")


def measure(folder: Path, *, num_candidates: int, seconds: float) -> list[dict[str, Any]]:
    """Return the median of several rounds of each way and number of callers, and how much slower ranking is."""
    versions = ArtifactStore(folder)
    ranked = versions.current()
    if ranked is None or versions.open_snapshot(ranked)[1].ranker is None:
        raise ArtefactError(folder, "the current snapshot has no ranker")
    plain, dear = (
        load_servable(versions, version, num_candidates=num_candidates)
        for version in (plain_of(versions, ranked), ranked)
    )
    histories = stages.Histories(plain)
    lines: list[dict[str, Any]] = []
    for callers in CALLERS:
        rounds: dict[str, list[dict[str, Any]]] = {"retrieve": [], "retrieve and re-rank": []}
        for _ in range(ROUNDS):  # by turns, so that a busy moment of the machine meets both
            for name, servable in zip(rounds, (plain, dear), strict=True):
                work = stages.load_line(servable, histories, callers=callers, seconds=seconds / ROUNDS)
                rounds[name].append(asyncio.run(work))
        middle = {
            name: {
                key: float(np.median([one[key] for one in found])) for key in ("p50_us", "p90_us", "p99_us", "cpu_us")
            }
            for name, found in rounds.items()
        }
        lines += [{"way": name, "callers": callers, **figures} for name, figures in middle.items()]
        ratio = {key: dear_us / middle["retrieve"][key] for key, dear_us in middle["retrieve and re-rank"].items()}
        lines.append({"way": "ratio", "callers": callers, **ratio})
    for servable in (plain, dear):
        servable.release()
    return lines


def main() -> None:
    """Measure one catalogue and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--store", type=Path, help="measure this one instead of what `--items` makes")
    parser.add_argument("--candidates", type=int, default=NUM_CANDIDATES)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line of the table")
    arguments = parser.parse_args()
    folder = arguments.store or ranked_store(arguments.items)
    lines = measure(folder, num_candidates=arguments.candidates, seconds=arguments.seconds)
    print(machine.table(machine.describe()))
    print(f"\n{arguments.candidates} candidates\n")
    print("| way | callers | p50 us | p90 us | p99 us | CPU us |\n|---|---|---|---|---|---|")
    for line in lines:
        digits = 2 if line["way"] == "ratio" else 0
        figures = " | ".join(f"{line[key]:.{digits}f}" for key in ("p50_us", "p90_us", "p99_us", "cpu_us"))
        print(f"| {line['way']} | {line['callers']} | {figures} |")


if __name__ == "__main__":
    main()
