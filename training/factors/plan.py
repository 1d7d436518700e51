"""Which stages a family's run has."""

from dataclasses import replace

import numpy as np
import torch

from training.blocks.disentangled import DisentangledEncoder
from training.config import FactorRun
from training.factors.closed_form import ClosedFormStage
from training.factors.concept_fit import ConceptFit
from training.factors.data import FactorData
from training.factors.environments import PartitionStage
from training.factors.factor_fit import PairwiseFit, RankerFit, UltraGcnFit
from training.factors.fit import Fit, loaded
from training.factors.graph_fit import GraphFit, SlmrecFit
from training.factors.masking import MaskStage
from training.factors.network import ContentNetwork, ContentNetworkStage
from training.factors.pretraining_stage import PretrainingStage
from training.factors.stages import Carry, PlannedStage, Stage
from training.models import (
    Cb2cfConfig,
    FactorModel,
    FeatureSpec,
    GraphInputs,
    GraphSettings,
    IdModel,
    InvrlConfig,
    ItemItem,
    MacridVaeConfig,
    PairwiseSettings,
    PamdConfig,
    PamdModel,
    PamdUser,
    PamdUserConfig,
    RankerSettings,
    SlmrecConfig,
    SolvedFamily,
    SolvedSettings,
    UltraGcnSettings,
)
from training.pretraining.pretraining import Disentangling

HELD_OUT_ITEMS = 0.1
"""Of the trained items: no imputer is fitted on them, so that new items can be judged on them."""

FINAL = "final"
"""What the last fit hands its parameters on as."""


