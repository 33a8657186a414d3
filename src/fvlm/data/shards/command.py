"""`fvlm shard FOLDER --out DIR`: decode a folder into WebDataset shards with ledgers, or make one of its shards."""

import argparse
import os
import re
import sys
from pathlib import Path

from fvlm.data.readers import READERS, Row, count_rows, read_rows, rows_per_shard
from fvlm.data.readers.files import ALL
from fvlm.data.shards.kept import bring_back, keep, made_from
from fvlm.data.shards.shard_folder import shard_folder
from fvlm.data.shards.write import checksum_of, is_complete, make_numbered, shard_paths
from fvlm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fvlm.data.decode.video import BACKENDS  # loads the decoders

    parser.add_argument(
        "folder", type=Path, help="folder with the media files, and their table if there is one; or one file"
    )
    parser.add_argument(
        "--reader", choices=READERS, help="format of the folder (default: folder, or files without a table)"
    )
    parser.add_argument("--table", help="table in the folder; a wildcard or {00000..00099} names several")
    parser.add_argument("--out", type=Path, required=True, help="folder for 00000.tar, 00000.ledger.jsonl, ...")
    parser.add_argument("--name", help="name of the source (default: the folder's name)")
    parser.add_argument(
        "--kind",
        choices=("video", "image", "text", "preference"),
        default="video",
        help="kind of the samples (default: video)",
    )
    parser.add_argument("--prompt", default="Describe the video.", help="question for rows with only a caption")
    parser.add_argument("--squash", action="store_true", help="squash frames to 224 x 224 instead of cropping")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="rows of one shard (default: 1000)")
    parser.add_argument("--shard", type=int, help="make only this shard, counted from 0")
    parser.add_argument(
        "--last", action="store_true", help="with --shard: refuse if the table has rows after this shard"
    )
    parser.add_argument("--keep", action="store_true", help="with --shard: keep the shard if its job fails later")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="decoding processes (default: all cores)"
    )
    parser.add_argument("--deadline", type=float, default=60, help="seconds for one file (default: 60)")
    parser.add_argument("--max-reject", type=float, default=0.5, help="largest share of rejected rows (default: 0.5)")
    parser.add_argument("--backend", choices=BACKENDS, default="pyav", help="decoder to try first (default: pyav)")


def main(args: argparse.Namespace) -> None:
    """Shard a folder, or make one of its shards."""
    for option, value in (("samples-per-shard", args.samples_per_shard), ("processes", args.processes)):
        if value < 1:
            raise UserError(f"--{option} {value}: expected 1 or more")
    if args.deadline <= 0:
        raise UserError(f"--deadline {args.deadline:g}: expected more than 0 seconds")
    try:
        _make(args)
    except OSError as error:
        raise UserError(
            f"{error.filename or args.out}: {error.strerror or error}; correct this, and the same command resumes"
        ) from error


def _make(args: argparse.Namespace) -> None:
    if args.folder.is_file() and args.reader is None and args.table is None:
        args.reader, args.table, args.folder = "files", args.folder.name, args.folder.parent
        args.name = args.name or Path(args.table).stem
    args.reader = args.reader or reader_of(args.folder, args.table)
    args.table = READERS[args.reader].table if args.table is None else args.table
    args.name = re.sub(r"[^A-Za-z0-9_-]+", "_", args.name or args.folder.resolve().name) or "source"
    if args.reader == "files" and args.table == ALL and args.out.resolve().is_relative_to(args.folder.resolve()):
        raise UserError(
            f"--out {args.out} is in the folder whose files are the inputs; name a folder outside of {args.folder}"
        )
    if args.shard is None:
        shard_folder(args)
    elif is_complete(*shard_paths(args.out, args.shard)):
        print(f"{shard_paths(args.out, args.shard)[0]}: finished before", file=sys.stderr)
    else:
        _make_one(args, rows_of_shard(args, args.shard))


def _make_one(args: argparse.Namespace, rows: list[Row]) -> None:
    """Make one shard; with --keep, restore it if an earlier job made it from the same inputs."""
    tar, listed = shard_paths(args.out, args.shard)
    files = (tar, listed, checksum_of(tar))
    names = ("name", "kind", "prompt", "squash", "backend", "deadline", "max_reject")
    depends = args.keep and made_from({name: getattr(args, name) for name in names}, args.folder, rows)
    if depends and bring_back(files, depends):
        print(f"{tar}: restored from an earlier interrupted job", file=sys.stderr)
        return
    make_numbered(args, args.shard, rows)
    if depends:
        keep(files, depends)


def reader_of(folder: Path, table: str | None) -> str:
    """Default reader: `folder` if there is a table, else `files`."""
    return "folder" if table is not None or (folder / READERS["folder"].table).is_file() else "files"


def rows_of_shard(args: argparse.Namespace, number: int) -> list[Row]:
    """Return the rows of shard `number`; raises UserError if there are none, or if a last shard is not the last."""
    size = rows_per_shard(args.reader, args.samples_per_shard)
    start = number * size
    rows = read_rows(args.folder, args.table, start, start + size, args.reader) if start >= 0 else []
    if not rows:
        count = count_rows(args.folder, args.table, args.reader)
        raise UserError(
            f"{args.folder / args.table}: shard {number} starts at row {start} (counted from 0), but the table has "
            f"{count} rows; if `samples:` in config/sources.yaml is more than {count}, lower or remove it"
        )
    if args.last and read_rows(args.folder, args.table, start + size, start + size + 1, args.reader):
        raise UserError(
            f"{args.folder / args.table}: the table has more than {start + size} rows, after which the last shard "
            "ends; raise or remove `samples:` in config/sources.yaml"
        )
    return rows
