"""The leaderboard as a table for people."""

from collections.abc import Iterable, Sequence

from training.compare.leaderboard import Against, Figure, Leaderboard, ModelResult

_METRICS = {"recall": "Recall", "precision": "Precision", "ndcg": "NDCG"}


def to_markdown(board: Leaderboard) -> str:
    """Return the leaderboard in Markdown: ranking, paired differences, cost, and what has failed."""
    means = "" if len(board.seeds) == 1 else ": mean ± deviation"
    lines = [
        f"# {board.data}: {len(board.models)} models by {_titled(board.monitor)}",
        "",
        f"- Test users: {_users(board)}. Split: {_split(board)}. Seen items: {board.seen}.",
        f"- Settings: each model's best of at most {board.num_trials} trials on validation, seed {board.seeds[0]}.",
        f"- Figures: of test users, trained with the seeds {', '.join(map(str, board.seeds))}{means}.",
        "",
        "## Ranking",
        "",
        f"In the whole catalogue, best {_titled(board.monitor)} first. NDCG is the standard one.",
        *(["*From history*: users read as those are whom the model has not learned."] if _has_history(board) else []),
        "",
        *_ranking(board),
        *_sampled(board),
        "",
        "## Differences",
        "",
        f"Of {_titled(board.monitor)}, relative to the other model's, by a paired bootstrap of {board.resamples:,}",
        "resamples of users, averaged over seeds. p is two-sided, and not corrected for the number of comparisons.",
        "",
        *_differences(board.models),
        "",
        "## Cost",
        "",
        f"Seconds on {board.cores} cores, with validations; threads of a run: {', '.join(map(str, board.threads))}.",
        "An epoch is one pass over the training pairs.",
        "",
        *_costs(board.models),
    ]
    notes = [f"- **{one.name}** is not ranked: {_listed(one.reasons)}" for one in board.unranked]
    for one in board.models:
        notes += [f"- {one.name}, seed {seed}, failed: {reason}" for seed, reason in one.failed_seeds.items()]
        failed = [trial.failed for trial in one.trials if trial.failed is not None]
        if failed:
            notes.append(f"- {one.name}: {len(failed)} of {len(one.trials)} trials failed: {_listed(failed)}")
    return "\n".join([*lines, *(["", "## Failed", "", *notes] if notes else [])]) + "\n"


def _ranking(board: Leaderboard) -> list[str]:
    shown = [f"{metric}@{k}" for metric in _METRICS for k in board.cutoffs]
    recalls = [f"recall@{k}" for k in board.cutoffs]
    has_history = _has_history(board)
    head = ["model", *map(_titled, shown)]
    head += [f"{_titled(name)} from history" for name in recalls] if has_history else []
    rows = []
    for one in board.models:
        row = [one.name, *(_figure(one.test.get(name)) for name in shown)]
        if has_history:
            row += [_figure((one.test_from_history or {}).get(name)) for name in recalls]
        rows.append(row)
    return _table(head, rows)


def _sampled(board: Leaderboard) -> list[str]:
    """Return the figures among drawn candidates in a table of their own, if there are any."""
    if board.sampled is None:
        return []
    n = board.sampled.n
    among = f"among {n:,} items in all" if board.sampled.rule == "total" else f"against {n:,} others"
    metrics = {"recall": "Recall", "ndcg": "NDCG", "ndcg_untruncated": "NDCG untruncated"}
    named = {
        board.sampled.named(f"{metric}@{k}"): board.sampled.named(f"{title}@{k}").replace("_", " ")
        for metric, title in metrics.items()
        for k in board.cutoffs
    }
    return [
        "",
        "## Sampled",
        "",
        f"A user's targets {among}, at random of what the user never had. These figures can be held against tables of",
        "papers that do so and against nothing else; models are ranked, chosen and compared by the whole catalogue.",
        "",
        *_table(
            ["model", *named.values()],
            [[one.name, *(_figure(one.test.get(name)) for name in named)] for one in board.models],
        ),
    ]


def _differences(models: Sequence[ModelResult]) -> list[str]:
    rows = [[one.name, one.against.name, *_difference(one.against)] for one in models if one.against is not None]
    if not rows:
        return ["There is nothing to compare with."]
    return _table(["model", "against", "difference", "95 %", "p"], rows)


def _difference(found: Against) -> list[str]:
    if found.relative is None or found.relative_interval is None:
        low, high = found.interval
        return [f"{found.difference:+.4f} absolute", f"{low:+.4f} to {high:+.4f}", f"{found.p:.4f}"]
    low, high = found.relative_interval
    return [f"{found.relative:+.1%}", f"{low:+.1%} to {high:+.1%}", f"{found.p:.4f}"]


def _costs(models: Sequence[ModelResult]) -> list[str]:
    head = ["model", "s / epoch", "epochs", "s / run", "s in all", "parameters", "trials", "chosen"]
    rows = [
        [
            one.name,
            "" if one.seconds_per_epoch is None else f"{one.seconds_per_epoch:,.2f}",
            f"{one.epochs:,.1f}",
            f"{one.seconds:,.1f}",
            f"{one.seconds_of_all:,.1f}",
            f"{one.num_parameters:,}",
            str(len(one.trials)),
            ", ".join(f"{key}={value}" for key, value in one.settings.items()) or "its own",
        ]
        for one in models
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.mean:.4f}" + (f" ± {figure.deviation:.4f}" if len(figure.values) > 1 else "")


def _titled(metric: str) -> str:
    name, _, cutoff = metric.partition("@")
    return f"{_METRICS.get(name, name)}@{cutoff}"


def _has_history(board: Leaderboard) -> bool:
    return any(one.test_from_history for one in board.models)


def _split(board: Leaderboard) -> str:
    if board.split["kind"] != "folds":
        return str(board.split["kind"])
    return f"fold {board.split['fold']} of {board.split['folds']}"


def _users(board: Leaderboard) -> str:
    counts = sorted(set(board.num_test_users))
    return " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))


def _listed(reasons: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(reasons)) or "it has no figures"
