"""`python -m claims [--tags test,slow] [--only WORD]`: measure what the project states, and print it beside its bar."""

import argparse
import sys

from claims import (  # noqa: F401  (rows enter here)
    book,
    chapter1,
    codec,
    core,
    frontier,
    language,
    nca,
    people,
    pictures,
    speed,
)
from claims.table import CLAIMS, TAGS, line, report
from nnbook.results import origin


def main() -> int:
    """Returns 1 where a row was missed."""
    parser = argparse.ArgumentParser("claims", description=__doc__)
    parser.add_argument(
        "--tags", default=",".join(TAGS), help=f"of {', '.join(TAGS)}; all by default"
    )
    parser.add_argument("--only", default="", help="rows that hold this word")
    given = parser.parse_args()
    tags = given.tags.split(",")
    if unknown := set(tags) - set(TAGS):
        parser.error(
            f"--tags: {', '.join(sorted(unknown))} is not known; give some of {', '.join(TAGS)}"
        )
    told = origin(book.ROOT)
    print(
        f"{told['date']}, {told['processor']}, GPU {told['GPU']}, commit {told['commit']}\n{told['versions']}\n"
    )
    print(line(None, "measured", "verdict"))
    rows = [row for row in CLAIMS if row.tag in tags and given.only.lower() in row.what.lower()]
    return 0 if report(rows, lambda text: print(text + "\n", flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
