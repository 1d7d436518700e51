"""How fast graph models train beside the same written straightforwardly in torch: LightGCN and SLMRec-FAC.

    python -m benchmarks.graph_training --data DIR --threads 2

The plain twins multiply a sparse tensor of all nodes (in coordinates; as another row, in compressed rows), propagate
every channel whole in every step, make all B x B scores of a batch, and leave gradients to autograd. They start from
the same parameters and read the same batches; their losses have to stay the same while both train, or nothing is timed
and the exit code is 1. Blocks of steps are timed in turns, so that noise of the machine hits all; a ratio is of one
round. Exit code 1, too, where the median ratio to the twin in coordinates is below the aim. Beside other work start it
with OMP_WAIT_POLICY=passive: threads that spin while they wait for a core cost tens of times the step itself.

Legend: `U` users, `I` items, `N` both, `R` width of a modality, `D` width, `B` pairs of a step, `Y` distinct items, `n`
negatives of a pair.
"""

import argparse
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.factor_data import FactorInputs
from index.dataset import Dataset
from training.config import FactorRun, load_config
from training.factors.fit import FitStage
from training.factors.plan import Plan
from training.factors.trainer import make_adam
from training.models import GraphModel, Slmrec, SlmrecConfig
from training.models.graph import GraphSettings

CONFIGS = (Path("training/configs/tiktok-lightgcn.toml"), Path("training/configs/tiktok-slmrec.toml"))
AIM = 3.0
TOLERANCE = 1e-4
LOCKSTEP = 5
"""Steps in which the losses have to be the same; the first ones, so that they warm up, too."""

Layout = Literal["coo", "csr"]
LossOf = Callable[[int], Tensor]


