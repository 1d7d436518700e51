"""The families of models, joined in the closed union `ModelConfig`: content models, and id-based ones.

To add a family: its config (and module, if it needs one) here, its name in one of the unions, a file in
`training/configs`.
"""

from typing import Annotated

from pydantic import Field

from training.models.comirec import ComiRecDr, ComiRecDrConfig, ComiRecSa, ComiRecSaConfig
from training.models.content import ContentModel
from training.models.demure import BaseConfig, Demure, DemureConfig
from training.models.disengcn import DisenGcn, DisenGcnConfig
from training.models.factors import FactorModel, FactorSettings
from training.models.graph import GraphInputs, GraphModel, GraphSettings
from training.models.grcn import Grcn, GrcnConfig
from training.models.gru4rec import Gru4Rec, Gru4RecConfig
from training.models.huign import Huign, HuignConfig
from training.models.id_model import IdModel, LearnedUsers
from training.models.item_item import (
    EaseConfig,
    ItemItem,
    ItemKnnConfig,
    PopularityConfig,
    SlitConfig,
    SlitSettings,
    SolvedSettings,
)
from training.models.lightgcn import LightGcnConfig
from training.models.macridvae import Concepts, MacridVae, MacridVaeConfig
from training.models.mind import Mind, MindConfig
from training.models.mmgcn import Mmgcn, MmgcnConfig
from training.models.mtin import Mtin, MtinConfig
from training.models.neumf import NeuMf, NeuMfConfig
from training.models.nfm import Nfm, NfmConfig
from training.models.ngcf import Ngcf, NgcfConfig
from training.models.pairwise import BprPlusConfig, Cb2cfConfig, DuifConfig, MfBprConfig, PairwiseSettings, VbprConfig
from training.models.pamd import PamdConfig, PamdModel
from training.models.pamd_user import PamdUser, PamdUserConfig
from training.models.ranker import Ranker, RankerModel, RankerSettings, ScoredPairs
from training.models.sasrec import SasRec, SasRecConfig
from training.models.servable import FeatureSpec, Retriever, ServableModel, over_queries, score_catalogue
from training.models.slmrec import ChannelModel, Channels, LightGcnChannelsConfig, Slmrec, SlmrecConfig
from training.models.ultragcn import InvrlConfig, UltraGcnConfig, UltraGcnSettings
from training.models.vecf import Vecf, VecfConfig
from training.models.youtube_dnn import YoutubeDnn, YoutubeDnnConfig

ContentFamily = (
    DemureConfig
    | BaseConfig
    | YoutubeDnnConfig
    | Gru4RecConfig
    | MindConfig
    | ComiRecSaConfig
    | ComiRecDrConfig
    | MtinConfig
    | SasRecConfig
)
"""Items and users from content: nothing is learned for a single user or item."""

FactorFamily = (
    UltraGcnConfig | InvrlConfig | MfBprConfig | BprPlusConfig | VbprConfig | DuifConfig | Cb2cfConfig | PamdConfig
)
"""Users, and most items, have vectors of their own."""

GraphFamily = (
    LightGcnConfig
    | LightGcnChannelsConfig
    | SlmrecConfig
    | NgcfConfig
    | DisenGcnConfig
    | MmgcnConfig
    | GrcnConfig
    | HuignConfig
)
"""The same, and the vectors are propagated over the graph of interactions."""

ConceptFamily = MacridVaeConfig
"""Items have vectors of their own, users are read from their histories in training as later."""

ItemItemFamily = EaseConfig | ItemKnnConfig | SlitConfig
"""Items have weights of each other, solved in closed form; a user is a sum over the history."""

SolvedFamily = ItemItemFamily | PopularityConfig
"""No step is taken to learn them."""

RankerFamily = NeuMfConfig | NfmConfig | VecfConfig | PamdUserConfig
"""Users and items have vectors of their own, and a network scores the two: it orders what another model retrieves."""

IdFamily = FactorFamily | GraphFamily | ConceptFamily | SolvedFamily | RankerFamily

ModelConfig = Annotated[ContentFamily | IdFamily, Field(discriminator="kind")]
"""`kind` in the configuration says which; a typo is an error that lists the kinds."""

__all__ = [
    "BaseConfig",
    "BprPlusConfig",
    "Cb2cfConfig",
    "ChannelModel",
    "Channels",
    "ComiRecDr",
    "ComiRecDrConfig",
    "ComiRecSa",
    "ComiRecSaConfig",
    "ConceptFamily",
    "Concepts",
    "ContentFamily",
    "ContentModel",
    "Demure",
    "DemureConfig",
    "DisenGcn",
    "DisenGcnConfig",
    "DuifConfig",
    "EaseConfig",
    "FactorFamily",
    "FactorModel",
    "FactorSettings",
    "FeatureSpec",
    "GraphFamily",
    "GraphInputs",
    "GraphModel",
    "GraphSettings",
    "Grcn",
    "GrcnConfig",
    "Gru4Rec",
    "Gru4RecConfig",
    "Huign",
    "HuignConfig",
    "IdFamily",
    "IdModel",
    "InvrlConfig",
    "ItemItem",
    "ItemItemFamily",
    "ItemKnnConfig",
    "LearnedUsers",
    "LightGcnChannelsConfig",
    "LightGcnConfig",
    "MacridVae",
    "MacridVaeConfig",
    "MfBprConfig",
    "Mind",
    "MindConfig",
    "Mmgcn",
    "MmgcnConfig",
    "ModelConfig",
    "Mtin",
    "MtinConfig",
    "NeuMf",
    "NeuMfConfig",
    "Nfm",
    "NfmConfig",
    "Ngcf",
    "NgcfConfig",
    "PairwiseSettings",
    "PamdConfig",
    "PamdModel",
    "PamdUser",
    "PamdUserConfig",
    "PopularityConfig",
    "Ranker",
    "RankerFamily",
    "RankerModel",
    "RankerSettings",
    "Retriever",
    "SasRec",
    "SasRecConfig",
    "ScoredPairs",
    "ServableModel",
    "SlitConfig",
    "SlitSettings",
    "Slmrec",
    "SlmrecConfig",
    "SolvedFamily",
    "SolvedSettings",
    "UltraGcnConfig",
    "UltraGcnSettings",
    "VbprConfig",
    "Vecf",
    "VecfConfig",
    "YoutubeDnn",
    "YoutubeDnnConfig",
    "over_queries",
    "score_catalogue",
]
