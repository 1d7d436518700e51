"""Publishes a bundle of a store once more, again and again, until it is killed: `publisher.py STORE BUNDLE`."""

import shutil
import sys
from pathlib import Path

from index.store import ArtifactStore


def main() -> None:
    """Say `ready`, then publish for ever."""
    store, version = ArtifactStore(Path(sys.argv[1])), sys.argv[2]
    path, manifest = store.open_bundle(version)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        with store.stage("bundle") as stage:
            shutil.copytree(path, stage.path, dirs_exist_ok=True)
            stage.publish(manifest)


if __name__ == "__main__":
    main()
