"""Video captions: WebVid, OpenVid-1M, Vript, ShareGPT4Video. Each function reads one record of the dataset's table."""

import os
import re
from functools import cache
from pathlib import Path

from fvlm.data.decode.media import Media
from fvlm.data.readers.row import BadRow, Place, Sample, conversation, identity, known, string

CLIP_NAME = re.compile(r"_\d+_\d+to\d+\.mp4$")


def webvid(record: dict, place: Place) -> Sample:
    """WebVid: CSV of videoid, contentUrl, duration, page_dir, name; the column `name` is the caption.

    Videos are in videos/{page_dir}/{videoid}.mp4, where the dataset's script puts them, or without these folders.
    https://github.com/m-bain/webvid (download.py), https://huggingface.co/datasets/Mouwiya/Video-10M (columns)
    """
    name = f"{identity(record, 'videoid')}.mp4"
    page = record.get("page_dir") or "."
    place.media = (Media(place.find(f"videos/{page}/{name}", f"{page}/{name}", f"videos/{name}", name)),)
    return Sample({"caption": string(record, "name")}, known(id=identity(record, "videoid")))


def openvid(record: dict, place: Place) -> Sample:
    """OpenVid-1M: CSV whose first columns are video (a file name) and caption; scores follow. Videos in video/.

    Clips of one video, recognised by names such as {video}_{clip}_{start}to{end}.mp4, are held out together.
    https://github.com/NJU-PCALab/OpenVid-1M (README.md, openvid/datasets/datasets.py)
    """
    name = string(record, "video")
    place.media = (Media(place.find(f"video/{name}", name)),)
    extra = known(id=name, video=CLIP_NAME.sub("", name))
    return Sample({"caption": string(record, "caption")}, extra)


def vript(record: dict, place: Place) -> Sample:
    """Vript, one clip: clip_id, video_id, caption {shot_type, camera_movement, content, scene_title}.

    Clips are in vript_long_videos_clips/*/{video_id}/{clip_id}.mp4 (short ones: vript_short_videos_clips), as the zips
    unpack.
    https://huggingface.co/datasets/Mutonix/Vript (README.md)
    """
    clip, caption = string(record, "clip_id"), record.get("caption")
    owner = clip.rsplit("-Scene-", 1)[0]
    place.media = (Media(f"{_clip_folders(place.folder).get(owner, owner)}/{clip}.mp4"),)
    if not isinstance(caption, dict):
        raise BadRow("`caption` is not a mapping of shot_type, camera_movement, content, scene_title")
    extra = known(id=clip, video=owner, title=record.get("video_title"))
    return Sample({"caption": _narration(caption)}, extra)


def expand_vript(record: dict) -> list[dict]:
    """All clips of a video's file {"meta", "data": {clip_id: clip}}; a line of JSONL may also be one clip."""
    clips = record.get("data")
    if not isinstance(clips, dict):
        return [record]
    return [{"clip_id": name, **(clip if isinstance(clip, dict) else {})} for name, clip in clips.items()]


@cache
def _clip_folders(folder: Path) -> dict[str, str]:
    """Video -> folder of its clips, relative to the source's folder, with the folders of the zips or without them."""
    folders: dict[str, str] = {}
    for parent in [folder, *sorted(folder.glob("vript_*_clips")), *sorted(folder.glob("vript_*_clips/*/"))]:
        with os.scandir(parent) as entries:
            videos = sorted(entry.name for entry in entries if entry.is_dir())
        folders |= {name: (parent / name).relative_to(folder).as_posix() for name in videos}
    return folders


def _narration(caption: dict) -> str:
    """The parts of a scene's script as one text: title, shot, camera, content."""
    content = string(caption, "content")
    parts = []
    for name, form in (
        ("scene_title", "{}."),
        ("shot_type", "Shot type: {}."),
        ("camera_movement", "Camera movement: {}."),
    ):
        value = caption.get(name)
        if isinstance(value, str) and value.strip():
            parts.append(form.format(value.strip().rstrip(".")))
    return " ".join([*parts, content.strip()])


def sharegpt4video(record: dict, place: Place) -> Sample:
    """ShareGPT4Video: JSONL of video_id, video_path, captions [{idx, content}]; idx -1 describes the whole video.

    Also its instruction files, JSON of {id, video, conversations}. Zips unpacked beside the table, or in videos/.
    https://huggingface.co/datasets/ShareGPT4Video/ShareGPT4Video (README.md); the field names of the JSONL are those
    that programs for it use
    """
    name = string(record, "video_path" if "video_path" in record else "video")
    place.media = (Media(place.find(name, f"videos/{name}", Path(name).name)),)
    extra = known(id=record.get("video_id", record.get("id")))
    if "conversations" in record:
        return Sample(conversation(record["conversations"], "conversations"), extra)
    captions = record.get("captions")
    if not isinstance(captions, list):
        raise BadRow("`captions` is not a list")
    caption = next((c for c in captions if isinstance(c, dict) and str(c.get("idx")) == "-1"), None)
    if caption is None:
        raise BadRow("`captions`: none has idx -1, the caption of the whole video")
    return Sample({"caption": string(caption, "content")}, extra)
