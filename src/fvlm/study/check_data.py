"""Checks of the data: each source can be read, and some of its samples can be decoded as in the workflow."""

from itertools import islice
from pathlib import Path

from fvlm.config.schema import Source, Study
from fvlm.data.readers import read_rows
from fvlm.data.shards.samples import decode_frames, sample_text
from fvlm.data.shards.shard_index import check_sum
from fvlm.data.shards.tar import mapped, read_sample, samples_of
from fvlm.data.shards.write import make_shard
from fvlm.data.sources import input_tars, reader_of, source_folder, table_of
from fvlm.errors import UserError
from fvlm.study.check import NotChecked

SAMPLES = 3  # decoded of each source


def readable(source: Source, study: Study, scratch: Path) -> str:
    """Read samples of finished shards, or decode files into a shard in `scratch`."""
    if source.reader == "shards":
        return _tars([Path(name) for name in input_tars(source)], source)
    made = sorted((Path(study.results) / "shards" / source.name).glob("*.tar"))
    if made:
        return _tars(made, source) + ", made by the workflow"
    folder = source_folder(source, study.results)
    if source.reader == "demo" and not (folder / table_of(source)).exists():
        raise NotChecked("the workflow makes this source")
    if not folder.exists():
        raise UserError(f"no folder {str(folder)!r}; correct `path` of source {source.name!r} in config/sources.yaml")
    rows = read_rows(folder, table_of(source), 0, SAMPLES, reader_of(source))
    if not rows:
        raise UserError(f"source {source.name!r}: its table in {str(folder)!r} lists no sample")
    tar = scratch / source.name / "00000.tar"
    counts = make_shard(
        rows, folder, source.name, source.kind, source.prompt, tar, tar.with_suffix(".ledger.jsonl"),
        deadline_s=source.deadline_s, crop=source.crop,
    )  # fmt: skip
    rejected = counts.total() - counts["kept"]
    return f"{counts['kept']} of its first samples decoded" + (f", {rejected} rejected" if rejected else "")


def _tars(tars: list[Path], source: Source) -> str:
    """Check that all shards exist, the checksum of the first, and samples of the first and the last."""
    missing = [tar for tar in tars if not tar.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(tars)} shards are missing, first {missing[0]}; copy them, or correct `path` of "
            f"source {source.name!r} in config/sources.yaml"
        )
    frames = samples = 0
    for tar in dict.fromkeys((tars[0], tars[-1])):
        with mapped(tar) as data:
            if tar == tars[0]:
                check_sum(tar, data)
            entries = list(islice(samples_of(data, str(tar)), SAMPLES))
        for entry in entries:
            members = read_sample(tar, entry.offset, entry.length)
            try:
                frames += len(decode_frames(members))
                sample_text(members, source.prompt)
            except ValueError as error:
                raise UserError(f"{tar}: sample {entry.key!r}: {error}; make or copy the shard again") from error
            samples += 1
    if not samples:
        raise UserError(f"{tars[0]}: holds no sample; make or copy the shard again")
    return f"{len(tars)} shards exist, {samples} samples with {frames} frames read"
