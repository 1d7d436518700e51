"""Reasons and caveats in words that say what was computed and no more.

Attribution is not causation: the words are associative, except for the methods that really take something away and look
at the score again (occlusion, Shapley).
"""

from collections.abc import Mapping, Sequence

from service.recommend.types import ItemId, Method, Reason, Vectors

Titles = Mapping[ItemId, str]

HISTORY_MODALITY = "history_modality"
OWN_MODALITY = "own_modality"
POPULAR = "popular"

COUNTERFACTUAL: frozenset[Method] = frozenset({"occlusion", "shapley"})

_MAX_EVIDENCE = 3

_ADDED: Mapping[str, str] = {
    "id": "learned identity",
    "bias": "general appeal",
    "transitions": "place in usual sequences",
}
"""What people call the parts that a model adds to the modalities."""

_METHOD_CAVEATS: Mapping[Method, str] = {
    "interest_gradient": "Interests are mean gradients of the score: they say where the score is sensitive, not what"
    " it is made of.",
    "grad_x_input": "Gradient times input is a first-order estimate of each part's share of the score.",
    "decomposition": "Contributions are exact with the weights that the model gave to the parts; in a model with"
    " attention, removing a part would change those weights too.",
    "occlusion": "Each value is the change of the score when that one part is taken away; the values do not add up.",
    "shapley": "Contributions split the score over the modalities of the history, averaged over all combinations; the"
    " residual is the score of an empty history.",
}


_SHAPLEY_ITEMS = " Past items and their modalities are rated by {}."

_SUMMED_CAVEAT = (
    "Contributions are those of the user's interests together, each weighted by what it gives this item; the residual"
    " is what several interests add by agreeing on it."
)
"""Of `decomposition` where the score is no single inner product."""


def reasons_for(
    method: Method,
    *,
    names: Sequence[str],
    num_modalities: int,
    item_ids: Sequence[ItemId],
    interest_M: Vectors,
    grid_LM: Vectors,
    contributions: Mapping[str, float],
    titles: Titles,
) -> tuple[Reason, ...]:
    """Return what speaks most for one candidate: a part of the history, then one of its own.

    Args:
        method: Where the numbers come from.
        names: Of the parts: modalities first, then what the model adds.
        num_modalities: How many of them are modalities.
        item_ids: The past items.
        interest_M: What each part of the history says for the candidate.
        grid_LM: What each part of each past item says for it.
        contributions: Its score by part.
        titles: What people call the past items.
    """
    nouns = [*names[:num_modalities], *(_ADDED.get(name, name) for name in names[num_modalities:])]
    reasons: list[Reason] = []
    # The decomposition splits the candidate's side, so it says nothing of the history's modalities; its grid does.
    for_history_M = grid_LM.sum(axis=0) if method == "decomposition" else interest_M
    modality = int(for_history_M.argmax())
    if for_history_M[modality] > 0:
        values = grid_LM[:, modality].tolist()
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        places = [place for place in order[:_MAX_EVIDENCE] if values[place] > 0]
        evidence = tuple(item_ids[place] for place in places)
        if evidence:
            best = float(for_history_M[modality]) if method == "shapley" else values[places[0]]
            text = _history_text(method, nouns[modality], [titles[item_id] for item_id in evidence], best)
            reasons.append(Reason(HISTORY_MODALITY, text, evidence))
    if contributions and method != "shapley":  # its contributions are those of the history's modalities
        name = max(contributions, key=lambda modality: contributions[modality])
        if contributions[name] > 0:
            place = list(names).index(name)
            text = _own_text(method, nouns[place], contributions[name], is_modality=place < num_modalities)
            reasons.append(Reason(OWN_MODALITY, text, ()))
    return tuple(reasons)


def _history_text(method: Method, modality: str, titles: Sequence[str], value: float) -> str:
    if method == "occlusion":
        return f"Without the {modality} of {_quoted(titles[0])} in the history, the score would be {value:.3g} lower."
    listed = " and ".join(map(_quoted, titles))
    if method == "shapley":
        return f"The {modality} of the history adds {value:.3g} to the score; most associated with it: {listed}."
    return f"Associated most with the {modality} of {listed} in the history."


def _own_text(method: Method, modality: str, value: float, *, is_modality: bool) -> str:
    if method == "occlusion":
        return f"Without its own {modality} the score would be {value:.3g} lower."
    if not is_modality:
        return f"Its {modality} goes with the largest part of the score."
    return f"Of its own modalities, {modality} goes with the largest part of the score."


def _quoted(title: str) -> str:
    return f"“{title}”"


def popular_reason() -> Reason:
    """Return the reason of a line that no history speaks for."""
    return Reason(POPULAR, "Popular in the whole catalogue; no history speaks for it.", ())


def caveats_for(
    method: Method,
    *,
    measured: bool,
    additive: bool | None,
    any_popular: bool,
    any_brought: bool,
    from_history: bool = True,
    has_gradients: bool = True,
) -> tuple[str, ...]:
    """Return what a reader must know before trusting an explanation.

    Args:
        method: How it was made.
        measured: Faithfulness was measured for this model and method.
        additive: Contributions and residual sum to the score; None: nothing was attributed.
        any_popular: Some lines are there because they are popular.
        any_brought: Some past items are known by their vectors alone.
        from_history: The user was read from a history; else from what the model has learned of the user.
        has_gradients: The model can be differentiated; a ranker can not.
    """
    caveats: list[str] = []
    if additive is not None:
        caveat = _SUMMED_CAVEAT if method == "decomposition" and not additive else _METHOD_CAVEATS[method]
        if method == "shapley":
            caveat += _SHAPLEY_ITEMS.format("gradient times input" if has_gradients else "occlusion")
        caveats.append(caveat)
        if method not in COUNTERFACTUAL:
            caveats.append("Associations, not causes.")
        if not additive:
            caveats.append("What the method says of the parts does not sum to the score.")
        if not from_history:
            caveats.append("There is no history: the scores come from what the model has learned of this user.")
        elif not measured:
            caveats.append("The faithfulness of this method was not measured for this model.")
    if any_popular:
        caveats.append("Popular items are not explained by the history.")
    if any_brought:
        caveats.append("Some past items are unknown to the catalogue and were read from the vectors given.")
    return tuple(caveats)
