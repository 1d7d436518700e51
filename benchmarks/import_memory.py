"""Time and peak memory of importing a MovieLens-like folder of 20 million ratings, and of validating the result.

    python benchmarks/import_memory.py --ratings 20000000 --work /tmp/import-memory

The ratings are generated: 138,000 users, 27,000 films, popular films rated more often, lines in random order of users
(the published files are in order of users, which is kinder). Each command runs in a process of its own, so that its
peak is not that of the generator.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

NUM_USERS, NUM_MOVIES = 138_000, 27_000
CHUNK = 1_000_000


def write_source(folder: Path, num_ratings: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    genres = np.array(["Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi"])
    with (folder / "movies.csv").open("w", encoding="utf-8") as file:
        file.write("movieId,title,genres\n")
        for movie in range(1, NUM_MOVIES + 1):
            file.write(f'{movie},"Film {movie}, The ({1950 + movie % 70})",{"|".join(rng.choice(genres, 2))}\n')
    options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
    with (folder / "ratings.csv").open("wb") as file:
        file.write(b"userId,movieId,rating,timestamp\n")
        for start in range(0, num_ratings, CHUNK):
            size = min(CHUNK, num_ratings - start)
            table = pa.table(
                {
                    "userId": rng.integers(1, NUM_USERS + 1, size),
                    "movieId": (NUM_MOVIES * rng.random(size) ** 3).astype(np.int64) + 1,
                    "rating": rng.integers(1, 11, size) / 2,
                    "timestamp": rng.integers(789_652_009, 1_427_784_002, size),
                }
            )
            pa.csv.write_csv(table, file, options)


def measured(*arguments: str) -> dict[str, float]:
    """Run a command of the product in a fresh process and return its wall time and peak resident memory."""
    code = (
        "import resource, sys; from training.data.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print('peak_kb', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, check=False)
    wall_s = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak_kb = int(done.stderr.rsplit("peak_kb", 1)[1])
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu.ru_utime + cpu.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mb": round(peak_kb / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=int, default=20_000_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for source and result; removed afterwards")
    options = parser.parse_args()
    source, target = options.work / "ml", options.work / "imported"
    write_source(source, options.ratings)
    size_mb = (source / "ratings.csv").stat().st_size / 1e6
    try:
        result = {
            "ratings": options.ratings,
            "ratings_csv_mb": round(size_mb),
            "import": measured("import", "movielens", str(source), str(target)),
            "validate": measured("validate", str(target)),
        }
    finally:
        shutil.rmtree(options.work)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
