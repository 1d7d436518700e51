"""Judging a published bundle: what is measured is what is served, graphs and all.

Legend: `B` users, `N` items, `L` history length, `Q` queries, `D` width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from api_schemas.manifest import ExplanationMethod, Faithfulness
from index.bundle import Bundle
from index.dataset import Dataset
from index.features import Vectors, from_dataset
from index.item_encoder import ItemEncoder
from index.known import open_known_users
from training.config import RunConfig, load_config
from training.data.interactions import Interactions, read_interactions, read_timed_interactions
from training.data.split import HeldOut, Seen, all_users, make_split
from training.evaluate import evaluate_scores, pad_histories, pad_user_ages
from training.faithfulness import JudgedUsers, measure_faithfulness
from training.publish import CONFIG_FILE

Which = Literal["test", "all"]

_ITEMS_AT_ONCE = 4096

_USERS_AT_ONCE = 64
"""Whose scores of the whole catalogue are made together."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a bundle was found to be worth on some users."""

    num_users: int
    metrics: dict[str, float]
    """Of users read from their histories, as requests with a history are answered."""
    metrics_of_known: dict[str, float] | None
    """Of the same users from their learned vectors, where they have one; None when the bundle knows none of them."""
    faithfulness: dict[ExplanationMethod, Faithfulness]


def judge_bundle(
    bundle: Bundle, dataset: Dataset, *, which: Which, num_explained: int | None = None, on_progress: OnProgress
) -> Judgement:
    """Measure ranking and the faithfulness of explanations through the bundle's graphs.

    Args:
        bundle: Opened and verified.
        dataset: `test` needs the folder that the bundle was trained on; `all` takes any folder with the model's
            modalities.
        which: The bundle's own test users, by the seed in its configuration; or every user of the folder, with the
            first 80 % of the interactions as history and the last 20 % as targets.
        num_explained: Users for the faithfulness; None: as many as the bundle's configuration says.
        on_progress: Hears how it goes.

    Raises:
        ValueError: The folder is another one than the bundle's (for `test`), has none of its modalities, or has no
            user to judge on.
    """
    config = load_config(bundle.path / CONFIG_FILE)
    interactions = (read_timed_interactions if bundle.manifest.history_ages else read_interactions)(dataset)
    users = _users(bundle, dataset, interactions, config, which)
    if len(users) == 0:
        raise ValueError(f"{dataset.path}: no user has both a history to read and a target to find")
    metrics, of_known = evaluate_bundle(
        bundle,
        dataset,
        users,
        user_ids=[interactions.user_ids[user] for user in users.users_B],
        cutoffs=config.eval.cutoffs,
        seen=config.eval.seen,
        on_progress=on_progress,
    )
    faithfulness = measure_faithfulness(
        bundle,
        dataset,
        judged_users(dataset, interactions, users, config, most=num_explained),
        methods=bundle.manifest.explanation_methods,
        seed=config.seed,
        on_user=lambda done, total: on_progress("explanations", done, total),
    )
    return Judgement(len(users), metrics, of_known, faithfulness)


def judged_users(
    dataset: Dataset, interactions: Interactions, users: HeldOut, config: RunConfig, *, most: int | None = None
) -> JudgedUsers:
    """Return the users on whom explanations are measured: the same ones for the same configuration."""
    return JudgedUsers.of(
        dataset,
        user_ids=[interactions.user_ids[user] for user in users.users_B],
        histories=users.histories,
        most=config.export.faithfulness_users if most is None else most,
        seed=config.seed,
        ages=users.ages,
    )


def encode_catalogue(bundle: Bundle, dataset: Dataset, *, on_progress: OnProgress) -> tuple[Vectors, Vectors]:
    """Return candidates `[N, D]` and history rows `[N, H]` of all items, as a rebuild makes them."""
    candidate_parts, history_parts = [], []
    encoder = ItemEncoder(bundle)
    known_N = encoder.known_rows(pa.chunked_array([pa.array(dataset.item_ids, pa.string())]))
    for start in range(0, dataset.num_items, _ITEMS_AT_ONCE):
        stop = min(start + _ITEMS_AT_ONCE, dataset.num_items)
        inputs = from_dataset(dataset, slice(start, stop), bundle.manifest.modalities)
        encoded = encoder.encode(inputs, known_N[start:stop])
        candidate_parts.append(encoded.candidates)
        history_parts.append(encoded.history)
        on_progress("items", stop, dataset.num_items)
    return np.concatenate(candidate_parts), np.concatenate(history_parts)


def score_in_pieces(bundle: Bundle, queries_BQD: Vectors, candidate_ND: Vectors) -> Tensor:
    """Return the scores `[B, N]` of users with these queries in a whole catalogue."""
    starts = range(0, len(queries_BQD), _USERS_AT_ONCE)
    pieces = [bundle.score(queries_BQD[start : start + _USERS_AT_ONCE], candidate_ND) for start in starts]
    return torch.from_numpy(np.concatenate(pieces))


def evaluate_bundle(
    bundle: Bundle,
    dataset: Dataset,
    users: HeldOut,
    *,
    user_ids: Sequence[str],
    cutoffs: Sequence[int],
    seen: Seen = "mask",
    on_progress: OnProgress,
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Return mean metrics such as `recall@20` of a bundle on held-out users.

    They are of users read from their histories; and of the same users from their learned vectors where the bundle has
    one, None where it has none for any of `user_ids`.
    """
    candidate_ND, history_NH = encode_catalogue(bundle, dataset, on_progress=on_progress)

    def queries(piece: slice) -> Vectors:
        length = bundle.manifest.history_length
        rows_BL, mask_BL = pad_histories(users, piece, length=length)
        return bundle.encode_users(history_NH[rows_BL], mask_BL, pad_user_ages(users, piece, length=length))

    def score(piece: slice) -> Tensor:
        on_progress("users", piece.stop, len(users))
        return score_in_pieces(bundle, queries(piece), candidate_ND)

    metrics = evaluate_scores(score, users, num_items=dataset.num_items, cutoffs=cutoffs, seen=seen)
    known = open_known_users(bundle.path, bundle.manifest)
    rows_B = np.array([-1 if known is None else known.row(user_id) for user_id in user_ids], np.int64)
    if known is None or (rows_B < 0).all():
        return metrics, None
    query_BQD = queries(slice(None))
    query_BQD[rows_B >= 0] = known.vectors[rows_B[rows_B >= 0]]

    def score_known(piece: slice) -> Tensor:
        return score_in_pieces(bundle, query_BQD[piece], candidate_ND)

    return metrics, evaluate_scores(score_known, users, num_items=dataset.num_items, cutoffs=cutoffs, seen=seen)


def _users(bundle: Bundle, dataset: Dataset, interactions: Interactions, config: RunConfig, which: Which) -> HeldOut:
    if which == "all":
        return all_users(interactions, seen=config.eval.seen).with_candidates(config.eval.sampled, interactions)
    if dataset.fingerprint() != bundle.manifest.data_fingerprint:
        raise ValueError(
            f"{dataset.path}: is not the folder that the bundle was trained on ({bundle.manifest.dataset_name}), so "
            "its test users are unknown here; --split all judges it on every user of this folder"
        )
    evaluation = config.eval
    split = make_split(interactions, config.split, seed=config.seed, seen=evaluation.seen, sampled=evaluation.sampled)
    return split.test
