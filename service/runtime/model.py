"""LoadedModel: one bundle and what it has made of a catalogue, behind the protocol of the core.

Here the core's world (rows, plain arrays) meets ONNX Runtime.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from api_schemas.manifest import BundleManifest
from index.bundle import Bundle
from index.bundle import EncodedItems as EncodedCatalogue
from index.decompose import decompose
from index.explain import ExplanationArrays, explain, history_with, modality_shares
from index.features import ModelInputs, prepare
from index.item_encoder import ItemEncoder
from index.item_tables import ItemTables
from index.known import KnownTable
from service.recommend.servable import Ages, Attribution, EncodedItems, Mask, Rows
from service.recommend.types import Method, ModalityCard, ModelCard, ServedVersion, Vectors


class LoadedModel:
    """A bundle and its tables of the items."""

    def __init__(
        self, bundle: Bundle, tables: ItemTables, *, version: ServedVersion, known_users: KnownTable | None = None
    ) -> None:
        """Put a bundle and tables that fit together behind the core's protocol.

        Args:
            bundle: Its golden cases have been replayed.
            tables: Made with this bundle.
            version: How the model is named.
            known_users: The bundle's learned users, if it has any.
        """
        self._bundle = bundle
        self._known_users = known_users
        self._item_encoder: ItemEncoder | None = None
        manifest = bundle.manifest
        self.modalities: Mapping[str, int] = {modality.name: modality.dim for modality in manifest.modalities}
        self.parts = manifest.part_names
        self.history_length = manifest.history_length
        self.reads_ages = manifest.history_ages
        self.methods: tuple[Method, ...] = tuple(manifest.explanation_methods)
        self.method_without_history: Method = "occlusion" if manifest.is_ranker else "decomposition"
        self.card = _card(manifest, version)
        self._faithfulness: Mapping[str, Mapping[str, float]] = {
            method: {name: float(value) for name, value in measured.model_dump(exclude_none=True).items()}
            for method, measured in manifest.faithfulness.items()
        }
        # Straight through, without a call in between: these are on the path of every request.
        self.candidates = tables.candidates
        self.history = tables.history
        self.states = tables.states
        self.presence = tables.presence
        self.encode_users = bundle.encode_users

    def faithfulness(self, method: Method) -> Mapping[str, float]:
        """Return what was measured for the method when the model was released; empty when nothing was."""
        return self._faithfulness.get(method, {})

    def encode_items(self, raw: Sequence[Mapping[str, Vectors]]) -> EncodedItems:
        """Encode items from raw vectors `[D_m]` by modality; a missing modality is one that the item has not."""
        encoded = self._bundle.encode_items(self._inputs(raw))
        return EncodedItems(history_BH=encoded.history, states_BMS=encoded.states, presence_BM=encoded.presence)

    def encode_catalogue(self, item_ids: Sequence[str], raw: Sequence[Mapping[str, Vectors]]) -> EncodedCatalogue:
        """Encode items as a rebuild would: what the model has learned of an item that it knows comes first."""
        if self._item_encoder is None:
            self._item_encoder = ItemEncoder(self._bundle)
        known_rows = self._item_encoder.known_rows(pa.chunked_array([pa.array(item_ids, pa.large_string())]))
        return self._item_encoder.encode(self._inputs(raw), known_rows)

    def score_vectors(self, queries_BQD: Vectors, candidates_KD: Vectors) -> Vectors:
        """Return every user's score of every candidate `[B, K]`."""
        scores_BK: Vectors = self._bundle.score(queries_BQD, candidates_KD)
        return scores_BK

    def _inputs(self, raw: Sequence[Mapping[str, Vectors]]) -> ModelInputs:
        arrays = {name: np.zeros((len(raw), width), dtype=np.float32) for name, width in self.modalities.items()}
        for place, vectors in enumerate(raw):
            for name, vector in vectors.items():
                arrays[name][place] = vector
        return prepare(arrays, {}, self._bundle.manifest.modalities)

    def history_with(self, states_LMS: Vectors, presence_LM: Mask, *, allowed_M: Mask) -> Vectors:
        """Return the rows `[L, H]` of a history in which some parts alone are allowed, as `occlusion` makes them."""
        return history_with(self._bundle, states_LMS=states_LMS, presence_LM=presence_LM, allowed_M=allowed_M)

    def user_queries(self, user_id: str) -> Vectors | None:
        """Return the queries `[Q, D]` that the model has learned for a user; None for one that it does not know."""
        if self._known_users is None:
            return None
        row = self._known_users.row(user_id)
        return None if row < 0 else self._known_users.vectors[row]

    def attribute(
        self,
        method: Method,
        *,
        states_LMS: Vectors,
        presence_LM: Mask,
        candidate_states_KMS: Vectors,
        candidate_presence_KM: Mask,
        ages_L: Ages | None = None,
    ) -> Attribution:
        """Explain K candidates for one history."""
        arrays = explain(
            self._bundle,
            method=method,
            states_LMS=states_LMS,
            presence_LM=presence_LM,
            candidate_states_KMS=candidate_states_KMS,
            candidate_presence_KM=candidate_presence_KM,
            ages_L=ages_L,
        )
        return _attribution(arrays)

    def decompose(
        self, queries_QD: Vectors, *, candidate_states_KMS: Vectors, candidate_presence_KM: Mask
    ) -> Attribution:
        """Split the scores of K candidates for queries that `user_queries` gave, by part; there is no history."""
        arrays = decompose(
            self._bundle,
            queries_QD=queries_QD,
            candidate_states_KMS=candidate_states_KMS,
            candidate_presence_KM=candidate_presence_KM,
        )
        return _attribution(arrays)

    def modality_shares(self, interest_KM: Vectors, *, scores_K: Vectors) -> Sequence[float]:
        """Return each part's share `[M]` of what speaks for K candidates, as it was judged at release."""
        shares: list[float] = modality_shares(interest_KM, scores_K=scores_K).tolist()
        return shares


