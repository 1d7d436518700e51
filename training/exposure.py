"""How exposed new items are in a content model that also knows items as such, by known ones that are taken for new.

Legend: `N` items of the catalogue, `X` of them taken for new, `B` users, `M` modalities, `P` parts, `Q` queries, `D`
width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from api_schemas.manifest import MAX_EXPOSURE, MIN_EXPOSURE, ColdItems
from training.data.catalogue import Catalogue
from training.data.split import HeldOut
from training.evaluate import encode_catalogue, pad_histories, pad_user_ages, tensor_of
from training.factors.cold import MAX_USERS, exposure_ratio
from training.factors.gate import ServingError
from training.models import ServableModel

_HELD_OUT = 0.1
"""Of the items that have a state of their own."""


@torch.inference_mode()
def measure_exposure(
    model: ServableModel, own_X: Tensor, catalogue: Catalogue, users: HeldOut, *, seed: int
) -> ColdItems:
    """Return how often items are listed of which no more than content is known, beside what their number is.

    Args:
        model: Trained, in evaluation mode, and at home in what the catalogue gives.
        own_X: Items that it knows as such.
        catalogue: Of the training.
        users: Not trained on; they are read from their histories, in which all items are known.
        seed: Chooses the items.

    Raises:
        ServingError: New items would be hidden, or flood the lists.
    """
    mixed_ND = encode_catalogue(model, catalogue, model.fuse)
    rows_NH = encode_catalogue(model, catalogue, model.history_rows)
    order_X = torch.from_numpy(np.random.default_rng([seed, 29]).permutation(len(own_X)))
    new_X = own_X[order_X[: max(1, round(len(own_X) * _HELD_OUT))]]
    features, presence_XM = catalogue.inputs(new_X)
    presence_XP = F.pad(presence_XM, (0, 1), value=True)  # an item of a catalogue has that part, whatever its content
    mixed_ND[new_X] = model.fuse(model.project(features, presence_XM), presence_XP)
    some = slice(None, None, max(1, -(-len(users) // MAX_USERS)))
    rows_BL, mask_BL = (torch.from_numpy(array) for array in pad_histories(users, some, length=model.history_length))
    ages_BL = tensor_of(pad_user_ages(users, some, length=model.history_length))
    queries_BQD: Tensor = model.encode_users(rows_NH[rows_BL], mask_BL, ages_BL)
    ratio = exposure_ratio(model.score, queries_BQD, mixed_ND, new_X, users.histories[some])
    if not MIN_EXPOSURE <= ratio <= MAX_EXPOSURE:
        raise ServingError(
            f"items that are known by their content alone have {ratio:.2f} times their share of users' lists; what may "
            f"be published is {MIN_EXPOSURE:g} to {MAX_EXPOSURE:g} (model.id_dropout, beside)"
        )
    return ColdItems(imputation="unknown", exposure_ratio=ratio, num_items=len(new_X), num_users=len(queries_BQD))
