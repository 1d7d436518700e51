"""Ranking the whole catalogue for held-out users, in pieces of bounded memory.

Where the held-out users come with drawn candidates, their targets are ranked among these too, from the same scores;
such figures have names of their own (`training.data.candidates`).

Legend: `B` users, `N` items, `C` candidates, `Q` queries, `D` width, `H` history row, `L` history length, `K` length of
the ranked list.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.features import Ages, pad_ages, pad_history
from index.metrics import per_user
from training.data.candidates import NO_CANDIDATE
from training.data.catalogue import Catalogue
from training.data.split import HeldOut, Seen
from training.models import ServableModel

_SCORES_AT_ONCE = 1 << 24
"""Scores of one piece: 64 MB."""

_USERS_AT_ONCE = 1024

ScoreUsers = Callable[[slice], Tensor]
"""Scores `[B, N]` of a piece of the held-out users against the whole catalogue; may be overwritten."""

Judged = Mapping[str, NDArray[np.float64]]
"""Metrics by name such as `recall@20` or `recall@20_of_1000`, each with one value per held-out user `[B]`, in their
order."""


def evaluate_model(
    model: ServableModel,
    catalogue: Catalogue,
    users: HeldOut,
    *,
    cutoffs: Sequence[int],
    seen: Seen = "mask",
    device: torch.device | None = None,
) -> dict[str, float]:
    """Return mean metrics such as `recall@20` of a torch model on held-out users; leaves the model's mode as it was."""
    return means(judge_model(model, catalogue, users, cutoffs=cutoffs, seen=seen, device=device))


def judge_model(
    model: ServableModel,
    catalogue: Catalogue,
    users: HeldOut,
    *,
    cutoffs: Sequence[int],
    seen: Seen = "mask",
    device: torch.device | None = None,
) -> Judged:
    """Return what `evaluate_model` takes the means of."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        items_ND = rows_NH = encode_catalogue(model, catalogue, model.fuse)
        if not model.history_is_candidate:
            rows_NH = encode_catalogue(model, catalogue, model.history_rows)

        def score(piece: slice) -> Tensor:
            rows_BL, mask_BL = (
                torch.from_numpy(a).to(device) for a in pad_histories(users, piece, length=model.history_length)
            )
            ages_BL = tensor_of(pad_user_ages(users, piece, length=model.history_length), device)
            query_BQD = model.encode_users(rows_NH[rows_BL], mask_BL, ages_BL)
            return model.score(query_BQD, items_ND)

        judged = judge_scores(score, users, num_items=catalogue.num_items, cutoffs=cutoffs, seen=seen)
    model.train(was_training)
    return judged


def encode_catalogue(model: ServableModel, catalogue: Catalogue, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return what is made of the states and the presence of all items `[N, ...]`: `model.fuse` makes their vectors."""
    return torch.cat([make(*model.parts_of(*catalogue.inputs(rows), rows)) for rows in catalogue.rows_of_chunks()])


def evaluate_scores(
    score: ScoreUsers, users: HeldOut, *, num_items: int, cutoffs: Sequence[int], seen: Seen = "mask"
) -> dict[str, float]:
    """Return mean metrics of anything that scores the whole catalogue for a piece of the users.

    Args:
        score: See `ScoreUsers`.
        users: Held-out users.
        num_items: N.
        cutoffs: Cut-off lengths; one beyond the catalogue counts as the catalogue.
        seen: `mask`: items of the history get minus infinity, and are never recommended. `keep`: as ComiRec does.
    """
    return means(judge_scores(score, users, num_items=num_items, cutoffs=cutoffs, seen=seen))