def _attribution(arrays: ExplanationArrays) -> Attribution:
    return Attribution(
        scores_K=arrays.scores_K,
        interest_KM=arrays.interest_KM,
        history_KL=arrays.history_KL,
        grid_KLM=arrays.grid_KLM,
        contributions_KM=arrays.contributions_KM,
        residual_K=arrays.residual_K,
        additive=arrays.additive,
    )


def _card(manifest: BundleManifest, version: ServedVersion) -> ModelCard:
    masks = {mask.modality: mask.model_dump(exclude={"modality"}) for mask in manifest.modality_mask}
    return ModelCard(
        version=version,
        parts=manifest.part_names,
        modalities=tuple(ModalityCard(one.name, one.dim, masks.get(one.name)) for one in manifest.modalities),
        methods=tuple(manifest.explanation_methods),
        num_known_items=manifest.warm.num_items if manifest.warm else 0,
        num_known_users=manifest.known_users.num_users if manifest.known_users else 0,
        fold_in=manifest.fold_in.model_dump() if manifest.fold_in else None,
        cold_items=manifest.cold_items.model_dump() if manifest.cold_items else None,
    )


class LoadedRanker(LoadedModel):
    """A model that orders what another one has retrieved."""

    def __init__(
        self,
        bundle: Bundle,
        tables: ItemTables,
        *,
        version: ServedVersion,
        num_candidates: int,
        known_users: KnownTable | None = None,
    ) -> None:
        """As `LoadedModel`; `num_candidates` is how many items it is given to order."""
        super().__init__(bundle, tables, version=version, known_users=known_users)
        self.num_candidates = num_candidates
        self.rerank_cpu_s = 0.0
        """Set by the warm-up, before anybody else sees it."""
        self._candidates = tables.candidates

    def score(self, queries_QD: Vectors, rows: Rows) -> Vectors:
        """Return one user's score of each row."""
        scores_n: Vectors = self._bundle.score(queries_QD[np.newaxis], self._candidates(rows))[0]
        return scores_n
