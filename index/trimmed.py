"""Which changes of items are forgotten where they were kept, so that an index has them from its dataset or not at all.

The service's store of changes is trimmed of what the indexes have folded in; the store of versions remembers up to
where (`TRIMMED`), because a rebuild sees that one alone.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from api_schemas.manifest import SnapshotManifest
from index.aliases import AliasStore
from index.artefacts import MANIFEST, read_document, write_durably
from index.dataset import Dataset
from index.store import ArtifactStore


class _Trimmed(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    changes_seq: NonNegativeInt
    """Changes up to here may be forgotten."""


def note_trimmed(store: ArtifactStore, *, up_to: int) -> None:
    """Remember that changes are about to be forgotten.

    Raises:
        ArtefactError: What is remembered already can not be read.
        OSError: It can not be written.
    """
    with store.locked():
        if up_to > trimmed_to(store):
            write_durably(_file_of(store), _Trimmed(changes_seq=up_to).model_dump_json().encode() + b"\n")


def folded_in_use(store: ArtifactStore) -> int:
    """Return up to which change every index has them that answers now, or would after a rollback; 0: none is current.

    Raises:
        ArtefactError: `CURRENT`, an alias or one of the indexes can not be read.
    """
    if store.current() is None:
        return 0
    targets = [target for alias in AliasStore(store).all() for target in (alias.target, alias.rollback_to)]
    versions = {version for target in targets if target is not None for version in target.versions}
    return min(read_document(store.path_of(version) / MANIFEST, SnapshotManifest).changes_seq for version in versions)


def trimmed_to(store: ArtifactStore) -> int:
    """Return up to which change they may be forgotten; 0: none is.

    Raises:
        ArtefactError: It can not be read.
    """
    file = _file_of(store)
    return read_document(file, _Trimmed).changes_seq if file.exists() else 0


def check_complete(store: ArtifactStore, dataset: Dataset) -> None:
    """Return when a dataset has all changes that are forgotten.

    Raises:
        ValueError: An index of it would be without some, and nothing could bring them back.
        ArtefactError: What is forgotten can not be read.
    """
    done, forgotten = dataset.manifest.changes_seq, trimmed_to(store)
    if done < forgotten:
        raise ValueError(
            f"{dataset.path}: has the changes of items up to {done}, and those up to {forgotten} were trimmed: rebuild "
            "from a folder that they were folded into; one that has them from elsewhere says so with changes_seq in "
            "its dataset.json"
        )


def _file_of(store: ArtifactStore) -> Path:
    return store.root / "TRIMMED"
