"""Write the interactions of an import in time order within each user, in bounded memory."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent
from training.data.importers.sources import SourceBatch
from training.data.importers.spill import UserBuckets


def write_interactions(
    writer: DatasetWriter,
    batches: Iterable[SourceBatch],
    *,
    item_ids: Sequence[str],
    source_bytes: int,
    on_progress: Reporter = silent,
) -> None:
    """Sort what the batches bring (columns as in interactions.parquet) and write it.

    Raises:
        SourceError: An interaction names an item that the source does not have, or a timestamp is negative; names
            file and line.
    """
    known = pa.array(item_ids, pa.string())
    with UserBuckets(writer.staging / "sorting", source_bytes=source_bytes) as buckets:
        for batch in batches:
            unknown = ~np.asarray(pc.is_in(batch.table["item_id"], value_set=known), dtype=np.bool_)
            batch.refuse(unknown, "item {value!r} is not among the items", column="item_id")
            negative = np.asarray(pc.less(batch.table["timestamp"], 0), dtype=np.bool_)
            batch.refuse(negative, "timestamp {value} is negative", column="timestamp")
            buckets.add(batch.table)
        for table in buckets.tables(["timestamp"]):
            writer.add_interactions(table)
            on_progress("interactions in order", writer.num_interactions, buckets.num_rows)
