"""Writes texts.snappy.parquet and texts.zstd.parquet: the same 40 texts, several row groups and pages, by pyarrow.

Run by hand as `python make.py` in this folder; tests read the files only.
"""

import pyarrow as pa
import pyarrow.parquet as pq

texts = [f"Document {i}: " + "naïve café 漢字 😀 line\n" * (i % 5) for i in range(40)]
table = pa.table({"id": list(range(40)), "text": texts, "score": [i / 7 for i in range(40)]})
for codec in ("snappy", "zstd"):
    pq.write_table(table, f"texts.{codec}.parquet", compression=codec, row_group_size=16, data_page_size=256)
nulls = pa.table({"text": ["one", None, "three"]})
pq.write_table(nulls, "null.parquet")
