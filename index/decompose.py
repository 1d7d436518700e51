"""The scores of queries that no history is behind, split by what the candidates are made of.

Legend: `K` candidates, `M` parts of an item (its modalities, then what the model adds), `S` state width, `D` vector
width, `Q` queries.
"""

import numpy as np

from index.bundle import Bundle
from index.explain import ExplanationArrays, Mask, Vectors, lost_without_parts
from index.ranking import over_queries


def decompose(
    bundle: Bundle, *, queries_QD: Vectors, candidate_states_KMS: Vectors, candidate_presence_KM: Mask
) -> ExplanationArrays:
    """Split the scores of K candidates: an item's vector is the sum of its parts, so its inner products are, too.

    A ranker's scores are no sum: a part has what the score loses without it, as in `occlusion`. With no history there
    is nothing to say of one: `history_KL` and `grid_KLM` have no items, and a part's interest is its contribution. The
    residual is rounding; of a log-sum-exp it is the entropy of the weights of the queries.

    Args:
        bundle: A model that learns users: unless it is a ranker, the first D numbers of a state are what the part adds
            to the item's vector.
        queries_QD: Of one user.
        candidate_states_KMS: What lies where a part is absent does not matter.
        candidate_presence_KM: Which parts each candidate has.
    """
    candidates_KD = bundle.encode_states(candidate_states_KMS, candidate_presence_KM).candidates
    scorer = bundle.manifest.scorer
    if scorer == "ranker":
        scores_K = bundle.score(queries_QD[np.newaxis], candidates_KD)[0]
        contributions_KM = lost_without_parts(bundle, queries_QD, scores_K, candidate_states_KMS, candidate_presence_KM)
    else:
        products_KQ = candidates_KD @ queries_QD.T
        scores_K = over_queries(products_KQ, axis=1, scorer=scorer)
        if scorer == "max":
            query_KD = queries_QD[products_KQ.argmax(axis=1)]
        else:
            query_KD = np.exp(products_KQ - scores_K[:, None]) @ queries_QD  # the softmax over queries
        vectors_KMD = candidate_states_KMS[:, :, : queries_QD.shape[1]]
        present_KMD = np.where(candidate_presence_KM[:, :, None], vectors_KMD, np.float32(0))
        contributions_KM = np.einsum("kmd,kd->km", present_KMD, query_KD)
    num_candidates, num_parts = candidate_presence_KM.shape
    return ExplanationArrays(
        scores_K=scores_K,
        interest_KM=contributions_KM,
        history_KL=np.zeros((num_candidates, 0), dtype=np.float32),
        grid_KLM=np.zeros((num_candidates, 0, num_parts), dtype=np.float32),
        contributions_KM=contributions_KM,
        residual_K=scores_K - contributions_KM.sum(axis=1),
        additive=scorer == "max",
    )
