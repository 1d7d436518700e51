"""NFM++: a neural factorisation machine (He and Chua 2017) over user, id and each modality.

The features of a pair are the user, the item's id and what each modality is embedded to, v_0, v_1, ..., and their
products in pairs are summed (bi-interaction), which a network reads:

    s_ui = network(sum_{a < b} v_a * v_b) + sum_a w_a

With S the sum of the item's embeddings and B the bi-interaction among them, that sum is u * S + B: an item brings S and
B, whatever the user. A user's own linear weight ranks nothing and is left out. Without hidden layers the network is the
plain sum, and the model a factorisation machine.

Legend: as in `training.models.ranker`, with `E` = `dim`, S = H = E + 1, D = 2 E + 1 and Q = E.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.models.ranker import Layers, NetworkSettings, Ranker, RankerModel, present
from training.models.servable import FeatureSpec


class NfmConfig(NetworkSettings):
    """NFM++."""

    kind: Literal["nfm"] = "nfm"
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (64,), description="Widths of the network's hidden layers. Empty: a factorisation machine."
    )

    def build(self, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> "Nfm":
        """Return a freshly initialised model."""
        return Nfm(self, features, presence_IM, num_users=num_users)


def bi_interaction(embeddings_AE: Tensor) -> Tensor:
    """Return the sum over pairs of features of their products `[..., E]`, in time linear in their number."""
    return 0.5 * (embeddings_AE.sum(dim=-2).square() - embeddings_AE.square().sum(dim=-2))


class NfmRanker(Ranker):
    """A state is an embedding and a linear weight; a candidate is S, B and the sum of the weights."""

    def __init__(self, config: NfmConfig) -> None:
        dim = config.dim
        super().__init__(
            state_dim=dim + 1, dim=2 * dim + 1, query_dim=dim, row_dim=dim + 1, pair_dim=max(dim, *config.hidden, 1)
        )
        self._embedding = dim
        self.layers = Layers([dim, *config.hidden], dropout=config.dropout) if config.hidden else None

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return S, B and the sum of the linear weights of the parts that are there `[..., D]`."""
        embeddings_PE, weights_P1 = torch.split(present(states_PS, presence_P), [self._embedding, 1], dim=-1)
        return torch.cat([embeddings_PE.sum(dim=-2), bi_interaction(embeddings_PE), weights_P1.sum(dim=-2)], dim=-1)

    def pair_scores(self, queries_B1Q: Tensor, candidates_KD: Tensor, chance: torch.Generator | None) -> Tensor:
        """Return what the network makes of the bi-interaction of all features."""
        sum_KE, within_KE, _ = torch.split(candidates_KD, [self._embedding, self._embedding, 1], dim=-1)
        if self.layers is None:
            with_user_B1K = queries_B1Q @ sum_KE.transpose(-1, -2)
            return with_user_B1K.squeeze(-2) + within_KE.sum(dim=-1)
        scores_BK: Tensor = self.layers(queries_B1Q * sum_KE + within_KE, chance)
        return scores_BK


class Nfm(RankerModel):
    """An embedding of each user, item and dimension of content, and linear weights of the last two."""

    def __init__(self, config: NfmConfig, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> None:
        super().__init__(
            config,
            features,
            presence_IM,
            ranker=NfmRanker(config),
            num_users=num_users,
            user_dim=config.dim,
            item_dim=config.dim,
        )
        widths = [features.modalities[m].dim for m in self.columns]
        self.content = nn.ParameterList(
            [F.pad(torch.randn(config.dim, width) * config.init_std, (0, 0, 0, 1)) for width in widths]
        )

    def content_weight(self, m: int) -> Tensor:
        """Return the embeddings of a modality's dimensions and their linear weights `[S, R_m]`."""
        weight_SR: Tensor = self.content[self.columns.index(m)]
        return weight_SR
