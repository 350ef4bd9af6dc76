"""Two readers that are not ours count the rows of the lake's Delta tables: DuckDB and Polars.

    lake_readers.py --lake DIR          DIR/events and DIR/bodies
    lake_readers.py --self-check        makes a small lake and reads it

Prints one JSON object: the rows of `events` and `bodies` as each reader counts them, the rows of
`events` by `kind` (a missing kind is "null"), and the versions of both. Touches no network: the
Delta extension of DuckDB is a file of a PyPI package. Exit: 0 both could read and agree, 1 they
differ, 2 one could not read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

TABLES = ("events", "bodies")


def by_duckdb(lake: Path) -> dict[str, Any]:
    extension = f"extensions/v{duckdb.__version__}/delta.duckdb_extension"
    connection = duckdb.connect()
    connection.execute(f"LOAD '{files('duckdb_extension_delta') / extension}'")

    def ask(query: str, table: str) -> list[tuple[Any, ...]]:
        return connection.execute(query, [str(lake / table)]).fetchall()

    counts = {table: ask("SELECT count(*) FROM delta_scan(?)", table)[0][0] for table in TABLES}
    kinds = ask("SELECT coalesce(kind, 'null'), count(*) FROM delta_scan(?) GROUP BY 1", "events")
    return counts | {"kinds": dict(sorted(kinds))}


def by_polars(lake: Path) -> dict[str, Any]:
    tables = {table: pl.scan_delta(str(lake / table)) for table in TABLES}
    counts = {name: table.select(pl.len()).collect().item() for name, table in tables.items()}
    kind = pl.col("kind").cast(pl.String).fill_null("null")
    kinds = tables["events"].group_by(kind).agg(pl.len()).collect().rows()
    return counts | {"kinds": dict(sorted(kinds))}


def read(lake: Path) -> dict[str, Any]:
    counted = {"duckdb": by_duckdb(lake), "polars": by_polars(lake)}
    versions = {name: version(name) for name in ("duckdb", "polars", "deltalake")}
    return counted | {"agree": counted["duckdb"] == counted["polars"], "versions": versions}


def make_lake(lake: Path) -> None:
    """A lake of two commits in two days, with a kind that is missing."""
    from deltalake import write_deltalake

    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]
    for day in days:
        kinds = ["call.requested", "call.ended", None]
        events = pl.DataFrame({"event_date": [day] * 3, "kind": kinds, "seq": [0, 1, 2]})
        bodies = pl.DataFrame({"event_date": [day], "body": ["b"], "bytes": [b"\x00\xff"]})
        for table, rows in (("events", events), ("bodies", bodies)):
            write_deltalake(str(lake / table), rows, mode="append", partition_by=["event_date"])


def self_check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        make_lake(Path(folder))
        counted = read(Path(folder))
    expected = {"events": 6, "bodies": 2, "kinds": {"call.ended": 2, "call.requested": 2, "null": 2}}
    print(json.dumps(counted))
    return 0 if counted["agree"] and counted["duckdb"] == expected else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lake", type=Path, help="the folder with the tables events and bodies")
    what.add_argument("--self-check", action="store_true", help="read a lake made for it")
    options = parser.parse_args()
    try:
        if options.self_check:
            return self_check()
        counted = read(options.lake.absolute())
    except Exception as error:  # either library raises whatever it likes
        print(f"lake_readers: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counted))
    return 0 if counted["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
