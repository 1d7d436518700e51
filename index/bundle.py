"""Bundle: a training run's graphs, loaded and ready to run. Its files are verified by the store before.

`golden.npz` holds inputs and outputs of each graph, made by the exporter from the model itself: arrays are named
`<graph>/in/<tensor>` and `<graph>/out/<tensor>`, such as `user_encoder/in/history`. Replaying them at load is warm-up
and parity check in one.

Legend of shapes: `B` batch, `L` history length, `M` modalities, `P` parts of an item (the modalities, then what the
model adds, such as a learned id), `D` vector width, `H` history width, `S` state width, `Q` query vectors a user, `K`
candidates.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from api_schemas.manifest import BundleManifest, GraphName
from index.artefacts import MANIFEST, ArtefactError, read_document
from index.features import Ages, Mask, ModelInputs, Vectors
from index.ranking import over_queries
from index.signatures import check_signature, contract_of

EXPLAINER_OUTPUTS = (
    "scores",
    "item_interest",
    "modality_interest",
    "item_grad_x_input",
    "modality_grad_x_input",
    "contributions",
    "queries",
)

_PAIRS_AT_ONCE = 65_536
"""Of a user and an item in one call of a ranker, which may make a wide vector of each: bounds the memory."""

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
_SHRINKING = ort.RunOptions()
_SHRINKING.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
"""For what is run once: the memory that it needed goes back."""

_RUN_ERRORS: tuple[type[Exception], ...] = (*_ORT_ERRORS, ValueError)


@dataclass(frozen=True, slots=True)
class EncodedItems:
    """What the item encoder makes of a batch of items."""

    candidates: Vectors
    """`[B, D]`: what `Bundle.score` reads of an item."""
    history: Vectors
    """`[B, H]`: what the user encoder reads. The same array as `candidates` where the manifest says they are one."""
    states: Vectors
    """`[B, P, S]`: by part; zero where it is absent is not promised, `presence` says what counts."""
    presence: Mask
    """`[B, P]`: a modality is present when the item has it; what the model adds, when the item has any modality."""


@dataclass(frozen=True, slots=True)
class EncodedStates:
    """What the state encoder makes of items whose states are known."""

    candidates: Vectors
    """`[B, D]`."""
    history: Vectors
    """`[B, H]`. The same array as `candidates` where the manifest says they are one."""


class Bundle:
    """The ONNX Runtime sessions of a model behind typed calls. Calls may come from several threads at once."""

    def __init__(
        self, path: Path, manifest: BundleManifest, *, sessions: Mapping[GraphName, ort.InferenceSession]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._sessions = sessions
        self._names = tuple(modality.name for modality in manifest.modalities)
        self._item_outputs = (
            ["candidate", "states"] if manifest.history_is_candidate else ["candidate", "states", "history"]
        )
        self._run_users = sessions["user_encoder"].run
        self._reads_ages = manifest.history_ages
        self._state_outputs = ["candidate"] if manifest.history_is_candidate else ["candidate", "history"]

    @classmethod
    def open(cls, path: Path, *, num_threads: int = 1) -> Self:
        """Load the graphs of a bundle whose files the store has verified.

        Args:
            path: The bundle's folder.
            num_threads: Threads that one call may use; they do not spin between calls.

        Raises:
            ArtefactError: The manifest or a graph can not be loaded, or a graph has another signature than the
                manifest and the graph contract say.
        """
        manifest = read_document(path / MANIFEST, BundleManifest)
        last = "ranker" if manifest.is_ranker else "explainer"
        missing = {"item_encoder", "state_encoder", "user_encoder", last} - manifest.graphs.keys()
        if missing:
            raise ArtefactError(path / MANIFEST, f"graphs: {min(missing)} is missing")
        sessions = {}
        for name, spec in manifest.graphs.items():
            session = _load(path / spec.file, num_threads=num_threads)
            check_signature(path / spec.file, session, spec, contract=contract_of(manifest, name))
            sessions[name] = session
        return cls(path, manifest, sessions=sessions)

    def encode_items(self, inputs: ModelInputs) -> EncodedItems:
        """Encode a batch of items by their modalities alone, of any size, also none.

        Items of a catalogue go through `index.item_encoder`, which knows those that the model was trained on.
        """
        manifest = self.manifest
        if len(inputs) == 0:
            candidates = np.zeros((0, manifest.dim), dtype=np.float32)
            history = candidates if manifest.history_is_candidate else np.zeros((0, manifest.history_dim), np.float32)
            states = np.zeros((0, len(manifest.part_names), manifest.state_dim), np.float32)
            return EncodedItems(candidates, history, states, self._part_presence(inputs.presence))
        feed: dict[str, NDArray[Any]] = dict(zip(self._names, inputs.features, strict=True))
        feed["presence"] = inputs.presence
        session = self._sessions["item_encoder"]
        candidates, states, *rest = session.run(self._item_outputs, feed)
        return EncodedItems(candidates, rest[0] if rest else candidates, states, self._part_presence(inputs.presence))

    def _part_presence(self, presence_BM: Mask) -> Mask:
        num_added = len(self.manifest.part_names) - presence_BM.shape[1]
        if num_added == 0:
            return presence_BM
        any_B1 = presence_BM.any(axis=1, keepdims=True)
        return np.concatenate([presence_BM, np.repeat(any_B1, num_added, axis=1)], axis=1)

    def encode_users(self, history_BLH: Vectors, mask_BL: Mask, ages_BL: Ages | None = None) -> Vectors:
        """Encode histories of exactly L places into query vectors `[B, Q, D]`.

        Args:
            history_BLH: Float32, C order; what lies in masked places does not matter, as long as it is finite.
            mask_BL: True where there is an item. A history without any gives the model's default vector.
            ages_BL: Seconds from each behaviour to the latest one of its history, which counts where the manifest says
                `history_ages`; None: all are of one time.
        """
        feed: dict[str, NDArray[Any]] = {"history": history_BLH, "mask": mask_BL}
        if self._reads_ages:
            feed["ages"] = _no_ages(mask_BL) if ages_BL is None else ages_BL
        queries: Vectors = self._run_users(["queries"], feed)[0]
        return queries

    def encode_states(self, states_BPS: Vectors, presence_BP: Mask) -> EncodedStates:
        """Encode items again from their states, say with a part switched off; of any number, also none.

        Args:
            states_BPS: As `encode_items` gives them; what lies where `presence_BP` is False does not matter.
            presence_BP: Which parts to use. An item without any gets zeros, and counts as no item in a history.
        """
        manifest = self.manifest
        if len(states_BPS) == 0:
            candidates = np.zeros((0, manifest.dim), dtype=np.float32)
            history = candidates if manifest.history_is_candidate else np.zeros((0, manifest.history_dim), np.float32)
            return EncodedStates(candidates, history)
        session = self._sessions["state_encoder"]
        candidates, *rest = session.run(self._state_outputs, {"states": states_BPS, "presence": presence_BP})
        return EncodedStates(candidates, rest[0] if rest else candidates)

    def score(self, queries_BQD: Vectors, candidates_KD: Vectors) -> Vectors:
        """Return every user's score of every candidate `[B, K]`; of any number of both, also none.

        Made of the inner products with the user's queries, or by the ranker's graph, as the manifest's `scorer` says.
        """
        scorer = self.manifest.scorer
        if scorer != "ranker":
            return over_queries(queries_BQD @ candidates_KD.T, axis=1, scorer=scorer)
        num_users, num_candidates = len(queries_BQD), len(candidates_KD)
        scores_BK = np.empty((num_users, num_candidates), dtype=np.float32)
        if num_users == 0:
            return scores_BK
        at_once = max(_PAIRS_AT_ONCE // num_users, 1)
        run = self._sessions["ranker"].run
        for start in range(0, num_candidates, at_once):
            some = slice(start, start + at_once)
            scores_BK[:, some] = run(["scores"], {"queries": queries_BQD, "candidates": candidates_KD[some]})[0]
        return scores_BK

    def explain(
        self,
        *,
        states: Vectors,
        presence: Mask,
        mask: Mask,
        candidate_states: Vectors,
        candidate_presence: Mask,
        ages: Ages | None = None,
        outputs: Sequence[str],
    ) -> dict[str, Vectors]:
        """Run the explainer for each of B histories with each of K candidates; a ranker has none.

        It costs the same whatever `outputs` are: ONNX Runtime's inference builds run the whole graph. What can do
        without gradients is cheaper through `encode_states` and `encode_users`.

        Args:
            states: States of the histories `[B, L, P, S]`.
            presence: `[B, L, P]`.
            mask: `[B, L]`.
            candidate_states: `[K, P, S]`, the same candidates for all histories.
            candidate_presence: `[K, P]`.
            ages: `[B, L]`, as `encode_users` takes them.
            outputs: Some of `EXPLAINER_OUTPUTS`.
        """
        feed: dict[str, NDArray[Any]] = {
            "states": states,
            "presence": presence,
            "mask": mask,
            "candidate_states": candidate_states,
            "candidate_presence": candidate_presence,
        }
        if self._reads_ages:
            feed["ages"] = _no_ages(mask) if ages is None else ages
        names = list(outputs)
        return dict(zip(names, self._sessions["explainer"].run(names, feed), strict=True))

    def check_golden(self) -> None:
        """Replay `golden.npz` through all graphs: the warm-up, which is the parity check.

        Raises:
            ArtefactError: The file is not what the exporter writes, or an output differs by more than `golden_atol`.
        """
        path = self.path / self.manifest.golden
        for name in self.manifest.graphs:
            given = _golden(path, f"{name}/in/")
            expected = _golden(path, f"{name}/out/")
            if not given or not expected:
                raise ArtefactError(path, f"has no case for {name}")
            try:
                values = self._sessions[name].run(list(expected), given, _SHRINKING)
            except _RUN_ERRORS as error:
                raise ArtefactError(path, f"{name} does not run on it: {_one_line(error)}") from error
            for tensor, value in zip(expected, values, strict=True):
                _compare(path, f"{name}/out/{tensor}", value, expected[tensor], atol=self.manifest.golden_atol)


def _no_ages(mask_BL: Mask) -> Ages:
    return np.zeros(mask_BL.shape, dtype=np.float32)


def _load(path: Path, *, num_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning threads burn the cores that other requests need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise ArtefactError(path, f"is not a graph that can be loaded: {_one_line(error)}") from error


def _golden(path: Path, prefix: str) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ArtefactError(path, f"can not be read: {_one_line(error)}") from error


def _compare(path: Path, name: str, value: NDArray[Any], expected: NDArray[Any], *, atol: float) -> None:
    if value.shape != expected.shape:
        raise ArtefactError(path, f"{name}: the graph gives shape {value.shape}, expected {expected.shape}")
    if value.size == 0:
        return
    # Rounding grows with the numbers: what is allowed is a share of the tensor's largest value.
    allowed = atol * max(1.0, float(np.abs(expected).max()))
    largest = float(np.max(np.abs(value.astype(np.float64) - expected)))
    if not largest <= allowed:  # written so that NaN does not pass
        raise ArtefactError(path, f"{name}: differs from the model by {largest:.3g}, allowed is {allowed:.3g}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