def judge_scores(
    score: ScoreUsers, users: HeldOut, *, num_items: int, cutoffs: Sequence[int], seen: Seen = "mask"
) -> Judged:
    """Return what `evaluate_scores` takes the means of."""
    collected: defaultdict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for piece in pieces(len(users), num_items=num_items):
        scores_BN, targets_BT = score(piece), users.targets_BT[piece]
        if seen == "mask":
            mask_seen(scores_BN, users.histories[piece])
        for name, values_B in _at_cutoffs(_ranked(scores_BN, k=max(cutoffs)), targets_BT, cutoffs):
            collected[name].append(values_B)
        if users.candidates is None:
            continue
        ranked_BK = _ranked_among(scores_BN, users.candidates.rows_BC[piece], k=max(cutoffs))
        for name, values_B in _at_cutoffs(ranked_BK, targets_BT, cutoffs):
            collected[users.candidates.config.named(name)].append(values_B)
    return {name: np.concatenate(values) for name, values in collected.items()}


def _at_cutoffs(
    ranked_BK: NDArray[np.int64], targets_BT: NDArray[np.int64], cutoffs: Sequence[int]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for k in cutoffs:
        for name, values_B in per_user(ranked_BK, targets_BT, k=k).items():
            yield f"{name}@{k}", values_B


def _ranked(scores_BN: Tensor, *, k: int) -> NDArray[np.int64]:
    """Return the places of the k best, filled with -1 where there are no more scores above minus infinity."""
    depth = min(k, scores_BN.shape[1])
    top = torch.topk(scores_BN, depth, dim=-1)
    ranked_BK = torch.where(torch.isneginf(top.values), -1, top.indices).cpu().numpy()
    return np.pad(ranked_BK, ((0, 0), (0, k - depth)), constant_values=-1)


def _ranked_among(scores_BN: Tensor, rows_BC: NDArray[np.int32], *, k: int) -> NDArray[np.int64]:
    """Return the rows of the k best of some candidates, filled with -1."""
    candidates_BC = torch.from_numpy(rows_BC.astype(np.int64)).to(scores_BN.device)
    scores_BC = scores_BN.gather(1, candidates_BC.clamp_min(0))
    places_BK = _ranked(scores_BC.masked_fill(candidates_BC == NO_CANDIDATE, -torch.inf), k=k)
    return np.where(places_BK < 0, -1, np.take_along_axis(rows_BC, np.maximum(places_BK, 0), axis=1))


def means(judged: Judged) -> dict[str, float]:
    """Return the plain mean over users of each metric."""
    return {name: float(values_B.mean()) for name, values_B in judged.items()}


def mask_seen(scores_BN: Tensor, histories: Sequence[NDArray[np.int64]]) -> None:
    """Set the scores of each user's history to minus infinity, in place."""
    user_X = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    item_X = np.concatenate(histories) if histories else np.zeros(0, np.int64)
    device = scores_BN.device
    scores_BN[torch.from_numpy(user_X).to(device), torch.from_numpy(item_X).to(device)] = -torch.inf


def pad_histories(users: HeldOut, piece: slice, *, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the last `length` items of some users' histories `[B, L]`, padded at the end, and their mask."""
    padded = [pad_history(history, length=length) for history in users.histories[piece]]
    return np.stack([rows for rows, _ in padded]), np.stack([mask for _, mask in padded])


def pad_user_ages(users: HeldOut, piece: slice, *, length: int) -> Ages | None:
    """Return the ages of the same `[B, L]`; None where times were not read."""
    if users.ages is None:
        return None
    return np.stack([pad_ages(ages, length=length) for ages in users.ages[piece]])


def tensor_of(ages_BL: Ages | None, device: torch.device | None = None) -> Tensor | None:
    """Return ages for a model; None stays None."""
    return None if ages_BL is None else torch.from_numpy(ages_BL).to(device)


def pieces(num_users: int, *, num_items: int) -> Iterator[slice]:
    """Give the users in pieces whose scores fit into memory."""
    size = max(1, min(_USERS_AT_ONCE, _SCORES_AT_ONCE // num_items))
    for start in range(0, num_users, size):
        yield slice(start, min(start + size, num_users))
