"""Conversations: LLaVA-Video, VISTA, The Cauldron, SmolTalk, and the answer pairs of RLAIF-V."""

import hashlib

from fvlm.data.decode.media import Media
from fvlm.data.readers.row import BadRow, Place, Sample, conversation, identity, known, string

MAGIC = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif", b"BM": ".bmp"}


def embedded(value: object, column: str) -> Media:
    """An image as the `datasets` library stores it in Parquet: {bytes, path}.

    Its name is a digest of its bytes, so that the same image in two rows is not both trained on and held out.
    https://huggingface.co/docs/datasets/about_dataset_features

    raises      BadRow
    """
    if value is None:
        raise BadRow(f"`{column}` is null, expected an image")
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, bytes) and content:
        return Media(hashlib.blake2b(content, digest_size=12).hexdigest() + MAGIC.get(content[:2], ""), True, content)
    if content is None and isinstance(path, str) and path:
        return Media(path, image=True)
    found = "no bytes" if content == b"" else type(value).__name__
    raise BadRow(f"`{column}`: expected {{bytes, path}}, found {found}")


def llava_video(record: dict, place: Place) -> Sample:
    """LLaVA-Video-178K: JSON of {id, data_source, video, conversations [{from, value}]}.

    `video` is relative to the table's folder, where the dataset's archives unpack.
    https://huggingface.co/datasets/lmms-lab/LLaVA-Video-178K; the field names are those that its trainers use
    """
    name = string(record, "video")
    place.media = (Media(place.find(place.beside(name), name, f"videos/{name}")),)
    text = conversation(record.get("conversations"), "conversations")
    return Sample(text, known(id=record.get("id"), origin=record.get("data_source")))


def vista(record: dict, place: Place) -> Sample:
    """VISTA-400K: JSON per subset of {image or video, conversations [{from, value}]}.

    `image` names the video in the folder with the table's name.
    https://github.com/TIGER-AI-Lab/VISTA (train/data.py, train/data_configs), https://huggingface.co/datasets/TIGER-Lab/VISTA-400K
    """
    name = string(record, "video" if "video" in record else "image")
    place.media = (Media(place.find(f"{place.table.stem}/{name}", name)),)
    text = conversation(record.get("conversations"), "conversations")
    return Sample(text, known(id=record.get("id"), origin=place.table.stem))


def cauldron(record: dict, place: Place) -> Sample:
    """The Cauldron: Parquet of images [{bytes, path}] and texts [{user, assistant, source}], turns of one conversation.

    https://huggingface.co/datasets/HuggingFaceM4/the_cauldron (README.md)
    """
    images, texts = record.get("images"), record.get("texts")
    if not isinstance(images, list) or not images:
        raise BadRow("`images` is not a list of images, or is empty")
    place.media = tuple(embedded(image, "images") for image in images)
    if not isinstance(texts, list) or not all(isinstance(text, dict) for text in texts):
        raise BadRow("`texts` is not a list of {user, assistant}")
    turns = [{"role": role, "content": text.get(role)} for text in texts for role in ("user", "assistant")]
    origin = texts[0].get("source") if texts else None
    return Sample(conversation(turns, "texts"), known(origin=origin, table=place.table.name))


def smoltalk(record: dict, place: Place) -> Sample:
    """SmolTalk: Parquet, or JSONL, of messages [{role, content}] and source. Text without media.

    https://huggingface.co/datasets/HuggingFaceTB/smoltalk (README.md)
    """
    return Sample(conversation(record.get("messages"), "messages"), known(origin=record.get("source")))


def rlaif_v(record: dict, place: Place) -> Sample:
    """RLAIF-V: Parquet of image {bytes, path}, question, chosen, rejected, origin_dataset, idx, ...

    https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset (README.md)
    """
    place.media = (embedded(record.get("image"), "image"),)
    text = {"user": string(record, "question")}
    text |= {name: string(record, name) for name in ("chosen", "rejected")}
    extra = known(id=identity(record, "idx")) if record.get("idx") is not None else {}
    return Sample(text, extra | known(origin=record.get("origin_dataset")))
