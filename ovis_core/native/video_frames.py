"""The frames of a VIDEO, decoded on demand, one at a time."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import Input, InputImpl
from torch import Tensor

from ..pixels import Frames
from .compat import trim_window

# Codecs whose packets can be frames that are never shown, so that packets cannot be counted instead of frames.
HIDDEN_FRAMES = {"vp8"}
KEYFRAMES_TO_TRY = 2  # before decoding from the beginning
FRAMES_BEFORE_SEEK = 16  # a frame that is farther away is reached by seeking, if a keyframe is between


def frames_of(video: Input.Video) -> Frames:
    """The frames of a VIDEO in order, each (height, width, channels), 0 to 1; those of a file are decoded when indexed.

    They are the frames that core's Get Video Components returns: of the part that a trimmed VIDEO stands for. Frames of
    a file that is marked as rotated are turned, also if core does not turn them.

    Raises ValueError for a file without frames or one that cannot be read.
    """
    window = trim_window(video)
    with _readable():
        if type(video) is InputImpl.VideoFromFile and window is not None:
            frames = FileFrames(video, *window)
            # Core may show a part of each frame only.
            if video.get_dimensions() == frames.stored_size:
                return _need_frames(frames)
        return _need_frames(video.get_components().images)


@contextmanager
def _readable() -> Iterator[None]:
    """Reports errors of the decoder as a ValueError."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"video: expected a file with a video, got one that cannot be read ({error}); choose another file."
        ) from error


def _need_frames(frames: Frames) -> Frames:
    if not len(frames):
        raise ValueError(
            "video: expected at least one frame, got none; choose another file, or another part of this one."
        )
    return frames


class FileFrames:
    """The frames of a file as `Frames`, each (height, width, 3) float32, 0 to 1.

    A frame is decoded when it is indexed, from the keyframe before it, and only the last one is kept. Ascending indexes
    are fastest.

    stored_size  (width, height) of the file's frames before they are turned
    """

    def __init__(self, video: Input.Video, start: float, duration: float) -> None:
        """start, duration: the part of the file, in seconds; duration 0: to its end."""
        self.video = video
        self.times: list[int] = []  # of the frames, in units of the stream, or their numbers if the file has no times
        self.keys: list[int] = []  # times of the keyframes; empty if the file has no times
        self._decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._last: tuple[int, av.VideoFrame] | None = None
        self._read_times(start, duration)

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> Tensor:
        place = range(len(self))[index]
        try:
            with _readable():
                frame = self._frame(place)
        except BaseException:
            self._last = None  # decoding cannot continue after an error or an interrupt
            raise
        turns = round(frame.rotation / 90) % 4
        return torch.from_numpy(np.rot90(frame.to_ndarray(format="rgb24"), turns).copy()).float().div_(255.0)

    def _open(self) -> av.container.InputContainer:
        container = av.open(self.video.get_stream_source())
        if not container.streams.video or container.streams.video[0].codec_context is None:
            container.close()
            raise ValueError(
                "video: expected a file with a video stream that can be decoded, got a file without one; choose "
                "another file."
            )
        container.streams.video[0].thread_type = "AUTO"
        return container

    def _read_times(self, start: float, duration: float) -> None:
        with self._open() as container:
            stream = container.streams.video[0]
            self.stored_size = (stream.width, stream.height)
            first = int(start / stream.time_base)
            end = int((start + duration) / stream.time_base) if duration else math.inf
            shown = []
            for number, packet in enumerate(container.demux(stream)):
                if number % 100 == 0:
                    throw_exception_if_processing_interrupted()
                if packet.size and not packet.is_discard:
                    shown.append((packet.pts, packet.is_keyframe))
            counted = stream.codec_context.name not in HIDDEN_FRAMES
        times = [time for time, _ in shown]
        if counted and None not in times and len({*times}) == len(times):
            self.keys = sorted(time for time, key in shown if key)
            # A file that was cut can begin with frames that refer to others before them.
            first = max([first, *self.keys[:1]])
        pairs = zip(times, times, strict=True) if self.keys else ((at, frame.pts) for at, frame in self._decode())
        self.times = sorted(at for at, pts in pairs if pts is None or first <= pts < end)

    def _frame(self, index: int) -> av.VideoFrame:
        """The frame of this index; if the file is damaged there, the next one or the last."""
        time = self.times[index]
        last = -1 if self._last is None else bisect_left(self.times, self._last[0])
        if self._last is None or last > index or (self._keyframes(last, index) and index - last > FRAMES_BEFORE_SEEK):
            for key in [*reversed(self._keyframes(-1, index)[-KEYFRAMES_TO_TRY:]), None]:
                self._last, self._decoded = None, self._decode(key)
                if self._advance(time, key is not None):
                    break
        elif last < index:
            self._advance(time)
        if self._last is None:
            raise ValueError(
                "video: expected frames that can be decoded, got none; the file may be damaged; choose another one."
            )
        return self._last[1]

    def _keyframes(self, after: int, index: int) -> list[int]:
        """Times of the keyframes after a frame, up to that of `index`."""
        begin = bisect_right(self.keys, self.times[after]) if after >= 0 else 0
        return self.keys[begin : bisect_right(self.keys, self.times[index])]

    def _advance(self, time: int, after_seek: bool = False) -> bool:
        """Decodes up to the frame at `time`, or to the end. False if decoding began too late for it.

        after_seek  skip frames before the first keyframe, which may lack what they refer to
        """
        for at, frame in self._decoded:
            if after_seek and self._last is None and not frame.key_frame:
                continue
            if after_seek and self._last is None and at > time:
                return False
            self._last = at, frame
            if at >= time:
                break
        return self._last is not None

    def _decode(self, key: int | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their times, from the keyframe at `key` or from the beginning."""
        with self._open() as container:
            stream = container.streams.video[0]
            if key is not None:
                try:
                    container.seek(key, stream=stream)
                except av.FFmpegError:  # a stream without places to seek to
                    return
            number = 0
            for packet in container.demux(stream):
                throw_exception_if_processing_interrupted()
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:  # core skips such a packet, too
                    continue
                for frame in frames:
                    if not self.keys:
                        yield number, frame
                    elif frame.pts is not None:
                        yield frame.pts, frame
                    number += 1
