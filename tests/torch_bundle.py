"""A bundle's calls answered by the torch model itself: what the exporter would export, without the seconds it takes."""

from types import SimpleNamespace

import numpy as np

from index.bundle import EncodedItems, EncodedStates
from index.ranking import over_queries
from training.export import graphs_of
from training.models import ServableModel


class TorchBundle:
    """As much of `index.bundle.Bundle` as explanations and their measurement need."""

    def __init__(self, model: ServableModel) -> None:
        self.graphs = graphs_of(model)
        self.path = None
        self.manifest = SimpleNamespace(
            history_length=model.history_length,
            modalities=list(model.modalities),
            part_names=model.part_names,
            warm=None,
            history_is_candidate=model.history_is_candidate,
            scorer=model.scorer,
            is_ranker=False,
        )

    def encode_items(self, inputs):
        names = [modality.name for modality in self.manifest.modalities]
        raw = dict(zip(names, inputs.features, strict=True))
        out = self.graphs["item_encoder"]({**raw, "presence": inputs.presence})
        return EncodedItems(out["candidate"], out["history"], out["states"], inputs.presence)

    def encode_states(self, states_BMS, presence_BM):
        out = self.graphs["state_encoder"]({"states": states_BMS, "presence": presence_BM})
        return EncodedStates(out["candidate"], out["history"])

    def encode_users(self, history_BLH, mask_BL, ages_BL=None):
        given = {"history": history_BLH, "mask": mask_BL}
        return self.graphs["user_encoder"](given | self._ages(mask_BL, ages_BL))["queries"]

    def score(self, queries_BQD, candidates_KD):
        return over_queries(queries_BQD @ candidates_KD.T, axis=1, scorer=self.manifest.scorer)

    def explain(self, *, outputs, ages=None, **inputs):
        found = self.graphs["explainer"](inputs | self._ages(inputs["mask"], ages))
        return {name: found[name] for name in outputs}

    def _ages(self, mask_BL, ages_BL):
        if "ages" not in self.graphs["user_encoder"].inputs:
            return {}
        return {"ages": np.zeros(mask_BL.shape, np.float32) if ages_BL is None else ages_BL}
