"""The few bits of coded video that say what may be left out without changing any other frame.

After the AV1 specification (section 5), ISO/IEC 14496-10 and 23008-2 (NAL unit headers), 14496-2 (VOP header) and
RFC 6386 (VP8 frame header).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import av

VOP = b"\x00\x00\x01\xb6"


class Bits:
    """Reads numbers of some bits, the highest first."""

    def __init__(self, content: bytes) -> None:
        self.value, self.left = int.from_bytes(content, "big"), 8 * len(content)

    def take(self, count: int) -> int:
        """raises IndexError past the end"""
        self.left -= count
        if self.left < 0:
            raise IndexError("past the end of a header")
        return (self.value >> self.left) & ((1 << count) - 1)


class Look:
    """Looks at each packet of a stream in turn and remembers what matters of its codec."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self.codec, self.extradata = codec, extradata
        self.one_frame_each = True  # and shown in the order of decoding
        self.true_keys = True  # no keyframe of the container's is another kind of frame
        self.layers: set[tuple[int, bool]] = set()  # HEVC: (temporal layer, whether a later frame of it may refer)
        self.av1: list[list[Av1Frame]] | None = [] if codec in ("av1", "libdav1d") else None
        self._headers: Av1Headers | None = Av1Headers() if self.av1 is not None else None

    def at(self, packet: av.Packet) -> bool:
        """Take note of a packet; returns whether its frame is shown."""
        if self.codec == "vp8":
            return bool(memoryview(packet)[0] & 0x10)
        if self.codec == "mpeg4":
            self._count_vops(bytes(packet), packet.is_keyframe)
        elif self.codec == "hevc":
            self._note_layers(packet)
        elif self.codec == "h264" and packet.is_keyframe:
            self.true_keys = self.true_keys and starts_clean(packet, self.extradata)
        elif self.av1 is not None:
            try:
                self.av1.append(self._headers.frames(bytes(packet)))
            except (IndexError, NotImplementedError):
                self.av1 = None
        return True

    def may_skip(self) -> bool:
        """False: the decoder must not be told to leave out what it takes for unreferenced.

        HEVC calls a frame unreferenced when no later frame of the same temporal layer refers to it; a higher layer may.
        """
        if self.codec == "hevc" and self.extradata[:1] != b"\x01":
            return False  # not in the form in which `nal_units` reads
        top = max((layer for layer, _ in self.layers), default=0)
        return all(referred or layer == top for layer, referred in self.layers)

    def _note_layers(self, packet: av.Packet) -> None:
        kinds = []
        for unit in nal_units(memoryview(packet), length_size(self.codec, self.extradata)):
            kind = unit[0] >> 1 & 63
            if kind < 32:  # a picture; 16 to 23 can be decoded without those before
                kinds.append(kind)
                self.layers.add(((unit[1] & 7) - 1, kind > 15 or bool(kind & 1)))
        if packet.is_keyframe and not any(16 <= kind < 24 for kind in kinds):
            self.true_keys = False

    def _count_vops(self, content: bytes, keyframe: bool) -> None:
        start = content.find(VOP)
        kind = content[start + 4] >> 6 if 0 <= start < len(content) - 4 else 2  # 0: I, 1: P, 2: B
        if keyframe and kind != 0:
            self.true_keys = False
        if kind == 2 or content.find(VOP, start + 4) >= 0:
            self.one_frame_each = False


def starts_clean(packet: av.Packet, extradata: bytes) -> bool:
    """Whether H.264 can be decoded from here on: an IDR picture, or an I-picture with a recovery point of 0 frames."""
    if extradata[:1] != b"\x01":
        return False  # not in the form in which `nal_units` reads
    recovers = False
    for unit in nal_units(memoryview(packet), length_size("h264", extradata)):
        kind = unit[0] & 31
        if kind == 5:
            return True
        if kind == 6:
            recovers = recovers or _recovers_at_once(bytes(unit[1:256]))
        elif kind == 1:
            # first_mb_in_slice 0 is the bit 1; slice_type, I of 2 or 7, is 011 or 0001000
            return recovers and (unit[1] & 0xF0 == 0xB0 or unit[1] & 0xFF == 0x88)
    return False


def _recovers_at_once(sei: bytes) -> bool:
    place = 0
    while place + 2 < len(sei) and sei[place] != 0x80:
        kind = size = 0
        while sei[place] == 255 and place + 2 < len(sei):
            kind, place = kind + 255, place + 1
        kind, place = kind + sei[place], place + 1
        while sei[place] == 255 and place + 1 < len(sei):
            size, place = size + 255, place + 1
        size, place = size + sei[place], place + 1
        if kind == 6:
            return place < len(sei) and bool(sei[place] & 0x80)  # recovery_frame_cnt 0 is the bit 1
        place += size
    return False