class Plain(ABC):
    """A model's step, written straightforwardly. It reads parameters of a model whose own code it does not call."""

    def __init__(self, inputs: FactorInputs, config: FactorRun, model: GraphModel, layout: Layout) -> None:
        assert isinstance(config.model, GraphSettings)
        self.data, self.config, self.model, self.settings = inputs.data, config, model, config.model
        graph = self.data.graph
        user_E, item_E = graph.user_E, graph.item_E + graph.num_users
        rows_E, columns_E = torch.cat([user_E, item_E]), torch.cat([item_E, user_E])
        degree_N = torch.cat([graph.degree_U, graph.degree_I])
        weight_E = (degree_N[rows_E] * degree_N[columns_E]).rsqrt()
        adjacency_NN = torch.sparse_coo_tensor(
            torch.stack([rows_E, columns_E]), weight_E, (len(degree_N), len(degree_N)), check_invariants=True
        ).coalesce()
        self.adjacency_NN = adjacency_NN if layout == "coo" else adjacency_NN.to_sparse_csr()

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """Return the whole loss of a step."""

    def propagated(self, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of all layers."""
        nodes_ND = torch.cat([users_UD, items_ID])
        total_ND = nodes_ND
        for _ in range(self.settings.layers):
            nodes_ND = torch.sparse.mm(self.adjacency_NN, nodes_ND)
            total_ND = total_ND + nodes_ND
        users_UD, items_ID = torch.split(total_ND / (self.settings.layers + 1), [len(users_UD), len(items_ID)])
        return users_UD, items_ID


class PlainLightGcn(Plain):
    """BPR on propagated ids, and L2 of the rows that were looked up."""

    def loss(self, step: int) -> Tensor:
        """Return the whole loss of a step."""
        optim, model = self.config.optim, self.model
        assert optim.l2_scope == "batch"
        batch = self.data.pair_batch(0, step, size=optim.batch_size, num_negatives=self.settings.negatives)
        assert batch.negatives is not None
        users_UD, items_ID = self.propagated(model.users_UD, model.ids_IF)
        users_BD, positives_BD = F.embedding(batch.users_B, users_UD), F.embedding(batch.items_X, items_ID)
        negatives_BnD = F.embedding(batch.negatives, items_ID)
        positive_B1 = (users_BD * positives_BD).sum(dim=-1, keepdim=True)
        negative_Bn = (users_BD.unsqueeze(1) * negatives_BnD).sum(dim=-1)
        loss = -F.logsigmoid(positive_B1 - negative_Bn).mean()
        own = (F.embedding(batch.users_B, model.users_UD), F.embedding(batch.items_X, model.ids_IF))
        squares = sum(one.square().sum() for one in (*own, F.embedding(batch.negatives, model.ids_IF)))
        return loss + optim.l2_tables / 2 * squares / len(batch.users_B)


class PlainSlmrec(Plain):
    """In-batch InfoNCE over all channels, known positives masked, and FAC on the batch's items."""

    def __init__(self, inputs: FactorInputs, config: FactorRun, model: GraphModel, layout: Layout) -> None:
        super().__init__(inputs, config, model, layout)
        family = config.model
        assert isinstance(family, SlmrecConfig)
        assert config.optim.l2_scope == "tables", "Adam's weight decay does the L2"
        assert (family.main_weight, family.fm_weight, family.fd_weight, family.negatives) == (1, 0, 0, 0)
        assert (family.fusion, family.scorer, family.fac_similarity) == ("concat", "cosine", "cosine")
        assert family.mask_positives
        data = self.data
        self.family = family
        self.content = [
            torch.cat([F.normalize(one_IR, dim=-1), data.presence_IM[:, m : m + 1].float()], dim=-1)
            for m, one_IR in enumerate(data.content)
        ]
        self.known_UI = torch.zeros(data.num_users, data.num_items, dtype=torch.bool)
        self.known_UI[data.user_E, data.item_E] = True

    def loss(self, step: int) -> Tensor:
        """Return the whole loss of a step."""
        family, model = self.family, self.model
        assert isinstance(model, Slmrec)
        assert model.fuse_users is not None
        assert model.fuse_items is not None
        batch = self.data.pair_batch(0, step, size=self.config.optim.batch_size, num_negatives=0)
        projected = [F.linear(one_IR, weight) for one_IR, weight in zip(self.content, model.projections, strict=True)]
        channels = [self.propagated(model.users_UD, first_ID) for first_ID in (model.ids_IF, *projected)]
        users_BD = model.fuse_users(torch.cat([F.embedding(batch.users_B, users) for users, _ in channels], dim=-1))
        items_BD = model.fuse_items(torch.cat([F.embedding(batch.items_X, items) for _, items in channels], dim=-1))
        logits_BB = F.normalize(users_BD, dim=-1) @ F.normalize(items_BD, dim=-1).T / family.tau
        expected_B = torch.ones(len(logits_BB))
        if family.correct_popularity:
            expected_B = self.data.degree_I[batch.items_X] * (len(logits_BB) / self.data.num_pairs)
        known_BB = self.known_UI[batch.users_B][:, batch.items_X]
        held_down_BB = torch.where(known_BB, torch.inf, expected_B.log()).fill_diagonal_(0)
        loss = F.cross_entropy(logits_BB - held_down_BB, torch.arange(len(logits_BB)))
        rows_Y = torch.unique(batch.items_X)
        anchors_YD, *others = [F.embedding(rows_Y, items) for _, items in channels]
        for onward, space, other_YD in zip(model.onward, model.spaces, others, strict=True):
            anchors_YD = onward(anchors_YD)
            cosine_YY = F.normalize(anchors_YD, dim=-1) @ F.normalize(space(other_YD), dim=-1).T
            contrast = F.cross_entropy(cosine_YY / family.tau_ssl, torch.arange(len(rows_Y)))
            loss = loss + family.fac_weight * contrast
        return loss


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """What makes a loss, and the optimiser that follows it."""

    name: str
    loss: LossOf
    optimiser: torch.optim.Optimizer

    def step(self, number: int) -> float:
        """Take a step, as the trainer does, and return its loss."""
        loss = self.loss(number)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()
        return loss.item()


def main() -> None:
    """Compare the models of the configurations, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path, default=CONFIGS, help="of lightgcn and slmrec")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10, help="in a block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
    dataset = Dataset.open(arguments.data)
    sys.stdout.write("| model | implementation | ms / step | s / epoch | times as long: median | least | most |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    failures = []
    for path in arguments.configs:
        config = load_config(path, arguments.overrides)
        assert isinstance(config, FactorRun), f"{path}: no graph model"
        inputs = FactorInputs.make(config, dataset)
        runners = [ours(inputs, config), *(plain(inputs, config, layout) for layout in ("coo", "csr"))]
        apart = largest_difference(runners)
        if apart > TOLERANCE:
            failures.append(f"{config.model.kind}: losses are {apart:.1e} apart")
            continue
        ms_RN = timed(runners, rounds=arguments.rounds, steps=arguments.steps)
        ratios_RN = ms_RN / ms_RN[:, :1]
        per_epoch = inputs.data.steps(inputs.data.num_pairs, config.optim.batch_size)
        for runner, ms_R, ratio_R in zip(runners, ms_RN.T, ratios_RN.T, strict=True):
            ms, ratio = float(np.median(ms_R)), float(np.median(ratio_R))
            sys.stdout.write(
                f"| {config.model.kind} | {runner.name} | {ms:.1f} | {ms * per_epoch / 1e3:.2f} | {ratio:.2f} "
                f"| {ratio_R.min():.2f} | {ratio_R.max():.2f} |\n"
            )
        if np.median(ratios_RN[:, 1]) < AIM:
            failures.append(f"{config.model.kind}: {np.median(ratios_RN[:, 1]):.2f} times as fast, not {AIM:g}")
    for failure in failures:
        sys.stderr.write(failure + "\n")
    sys.exit(1 if failures else 0)


def ours(inputs: FactorInputs, config: FactorRun) -> Runner:
    """Return the stage that the trainer would run."""
    stage = _fresh(inputs, config)
    optimiser = make_adam(stage, config.optim)
    return Runner("prismrec", lambda step: stage.losses(step)["total"], optimiser)


def plain(inputs: FactorInputs, config: FactorRun, layout: Layout) -> Runner:
    """Return the twin, with the same parameters in groups with the same L2."""
    stage, optim = _fresh(inputs, config), config.optim
    optimiser = torch.optim.Adam(stage.groups(), betas=(optim.beta1, optim.beta2), eps=optim.eps)
    assert isinstance(stage.module, GraphModel)
    family = PlainSlmrec if isinstance(config.model, SlmrecConfig) else PlainLightGcn
    return Runner(f"plain, {layout}", family(inputs, config, stage.module, layout).loss, optimiser)


def _fresh(inputs: FactorInputs, config: FactorRun) -> FitStage:
    """Return a stage whose parameters are those of the seed."""
    stage = Plan(config, inputs.data, inputs.catalogue.features).stages[0].make(0, {})
    assert isinstance(stage, FitStage)
    return stage


def largest_difference(runners: Sequence[Runner]) -> float:
    """Return how far losses get from the first runner's, while each trains on."""
    losses_SN = np.array([[runner.step(step) for runner in runners] for step in range(LOCKSTEP)])
    return float(np.abs(losses_SN - losses_SN[:, :1]).max())


def timed(runners: Sequence[Runner], *, rounds: int, steps: int) -> np.ndarray:
    """Return milliseconds a step `[rounds, runners]`; whose turn comes first changes from round to round."""
    ms_RN = np.zeros((rounds, len(runners)))
    for number in range(rounds):
        first = LOCKSTEP + number * steps
        for place in np.roll(np.arange(len(runners)), number).tolist():
            started = time.perf_counter()
            for step in range(first, first + steps):
                runners[place].step(step)
            ms_RN[number, place] = 1e3 * (time.perf_counter() - started) / steps
    return ms_RN


if __name__ == "__main__":
    main()
