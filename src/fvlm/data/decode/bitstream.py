"""Facts about coded video that need no decoding: true keyframes, hidden frames, frames that a decoder may skip.

Sources: ISO/IEC 14496-10 and 23008-2 (NAL unit headers), 14496-2 (VOP header), RFC 6386 (VP8 frame header).
"""

from collections.abc import Iterator

import av

VOP = b"\x00\x00\x01\xb6"


class StreamFacts:
    """Facts about a video stream, collected packet by packet with `add`.

    true_keys       decoding can start at each packet that the container calls a keyframe
    one_frame_each  MPEG-4: each packet holds one frame, and frames are shown in the order of decoding
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self.codec = codec
        self.length_bytes = _length_bytes(codec, extradata)
        self.one_frame_each = True
        self.true_keys = True
        self._layers: set[tuple[int, bool]] = set()  # HEVC: temporal layer; may a later frame of it refer to this one?

    def add(self, packet: av.Packet) -> bool:
        """Take in the next packet; return whether its frame is shown."""
        if self.codec == "vp8":
            return bool(memoryview(packet)[0] & 0x10)
        if self.codec == "mpeg4":
            self._add_mpeg4(bytes(packet), packet.is_keyframe)
        elif self.codec == "hevc":
            self._add_hevc(packet)
        elif self.codec == "h264" and packet.is_keyframe:
            self.true_keys = self.true_keys and self._starts_clean(packet)
        return True

    def may_skip(self) -> bool:
        """Return whether the decoder may skip the frames that it considers unreferenced.

        HEVC calls a frame unreferenced if no later frame of the same temporal layer refers to it; a higher layer may.
        """
        if self.codec == "hevc" and not self.length_bytes:
            return False
        top = max((layer for layer, _ in self._layers), default=0)
        return all(referred or layer == top for layer, referred in self._layers)

    def _add_mpeg4(self, content: bytes, keyframe: bool) -> None:
        start = content.find(VOP)
        kind = content[start + 4] >> 6 if 0 <= start < len(content) - 4 else 2  # 0: I, 1: P, 2: B
        if keyframe and kind != 0:
            self.true_keys = False
        if kind == 2 or content.find(VOP, start + 4) >= 0:
            self.one_frame_each = False

    def _add_hevc(self, packet: av.Packet) -> None:
        kinds = []
        for unit in self._nal_units(packet):
            kind = unit[0] >> 1 & 63
            if kind < 32:  # a picture; decoding can start at kinds 16 to 23
                kinds.append(kind)
                self._layers.add(((unit[1] & 7) - 1, kind > 15 or bool(kind & 1)))
        if packet.is_keyframe and not any(16 <= kind < 24 for kind in kinds):
            self.true_keys = False

    def _starts_clean(self, packet: av.Packet) -> bool:
        """H.264: return whether the packet is an IDR picture, or an I-picture with a recovery point of 0 frames."""
        recovers = False
        for unit in self._nal_units(packet):
            kind = unit[0] & 31
            if kind == 5:
                return True
            if kind == 6:
                recovers = recovers or _recovers_at_once(bytes(unit[1:256]))
            elif kind == 1:
                # The bit 1 is first_mb_in_slice 0. Then slice_type I, which is 2 (bits 011) or 7 (bits 0001000).
                return recovers and (unit[1] & 0xF0 == 0xB0 or unit[1] & 0xFF == 0x88)
        return False

    def _nal_units(self, packet: av.Packet) -> Iterator[memoryview]:
        """The NAL units of 2 bytes or more in a packet; none if they have no length before them."""
        if not self.length_bytes:
            return
        content, place = memoryview(packet), 0
        while place + self.length_bytes + 2 <= len(content):
            length = int.from_bytes(content[place : place + self.length_bytes], "big")
            place += self.length_bytes
            if length >= 2:
                yield content[place : place + length]
            place += length


def _length_bytes(codec: str, extradata: bytes) -> int:
    """Size of the length field before each NAL unit, from an avcC or hvcC record; 0 if there is no such record."""
    place = 4 if codec == "h264" else 21
    return (extradata[place] & 3) + 1 if len(extradata) > place and extradata[0] == 1 else 0


def _recovers_at_once(messages: bytes) -> bool:
    """Return whether the SEI messages of an H.264 NAL unit hold a recovery point of 0 frames."""
    place = 0
    while place + 2 < len(messages) and messages[place] != 0x80:
        kind, place = _sei_number(messages, place)
        size, place = _sei_number(messages, place)
        if kind == 6:
            return place < len(messages) and bool(messages[place] & 0x80)  # the bit 1 is recovery_frame_cnt 0
        place += size
    return False


def _sei_number(content: bytes, place: int) -> tuple[int, int]:
    """A number stored as bytes 255, 255, ..., rest; and the place after it."""
    number = 0
    while place < len(content) - 1 and content[place] == 255:
        number, place = number + 255, place + 1
    return number + int.from_bytes(content[place : place + 1]), place + 1
