"""The factor models that learn from pairs of items (BPR): their layout is all that tells them apart.

| family | score of user u and item i |
|---|---|
| `mf_bpr` | <g_u, g_i> + b_i (Rendle et al. 2009) |
| `bpr_plus` | <g_u, g_i> + <t_u, W x_i>: BPR++, whose item is ids and projected content side by side; + b_i if asked |
| `vbpr` | as `bpr_plus`, + b_i + <b', x_i> (He and McAuley 2016) |
| `duif` | <t_u, W x_i>: no item ids, so new items need nothing (Geng et al. 2015) |
| `cb2cf` | as `mf_bpr`; then a network learns the items' vectors from content (Barkan et al. 2019) |
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from training.models.factors import FactorSettings, Layout
from training.settings import Settings


class PairwiseSettings(FactorSettings):
    """A family that learns to put a user's items before others."""

    negatives: int = Field(1, ge=1, le=1000, description="Random items that each item of a user is compared with.")


class MfBprConfig(PairwiseSettings):
    """Matrix factorisation: ids alone."""

    layout: ClassVar[Layout] = Layout(content=False, item_bias=True)
    kind: Literal["mf_bpr"] = "mf_bpr"


class BprPlusConfig(PairwiseSettings):
    """BPR++: ids and content side by side."""

    kind: Literal["bpr_plus"] = "bpr_plus"
    item_bias: bool = Field(False, description="Whether each item has a bias; the published model has none.")

    def pieces(self) -> Layout:
        """Return what this run's vectors are made of."""
        return replace(self.layout, item_bias=self.item_bias)


class VbprConfig(PairwiseSettings):
    """VBPR: ids, content and biases."""

    layout: ClassVar[Layout] = Layout(item_bias=True, content_bias=True)
    kind: Literal["vbpr"] = "vbpr"


class DuifConfig(PairwiseSettings):
    """DUIF: users with vectors, items by content."""

    layout: ClassVar[Layout] = Layout(ids=False)
    kind: Literal["duif"] = "duif"


class ContentNetworkConfig(Settings):
    """CB2CF's second stage: content to collaborative vector, by squared error."""

    hidden: int = Field(128, ge=1, le=4096, description="Width of the layer that each modality's vector goes through.")
    epochs: int = Field(100, ge=1, le=10_000, description="Passes over the items.")
    lr: float = Field(1e-3, gt=0, description="Of Adam in this stage.")
    batch_size: int = Field(256, ge=1, description="Items of a step.")


class Cb2cfConfig(PairwiseSettings):
    """CB2CF: ids alone in the score; new items get the vector that a network predicts from their content."""

    layout: ClassVar[Layout] = Layout(content=False, item_bias=True)
    kind: Literal["cb2cf"] = "cb2cf"
    network: ContentNetworkConfig = ContentNetworkConfig()
