"""`fvlm figure NAME ... --tables DIR --out-dir DIR`. What draws is imported once the arguments are right."""

from fvlm.analysis.catalog import FIGURES
from fvlm.config.resolve import add_study_arguments

EMPTY = ("picture", "refuse", "skip")  # what becomes of a figure that has nothing to draw


def add_arguments(parser) -> None:
    parser.fromfile_prefix_chars = "@"
    parser.add_argument("names", nargs="+", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--tables", required=True, help="folder with the tables")
    parser.add_argument(
        "--attention", nargs="*", default=[], metavar="FILE", help="attention maps of finished runs (.npz)"
    )
    parser.add_argument("--out-dir", required=True, help="folder to write to")
    parser.add_argument(
        "--empty",
        choices=EMPTY,
        default=EMPTY[0],
        help="a figure with nothing to draw: a picture of the reason (default), an error, or no files",
    )
    parser.add_argument("--processes", type=int, default=1, help="figures that are drawn at once (default 1)")
    parser.add_argument("--not-drawn", metavar="FILE", help="CSV to write: the figures with nothing to draw, and why")
    add_study_arguments(parser)


def main(args) -> None:
    from fvlm.analysis.figures import draw  # imports matplotlib and pandas

    draw(args)
