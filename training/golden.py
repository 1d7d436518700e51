"""Golden numbers of a bundle: inputs that reach every corner of the graphs, and what the model itself makes of them.

They are replayed whenever the bundle is loaded, so a graph, a runtime or a machine that computes something else is
found before it serves. Values are written to `golden.npz` as `<graph>/in/<tensor>` and `<graph>/out/<tensor>`.

Legend: `B` batch, `L` history length, `M` modalities, `P` parts of an item (the modalities first), `D_m` raw width, `S`
state width, `D` vector width, `H` history row, `K` candidates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from api_schemas.manifest import GraphName
from index.features import ModelInputs
from training.export import Graph
from training.models import ServableModel

TOLERANCE = 5e-5
"""Largest difference allowed between torch and the exported graph, as a share of the tensor's largest value.

Both compute in float32 (unit roundoff 6e-8) and differ only in the order of sums. A sum of n terms is off by at most
n x 6e-8 of the sum of their sizes and by about sqrt(n) x 6e-8 as a rule; sums here have a few hundred terms and there
are six or so in a row, which makes 1e-6. Measured: 2e-7 to 2e-6 as a rule; 2.1e-5, with AVX-512, of gradients where an
attention is all but decided. A wrong weight, mask or axis shows at 1e-2.
"""

_FLOOR = 1e-6
"""For tensors whose values are all tiny: differences below this are rounding of the numbers they came from."""

_OLDEST_S = 10 * 365 * 86_400

_SEED = 20_240_501

Array = NDArray[Any]
Golden = dict[str, Array]


class ParityError(RuntimeError):
    """An exported graph does not compute what the model computes."""


def golden_inputs(
    model: ServableModel, graphs: Mapping[GraphName, Graph], items: ModelInputs
) -> dict[GraphName, dict[str, Array]]:
    """Return inputs for each graph: items complete, without each modality in turn, without any; 0, 1 and L past items.

    Raw vectors are those of real items: noise lies where no item does, and a model that was trained on conditioned
    vectors answers it with numbers so large that the rounding of their differences hides what is looked for. States
    and history rows are the model's own. What lies in absent modalities and in padding is not zero on purpose: it
    must change nothing.

    Args:
        model: The model whose graphs these are.
        graphs: All of its graphs.
        items: At least one item of the catalogue; they are repeated as often as needed.
    """
    rng = np.random.default_rng(_SEED)
    num_modalities, num_parts, length = len(model.modalities), len(model.part_names), model.history_length
    presence_BM = np.concatenate([np.ones((2, num_modalities), bool), ~np.eye(num_modalities, dtype=bool)])
    presence_BM = np.concatenate([presence_BM, np.zeros((1, num_modalities), bool)])
    encoded = {**_raw(model, items, len(presence_BM)), "presence": presence_BM}

    pool_size = max(length, num_parts + 3)
    raw_pool = _raw(model, items, pool_size)
    everything = np.ones((pool_size, num_modalities), dtype=np.bool_)
    pool = graphs["item_encoder"]({**raw_pool, "presence": everything})
    parts_BP = np.concatenate([np.ones((2, num_parts), bool), ~np.eye(num_parts, dtype=bool)])
    parts_BP = np.concatenate([parts_BP, np.zeros((1, num_parts), bool)])
    states_BPS = pool["states"][: len(parts_BP)]

    lengths_B = np.array([0, 1, length, (length + 1) // 2])
    rows_BL = np.stack([rng.permutation(pool_size)[:length] for _ in lengths_B])
    mask_BL = np.arange(length) < lengths_B[:, None]
    history_BLH = pool["history"][rows_BL]
    history_BLH[-1, 0] = 0.0  # an item without any modality
    presence_BLP = np.ones((*mask_BL.shape, num_parts), dtype=np.bool_)
    for column in range(num_parts):
        presence_BLP[-1, column % length, column] = False
    presence_BLP[-1, 0] = False
    ages = {"ages": _ages(rng, mask_BL)} if model.reads_ages else {}
    inputs: dict[GraphName, dict[str, Array]] = {
        "item_encoder": encoded,
        "state_encoder": {"states": states_BPS, "presence": parts_BP},
        "user_encoder": {"history": history_BLH, "mask": mask_BL, **ages},
    }
    if "ranker" in graphs:
        queries_BQD = graphs["user_encoder"](inputs["user_encoder"])["queries"]
        candidates_KD = graphs["state_encoder"](inputs["state_encoder"])["candidate"][1:]
        return {**inputs, "ranker": {"queries": queries_BQD, "candidates": candidates_KD}}
    explained = {
        "states": pool["states"][rows_BL],
        "presence": presence_BLP,
        "mask": mask_BL,
        "candidate_states": states_BPS[1:],
        "candidate_presence": parts_BP[1:],
        **ages,
    }
    return {**inputs, "explainer": explained}


def make_golden(model: ServableModel, graphs: Mapping[GraphName, Graph], items: ModelInputs) -> Golden:
    """Return inputs and the model's outputs for all graphs, by `<graph>/in/<tensor>` and `<graph>/out/<tensor>`.

    `items` are some of the catalogue; see `golden_inputs`.
    """
    golden: Golden = {}
    for name, inputs in golden_inputs(model, graphs, items).items():
        golden |= {f"{name}/in/{tensor}": np.ascontiguousarray(value) for tensor, value in inputs.items()}
        golden |= {f"{name}/out/{tensor}": value for tensor, value in graphs[name](inputs).items()}
    return golden


def check_parity(folder: Path, graphs: Mapping[GraphName, Graph], golden: Golden) -> None:
    """Run the exported files on golden inputs and compare.

    Raises:
        ParityError: An output is not finite, or is further from the model's than `TOLERANCE` allows.
    """
    for name, graph in graphs.items():
        session = ort.InferenceSession(str(folder / graph.file), providers=["CPUExecutionProvider"])
        feed = {tensor: golden[f"{name}/in/{tensor}"] for tensor in graph.inputs}
        for tensor, value in zip(graph.outputs, session.run(list(graph.outputs), feed), strict=True):
            expected = golden[f"{name}/out/{tensor}"]
            largest = float(np.abs(expected).max(initial=0.0))
            difference = float(np.abs(value - expected).max(initial=0.0))
            if not difference <= max(TOLERANCE * largest, _FLOOR):  # written so that NaN does not pass
                raise ParityError(
                    f"{graph.file}: {tensor} differs from the model by {difference:.3g} "
                    f"(largest value {largest:.3g}, allowed {TOLERANCE:g} of it)"
                )


def _ages(rng: np.random.Generator, mask_BL: NDArray[np.bool_]) -> Array:
    """Return ages in seconds `[B, L]`, from ten years to none in each history, and something in the padding, too."""
    ages_BL = np.sort(10 ** rng.uniform(0, np.log10(_OLDEST_S), mask_BL.shape), axis=1)[:, ::-1]
    latest_B = mask_BL.sum(axis=1) - 1
    return (ages_BL - ages_BL[np.arange(len(ages_BL)), latest_B, None]).astype(np.float32)


def _raw(model: ServableModel, items: ModelInputs, num_items: int) -> dict[str, Array]:
    rows_B = np.arange(num_items) % len(items.presence)
    return {
        modality.name: vectors_BD[rows_B] for modality, vectors_BD in zip(model.modalities, items.features, strict=True)
    }
