"""Videos, images and text -> frames and token ids, by the rules that fVLM is trained with.

A video gives the frames shown at t = 0, 1, 2, ... seconds; one longer than 64 s gives 64 evenly spaced frames. A single
image is shown for `static_frames` frames, several images for one frame each. All frames of a chat stand together;
chat_template.jinja decides where.
"""

import math
import os
import re
from pathlib import Path

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as SideData
from PIL import Image, ImageOps
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1], with which DINOv2 was trained
LONGEST = 16  # times `image_size`; of a longer picture, which would need much memory, the middle is cut out first
SECONDS = 64  # a longer video is not shown at one frame per second
SLACK = 1e-6  # seconds, for rounding errors of times
NO_TIMES = ("h264", "hevc", "m4v", "mpegvideo", "obu", "mjpeg", "vvc")  # streams of a codec alone
CONTROL = re.compile(r"(<\|im_start\|>[^\n]*\n?|<\|im_end\|>|<\|endoftext\|>|<\|image\|>|<\|video\|>)")
ESCAPED = "<\u200b|"  # the chat template writes '<|' of a message so


class FvlmProcessor(ProcessorMixin):
    """
    image_size        pixels, side of a frame
    crop_images       True: the centre of an image; False: the whole image squashed to a square. crop_videos: the same
    static_frames     frames that a single image is shown for
    max_frames        most frames of a video, evenly spaced
    tokens_per_frame  tokens that stand for a frame in the text; 0 for a model that sees no frames
    """

    image_token, video_token, frame_token = "<|image|>", "<|video|>", "<|endoftext|>"

    def __init__(
        self,
        tokenizer=None,
        chat_template=None,
        image_size=224,
        crop_images=True,
        crop_videos=True,
        static_frames=8,
        max_frames=64,
        tokens_per_frame=1,
        **kwargs,
    ):
        self.image_size, self.crop_images, self.crop_videos = image_size, crop_images, crop_videos
        self.static_frames, self.max_frames, self.tokens_per_frame = static_frames, max_frames, tokens_per_frame
        super().__init__(tokenizer, chat_template=chat_template)
        self.tokenizer.padding_side = "left"  # generated text follows the prompt

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        return_tensors="pt",
        padding=None,
        max_length=None,
        pad_to_multiple_of=None,
        **kwargs,
    ):
        """Return input_ids, attention_mask (B, S) and, if there are frames, pixel_values (B, T, 3, size, size).

        text     one or several, with <|image|> and <|video|> where the frames go; a chat template writes them
        images   paths, URLs, PIL images or arrays, in the order of the texts, nested per text or flat
        videos   paths, or decoded frames (T, H, W, 3) uint8 that were chosen already; as the images
        padding  None: if there are several texts
        """
        if text is None:
            raise ValueError("expected a text beside images or videos")
        texts = [text] if isinstance(text, str) else list(text)
        waiting = {self.image_token: iter(_flat(images)), self.video_token: iter(_flat(videos))}
        samples = [self._sample(one, waiting) for one in texts]
        for marker, media in waiting.items():
            if next(media, None) is not None:
                raise ValueError(f"expected {marker} in the text for each one given; use apply_chat_template")
        padded = self.tokenizer.pad(
            {"input_ids": [ids for ids, _ in samples]},
            padding=len(texts) > 1 if padding is None else padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
        )
        data = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        if any(clips for _, clips in samples):
            empty = [np.empty((0, self.image_size, self.image_size, 3), np.uint8)]
            pixels = [self._pixels(np.concatenate(clips or empty)) for _, clips in samples]
            data["pixel_values"] = pad_sequence(pixels, batch_first=True)
        return BatchFeature(data, tensor_type=return_tensors)

    def _sample(self, text, waiting):
        """Token ids and clips of one text. Each header and each content is tokenized alone, as in training."""
        ids, clips, pieces = [], [], CONTROL.split(text)
        alone = sum(piece in waiting for piece in pieces) == 1
        for piece in pieces:
            if piece in waiting:
                clip = self._clip(piece, waiting[piece], self.static_frames if alone else 1)
                if self.tokens_per_frame:
                    clips.append(clip)
                    ids += [self._id(self.frame_token)] * (len(clip) * self.tokens_per_frame)
            elif piece.startswith("<|im_start|>"):
                ids += [self._id("<|im_start|>"), *self._encode(piece.removeprefix("<|im_start|>"))]
            elif CONTROL.fullmatch(piece):
                ids.append(self._id(piece))
            else:
                ids += self._encode(piece.replace(ESCAPED, "<|"))
        return ids, clips

    def _id(self, token):
        return self.tokenizer.convert_tokens_to_ids(token)

    def _encode(self, text):
        """Ids of a text in which nothing is a control token."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def _clip(self, marker, media, static_frames):
        """Frames (T, size, size, 3) uint8 of the next video, or of the next image, shown for `static_frames`."""
        item = next(media, None)
        if item is None:
            raise ValueError(f"the text has more {marker} than were given")
        if marker == self.image_token:
            return np.repeat(self._square(_rgb(item), self.crop_images)[None], static_frames, axis=0)
        if isinstance(item, str | Path):
            return self._decode(str(item))
        chosen = [item[i] for i in _evenly_spaced(len(item), self.max_frames)]
        return np.stack([self._square(_rgb(frame), self.crop_videos) for frame in chosen])

    def _pixels(self, frames):
        """(T, size, size, 3) uint8 -> (T, 3, size, size) float32, normalised."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    def _square(self, image, crop):
        size = _fit(*image.size, self.image_size, crop)
        if max(size) > LONGEST * self.image_size:
            short = min(image.size)
            left, top = (image.width - short) // 2, (image.height - short) // 2
            image, size = image.crop((left, top, left + short, top + short)), (self.image_size, self.image_size)
        return _centre(np.asarray(image.resize(size, Image.Resampling.BICUBIC)), self.image_size)

    def _decode(self, path):
        """Frames of a video by presentation time: at each chosen time the last frame that is not later."""
        times, frames, before = _times(path), [], None
        times = [times[i] for i in _evenly_spaced(len(times), self.max_frames)]
        for time, *shown in _decoded(path):
            while before is not None and time > times[len(frames)] + SLACK:
                frames.append(self._square_frame(*before))
                if len(frames) == len(times):
                    return np.stack(frames)
            before = shown
        last = self._square_frame(*before)
        return np.stack([*frames, *[last] * (len(times) - len(frames))])

    def _square_frame(self, frame, aspect):
        """A decoded frame upright and square; `aspect`: width of a stored pixel divided by its height."""
        width, height = _fit(frame.width * aspect, frame.height, self.image_size, self.crop_videos)
        if max(width, height) > LONGEST * self.image_size:
            frame, width, height = _middle(frame, aspect), self.image_size, self.image_size
        image = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
        return _upright(_centre(image, self.image_size), frame.side_data.get(SideData.DISPLAYMATRIX))


