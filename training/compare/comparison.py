"""A whole comparison: from configurations and a data set to a leaderboard in a folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from index.artefacts import write_durably
from index.dataset import Dataset
from index.locks import exclusive
from training.compare.leaderboard import Leaderboard, make_leaderboard
from training.compare.markdown import to_markdown
from training.compare.progress import Teller
from training.compare.space import Entrant
from training.compare.tournament import Tournament
from training.compare.workers import Workers
from training.data.interactions import read_interactions
from training.data.split import make_split

LEADERBOARD_FILES = ("leaderboard.md", "leaderboard.json")


def compare(
    entrants: Sequence[Entrant],
    dataset: Dataset,
    *,
    out: Path,
    seeds: Sequence[int],
    num_trials: int,
    against: str | None,
    workers: Callable[[], AbstractContextManager[Workers]],
    tell: Teller,
    should_stop: Callable[[], bool],
) -> Leaderboard:
    """Tune, train and judge what is not done yet, and write the leaderboard.

    Args:
        entrants: Models, judged by the same figures on the same users; from `training.compare.space.enter`.
        dataset: Opened folder.
        out: Folder of everything that the comparison makes; what is in it is not done again.
        seeds: The first is that of the trials.
        num_trials: As they were drawn with.
        against: Model that the others are compared with; the best other one where it is None.
        workers: Makes what does the runs; not called when nothing is to be done.
        tell: Hears of each run that ends.
        should_stop: Asked between runs and twice a second; True leaves checkpoints and raises.

    Raises:
        Stopped: `should_stop` said so.
        RunError: A run could not be done for a reason that is not its own.
        ValueError: The data can not be split, there are no test users, a file in the folder is damaged, or another
            comparison works in it.
    """
    config = entrants[0].config
    split = make_split(read_interactions(dataset), config.split, seed=seeds[0], seen=config.eval.seen)
    if len(split.test) == 0:
        raise ValueError("the split has no test users to compare models on")
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        tournament = Tournament(entrants, dataset, seeds=seeds, monitor=config.eval.monitor, out=out)
        if any(standing.to_do for standing in tournament.standings()):
            with workers() as these:
                tournament.play(these, tell=tell, should_stop=should_stop)
        board = make_leaderboard(
            tournament.standings(),
            tournament.records,
            dataset,
            seeds=seeds,
            num_trials=num_trials,
            against=against,
        )
        markdown, document = LEADERBOARD_FILES
        write_durably(out / markdown, to_markdown(board).encode())
        write_durably(out / document, board.model_dump_json(indent=2).encode() + b"\n")
    return board


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder while the block runs."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(out / ".lock", wait=False))
        except BlockingIOError:
            raise ValueError(f"{out}: another comparison is working in this folder") from None
        yield
