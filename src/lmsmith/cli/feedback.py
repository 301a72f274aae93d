"""``lmsmith feedback``: what people judged, as files that a recipe reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lmsmith.cli.output import print_json
from lmsmith.core.extras import needs_extra


def export(
    folder: Path,
    database: Annotated[str, tyro.conf.arg(metavar="FILE")] = "feedback.db",
    held_out: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0,
    with_liked: bool = False,
    json: bool = False,
) -> int:
    """Write conversations.jsonl (demonstrations), rankings.jsonl and ratings.jsonl.

    A recipe reads the first two by data.conversations and data.rankings.

    Args:
        folder: Where to; is made if it is missing, and files of an earlier export are replaced.
        database: A file, or a URL such as postgresql://host/name.
        held_out: Share of the people whose rows go to FOLDER/held_out, to measure on.
        with_liked: Answers that were thumbed up are demonstrations too.
        json: Print the files and their rows as one JSON object.
    """
    with needs_extra("serve"):
        from lmsmith.feedback import exporting
    from lmsmith.core.errors import UserError
    from lmsmith.feedback.store import Store

    if "://" not in database and not Path(database).is_file():
        raise UserError(f"{database}: no such file", "name the server's database: --database FILE")
    store = Store(database)
    try:
        counts = exporting.export(store, folder, held_out=held_out, with_liked=with_liked)
    finally:
        store.close()
    if json:
        print_json({"folder": str(folder), "rows": counts})
        return 0
    for name, count in counts.items():
        if count:
            print(f"{folder / name}: {count:,} rows")
    if not any(counts.values()):
        print("nobody has judged anything yet")
    return 0
