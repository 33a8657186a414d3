"""`fvlm attention RUN`: write the attention maps of a finished run on a few fixed held-out videos."""

from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError
from fvlm.evaluate.read import read_run


def add_arguments(parser) -> None:
    parser.add_argument("run", help="a finished foveated run")
    parser.add_argument("--out", required=True, type=Path, help=".npz with frames, attention maps and captions")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    folder = Path(study.results) / "runs" / args.run
    run, _ = read_run(folder)
    if not run.model.variant.queries:
        raise UserError(
            f"run {run.name!r}: architecture {run.model.architecture} has no query, so there is no attention to show; "
            "name a foveated run"
        )
    # These import torch, which takes seconds.
    from fvlm.device import autocast
    from fvlm.evaluate.load import check_split, load_run
    from fvlm.evaluate.maps import attention_maps, videos_to_show, write_maps

    run, model, device = load_run(folder)
    check_split(run, study, folder)
    videos = videos_to_show(run, study)
    write_maps(args.out, attention_maps(run, model, videos, device, autocast(run, device)))
    return 0