# --- videos ---


def _open(path):
    if int(av.__version__.split(".")[0]) < 17:
        raise ImportError(f"PyAV {av.__version__} scales frames differently from the training; pip install 'av>=17'")
    container = av.open(os.path.abspath(path), metadata_errors="replace")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise ValueError(f"{path}: no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    stream.thread_type = "AUTO"
    return container, stream


def _times(path):
    """Times in seconds at which a frame is taken; the packets have the time of the last frame."""
    first = next((time for time, *_ in _decoded(path)), None)
    container, stream = _open(path)
    with container:
        times = _Times(container, stream)
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        every = ((times.of(packet, i), (packet.duration or 0) * times.unit) for i, packet in enumerate(packets))
        shown = sorted((time, length) for time, length in every if first is not None and time >= first)
    if not shown:
        raise ValueError(f"{path}: no frame can be decoded")
    last = shown[-1][1] or (float(np.median(np.diff([time for time, _ in shown]))) if len(shown) > 1 else 0.04)
    duration = shown[-1][0] - first + last
    if duration <= SECONDS + SLACK:
        return [first + second for second in range(max(1, math.ceil(duration - SLACK)))]
    return [first + i * duration / SECONDS for i in range(SECONDS)]


def _decoded(path):
    """All frames, each with its time in seconds and the aspect ratio of its pixels."""
    container, stream = _open(path)
    with container:
        times = _Times(container, stream)
        stored = float(stream.sample_aspect_ratio or 0)
        for number, frame in enumerate(container.decode(stream)):
            aspect = stored or float(stream.codec_context.sample_aspect_ratio or 0) or 1.0
            yield times.of_frame(frame, number), frame, aspect


class _Times:
    """Times of packets and frames in seconds. An AVI numbers its frames, and a stream of a codec alone has no times."""

    def __init__(self, container, stream):
        form = container.format.name.split(",")[0]
        self.kind = None if form in NO_TIMES else "dts" if form == "avi" else "pts"
        self.unit, self.rate = float(stream.time_base), float(stream.average_rate or stream.guessed_rate or 25)
        self.last, self.went_back = {}, {"pts": 0, "dts": 0}

    def of(self, item, number, kind=None):
        ticks = getattr(item, kind or self.kind) if self.kind else None
        return number / self.rate if ticks is None else ticks * self.unit

    def of_frame(self, frame, number):
        """Frames come as they are shown. If their times go back more often than those of decoding, these are used."""
        for kind in self.went_back:
            ticks = getattr(frame, kind)
            if ticks is not None:
                self.went_back[kind] += ticks <= self.last.get(kind, ticks - 1)
                self.last[kind] = ticks
        decoding = frame.dts is not None and (frame.pts is None or self.went_back["pts"] > self.went_back["dts"])
        return self.of(frame, number, "dts" if decoding else None)


def _middle(frame, aspect):
    """The central part of a frame that is shown as a square."""
    short = min(frame.width * aspect, frame.height)
    width, height = max(1, round(short / aspect)), max(1, round(short))
    left, top = (frame.width - width) // 2, (frame.height - height) // 2
    image = frame.to_ndarray(format="rgb24")[top : top + height, left : left + width]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image))


def _upright(image, matrix):
    """Turn a picture by quarters and mirror it, as the display matrix of its frame states."""
    if matrix is None:
        return image
    numbers = np.frombuffer(matrix, np.int32)
    a, b, c, d = (int(numbers[i]) for i in (0, 1, 3, 4))  # a pixel at (x, y) is shown at (a x + c y, b x + d y)
    if abs(a) < abs(b):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# --- pictures ---


def _rgb(image):
    """An upright RGB image, transparency over white; of a path, a URL, a PIL image or an array (H, W, 3)."""
    if isinstance(image, str | Path):
        image = Image.open(image) if os.path.isfile(image) else load_image(str(image))
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's conversion would clip all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _fit(width, height, size, crop):
    """Width and height before the centre is cut out: the short side becomes `size`, or both sides do."""
    if not crop:
        return size, size
    short = min(width, height)
    return round(width * size / short), round(height * size / short)


def _centre(image, size):
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _evenly_spaced(count, most):
    """Places of at most `most` of `count` items."""
    return [i * count // most for i in range(most)] if count > most else range(count)


def _flat(items):
    """Images or videos as a flat list; an array is one item."""
    if items is None:
        return []
    if not isinstance(items, list | tuple):
        return [items]
    return [one for item in items for one in (item if isinstance(item, list | tuple) else [item])]


__all__ = ["FvlmProcessor"]