class Plan:
    """Stages in order, each made from the same seed whenever its turn comes."""

    def __init__(self, config: FactorRun, data: FactorData, features: FeatureSpec) -> None:
        self._config, self._data, self._features = config, data, features

    @property
    def stages(self) -> list[PlannedStage]:
        """Return all stages."""
        family = self._config.model
        if isinstance(family, InvrlConfig):
            return self._invrl(family)
        if isinstance(family, PamdConfig | PamdUserConfig):
            return [
                PlannedStage("pretrain", lambda number, _carry: self._pretraining(number, family)),
                PlannedStage("fit", lambda number, carry: self._fit("fit", number, FINAL, self._pretrained(carry))),
            ]
        if isinstance(family, SolvedSettings):
            return [PlannedStage("solve", lambda number, _carry: self._solved(number, family))]
        stages = [PlannedStage("fit", lambda number, _carry: self._fit("fit", number, FINAL))]
        if isinstance(family, Cb2cfConfig):
            stages.append(PlannedStage("network", lambda number, carry: self._network(number, family, carry)))
        return stages

    @property
    def first_carry(self) -> Carry:
        """Return what the first stage finds."""
        family = self._config.model
        if not isinstance(family, InvrlConfig):
            return {}
        return {
            "mask_R": torch.full((sum(self._data.widths),), family.masking.prior),
            "partition.started": torch.tensor(0),
        }

    def model(self) -> IdModel:
        """Return the freshly initialised model: the same one for the same seed."""
        family, data = self._config.model, self._data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed)
            if isinstance(family, GraphSettings):
                return family.build(GraphInputs(data.graph, self._features, data.content, data.presence_IM))
            if isinstance(family, MacridVaeConfig | SolvedSettings):
                return family.build(num_items=data.num_items)
            if isinstance(family, RankerSettings):
                return family.build(self._features, data.presence_IM, num_users=data.num_users)
            return family.build(self._features, num_users=data.num_users, num_items=data.num_items)

    def factor_model(self) -> FactorModel:
        """Return the freshly initialised model of a family that is no graph model."""
        model = self.model()
        assert isinstance(model, FactorModel)
        return model

    def final_model(self, carry: Carry) -> IdModel:
        """Return the model that the whole plan made; nothing of it is trained any more."""
        return loaded(self.model(), carry, prefix=FINAL).eval().requires_grad_(requires_grad=False)

    def network(self, carry: Carry, family: Cb2cfConfig) -> ContentNetwork:
        """Return CB2CF's network, with its weights where they are known."""
        model = self.final_model(carry)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed)
            network = ContentNetwork(self._data.widths, hidden=family.network.hidden, dim=model.learned().shape[1])
        weights = {name.removeprefix("network."): v for name, v in carry.items() if name.startswith("network.")}
        if weights:
            network.load_state_dict(weights)
        return network

    def _fit(self, name: str, number: int, prefix: str, model: IdModel | None = None) -> Stage:
        family, model = self._config.model, model or self.model()
        fit = Fit(name, number, model, self._data, self._config, prefix)
        if isinstance(family, PamdConfig | PamdUserConfig):
            fit = replace(fit, encoder=encoder_of(model), encoder_lr=family.encoder_lr)
        if isinstance(family, SlmrecConfig):
            return SlmrecFit(fit, family)
        if isinstance(family, GraphSettings):
            return GraphFit(fit, family)
        if isinstance(family, MacridVaeConfig):
            return ConceptFit(fit, family)
        if isinstance(family, PairwiseSettings):
            return PairwiseFit(fit, family)
        if isinstance(family, RankerSettings):
            return RankerFit(fit, family)
        assert isinstance(family, UltraGcnSettings)
        return UltraGcnFit(fit, family)

    def _solved(self, number: int, family: SolvedFamily) -> Stage:
        model = self.model()
        assert isinstance(model, ItemItem)
        return ClosedFormStage(number, model, self._data, family, prefix=FINAL)

    def _pretraining(self, number: int, family: PamdConfig | PamdUserConfig) -> Stage:
        settings = family.pretraining.model_copy(update={"dim": family.dim})
        task = Disentangling(self._data.content, self._data.presence_IM, settings, seed=self._config.seed)
        length = family.content_length * family.init_std * family.dim**0.5
        return PretrainingStage("pretrain", number, task, length=length)

    def _pretrained(self, carry: Carry) -> IdModel:
        model = self.model()
        loaded(encoder_of(model), carry, prefix="pretrained")
        return model

    def _network(self, number: int, family: Cb2cfConfig, carry: Carry) -> Stage:
        fitted, _ = imputer_items(self._data, seed=self._config.seed)
        return ContentNetworkStage(
            "network",
            number,
            self.network(carry, family),
            self._data,
            target_ID=self.final_model(carry).learned(),
            items=fitted,
            config=family.network,
            seed=self._config.seed,
        )

    def _invrl(self, family: InvrlConfig) -> list[PlannedStage]:
        def pretrained(carry: Carry) -> FactorModel:
            return loaded(self.factor_model(), carry, prefix="pretrained")

        def partition(name: str) -> PlannedStage:
            def make(number: int, carry: Carry) -> Stage:
                return PartitionStage(
                    name, number, pretrained(carry), self._data, config=family, carry=carry, seed=self._config.seed
                )

            return PlannedStage(name, make)

        def masking(name: str, iteration: int) -> PlannedStage:
            def make(number: int, carry: Carry) -> Stage:
                return MaskStage(
                    name,
                    number,
                    pretrained(carry),
                    self._data,
                    config=family,
                    carry=carry,
                    iteration=iteration,
                    seed=self._config.seed,
                )

            return PlannedStage(name, make)

        def final(number: int, carry: Carry) -> Stage:
            model = self.factor_model() if family.final == "scratch" else pretrained(carry)
            model.mask_R *= carry["mask_R"]
            return self._fit("final", number, FINAL, model)

        stages = [PlannedStage("pretrain", lambda number, _carry: self._fit("pretrain", number, "pretrained"))]
        for iteration in range(family.iterations):
            rounds = range(1, family.partition.rounds + 1)
            stages += [partition(f"partition {iteration + 1}.{one}") for one in rounds]
            stages.append(masking(f"mask {iteration + 1}", iteration))
        return [*stages, PlannedStage("final", final)]


def encoder_of(model: IdModel) -> DisentangledEncoder:
    """Return what PAMD pretrains, whatever the query of its attention."""
    if isinstance(model, PamdModel):
        return model.content.encoder
    assert isinstance(model, PamdUser)
    return model.encoder


def imputer_items(data: FactorData, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the items that an imputer is fitted on, and those it is judged on: trained, with content if any has it."""
    trained_I = data.degree_I > 0
    usable_I = trained_I & data.presence_IM.any(dim=-1)
    usable = torch.nonzero(usable_I if usable_I.any() else trained_I).squeeze(-1).numpy()
    shuffled = np.random.default_rng([seed, 7]).permutation(usable)
    count = max(1, round(len(shuffled) * HELD_OUT_ITEMS))
    return torch.from_numpy(np.sort(shuffled[count:])), torch.from_numpy(np.sort(shuffled[:count]))