def length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit, as avcC or hvcC say."""
    place = 4 if codec == "h264" else 21
    return (extradata[place] & 3) + 1 if len(extradata) > place and extradata[0] == 1 else 4


def nal_units(content: memoryview, size: int) -> Iterator[memoryview]:
    """The NAL units of a packet, each of 2 bytes or more, where lengths of `size` bytes stand before them."""
    place = 0
    while place + size + 2 <= len(content):
        length = int.from_bytes(content[place : place + size], "big")
        place += size
        if length >= 2:
            yield content[place : place + length]
        place += length


@dataclass(frozen=True)
class Av1Frame:
    """One frame header of AV1.

    start, stop     its bytes in the packet
    slots           bit i: the frame is put into slot i
    refers          slots it refers to; for `shows` the one that it shows
    shown           whether it comes out
    """

    start: int
    stop: int
    slots: int
    refers: frozenset[int]
    shown: bool
    shows: bool = False


class Av1Headers:
    """Reads the OBUs of AV1 as far as the references between frames.

    raises      NotImplementedError for the rare forms that are not followed here
    """

    def __init__(self) -> None:
        self.order_bits = self.id_bits = self.delta_bits = 0
        self.screen = self.whole_vectors = 2  # 2: each frame says
        self.kinds = [0] * 8  # frame type in each slot
        self.ready = False

    def frames(self, content: bytes) -> list[Av1Frame]:
        place, found = 0, []
        while place < len(content):
            start, head = place, content[place]
            kind, place = head >> 3 & 15, place + 1
            if head & 4:
                raise NotImplementedError("layers")
            size = len(content) - place
            if head & 2:
                size, place = _leb128(content, place)
            body = content[place : place + min(size, 64)]
            place += size
            if kind == 1:
                self._sequence(Bits(body))
            elif kind in (3, 6):
                if not self.ready:
                    raise NotImplementedError("a frame before the sequence header")
                found.append(self._frame(Bits(body), start, place))
                if kind == 3 and not found[-1].shows:
                    raise NotImplementedError("tile groups of their own")
            elif kind in (4, 7, 8):
                raise NotImplementedError("tile groups of their own")
        return found

    def _sequence(self, bits: Bits) -> None:
        bits.take(4)
        if bits.take(1):
            raise NotImplementedError("a still picture")
        if bits.take(1):
            bits.take(64)
            if bits.take(1):
                zeros = 0
                while not bits.take(1):
                    zeros += 1
                bits.take(zeros)
            if bits.take(1):
                raise NotImplementedError("a decoder model")
        delays = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delays and bits.take(1):
                bits.take(4)
        width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
        bits.take(width_bits + height_bits)
        if bits.take(1):
            self.delta_bits = bits.take(4) + 2
            self.id_bits = bits.take(3) + self.delta_bits + 1
        bits.take(7)
        ordered = bits.take(1)
        if ordered:
            bits.take(2)
        self.screen = 2 if bits.take(1) else bits.take(1)
        self.whole_vectors = 2
        if self.screen and not bits.take(1):
            self.whole_vectors = bits.take(1)
        self.order_bits = bits.take(3) + 1 if ordered else 0
        self.ready = True

    def _frame(self, bits: Bits, start: int, stop: int) -> Av1Frame:
        if bits.take(1):
            slot = bits.take(3)
            key = self.kinds[slot] == 0
            if key:
                self.kinds = [0] * 8
            return Av1Frame(start, stop, 255 if key else 0, frozenset([slot]), shown=True, shows=True)
        kind, shown = bits.take(2), bool(bits.take(1))  # 0 key, 1 inter, 2 intra only, 3 switch
        if not shown:
            bits.take(1)
        resilient = kind == 3 or (kind == 0 and shown) or bool(bits.take(1))
        bits.take(1)
        if (bits.take(1) if self.screen == 2 else self.screen) and self.whole_vectors == 2:
            bits.take(1)
        bits.take(self.id_bits)
        if kind != 3:
            bits.take(1)
        bits.take(self.order_bits)
        intra = kind in (0, 2)
        if not (intra or resilient):
            bits.take(3)
        slots = 255 if kind == 3 or (kind == 0 and shown) else bits.take(8)
        self.kinds = [kind if slots >> i & 1 else old for i, old in enumerate(self.kinds)]
        return Av1Frame(start, stop, slots, frozenset() if intra else self._refers(bits, slots, resilient), shown)

    def _refers(self, bits: Bits, slots: int, resilient: bool) -> frozenset[int]:
        if self.order_bits:
            if resilient and slots != 255:
                bits.take(8 * self.order_bits)
            if bits.take(1):
                return frozenset(range(8))  # the short form leaves the choice to a rule
        found = set()
        for _ in range(7):
            found.add(bits.take(3))
            bits.take(self.delta_bits)
        return frozenset(found)


def _leb128(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = content[place + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, place + i + 1
    raise IndexError("a length of more than 8 bytes")


def av1_cuts(packets: list[list[Av1Frame]], run: tuple[int, int], wanted: set[int]) -> dict[int, list[tuple[int, int]]]:
    """Packet -> the byte ranges [start, stop) of frames in it that no wanted packet depends on.

    run         packets [start, stop), the first a keyframe
    """
    slots: list[tuple[int, int] | None] = [None] * 8
    needs: dict[tuple[int, int], set[tuple[int, int]]] = {}
    stack = []
    for i in range(*run):
        for j, frame in enumerate(packets[i]):
            me = (i, j)
            needs[me] = {slots[slot] for slot in frame.refers} - {None}
            if i in wanted and frame.shown:
                stack.append(me)
            for slot in range(8):
                if frame.slots >> slot & 1:
                    slots[slot] = me
    needed: set[tuple[int, int]] = set()
    while stack:
        me = stack.pop()
        if me not in needed:
            needed.add(me)
            stack += needs[me]
    cuts: dict[int, list[tuple[int, int]]] = {}
    for i in range(*run):
        out = [(frame.start, frame.stop) for j, frame in enumerate(packets[i]) if (i, j) not in needed]
        if out:
            cuts[i] = out
    return cuts
