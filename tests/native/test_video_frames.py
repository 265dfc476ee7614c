"""The frames of a VIDEO, compared with those of core, for files of many kinds; and the memory that a long one takes."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import torch

BITS = 8
HEIGHT, WIDTH = 64, 96
COUNT = 61
# Some cameras write each frame at its own time, in thousandths of a second.
UNEVEN = [40 * i + (i * i * 7) % 31 for i in range(COUNT)]


def drawn(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that shows its number as black and white bars."""
    bars = [255 * (number >> bit & 1) for bit in range(BITS)]
    row = np.repeat(np.array(bars, dtype=np.uint8), width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number(frame: torch.Tensor) -> int:
    """The number that a frame shows."""
    bars = frame.mean((0, 2)).reshape(BITS, -1).mean(1)
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 0.5)


def encoded(container: Any, stream: Any, count: int, times: Sequence[int] | None = None) -> Iterator[Any]:
    for i in range(count):
        frame = av.VideoFrame.from_ndarray(drawn(i, stream.height, stream.width), format="rgb24")
        if times:
            frame.pts, frame.time_base = times[i], Fraction(1, 1000)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def write(
    file: Any,
    codec: str,
    options: dict[str, str],
    times: Sequence[int] | None = None,
    count: int = COUNT,
    kind: str | None = None,
    pixels: str = "yuv420p",
    sound: bool = False,
    movflags: str = "",
) -> Any:
    """A file whose frames show their numbers."""
    with av.open(file, "w", format=kind, options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        if voice is not None:
            for start in range(0, 16000, 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts = 8000, start
                container.mux(voice.encode(silence))
            container.mux(voice.encode(None))
        for packet in encoded(container, stream, count, times):
            container.mux(packet)
    return file


X264 = {"g": "12", "bf": "3", "preset": "veryfast"}
KINDS: dict[str, Callable[[Path], Path]] = {
    "h264.mp4": lambda folder: write(folder / "a.mp4", "libx264", X264),
    "with_sound.mp4": lambda folder: write(folder / "a.mp4", "libx264", X264, sound=True),
    "uneven_times.mp4": lambda folder: write(folder / "a.mp4", "libx264", X264, times=UNEVEN),
    "uneven_times.mkv": lambda folder: write(folder / "a.mkv", "libx264", X264, times=UNEVEN),
    "no_frame_count.mkv": lambda folder: write(folder / "a.mkv", "libx264", X264),
    "one_keyframe.mp4": lambda folder: write(folder / "a.mp4", "libx264", {"g": "1000", "preset": "veryfast"}),
    "open_groups.mp4": lambda folder: write(
        folder / "a.mp4", "libx264", {**X264, "x264-params": "open-gop=1:scenecut=0"}
    ),
    "open_groups_hevc.mp4": lambda folder: write(
        folder / "a.mp4", "libx265", {"x265-params": "keyint=12:open-gop=1:log-level=none", "preset": "ultrafast"}
    ),
    "stream.ts": lambda folder: write(folder / "a.ts", "libx264", X264),
    # As browsers record: the header has neither the number of frames nor their places.
    "fragments.mp4": lambda folder: write(folder / "a.mp4", "libx264", X264, movflags="frag_keyframe+empty_moov"),
    "cut.mp4": lambda folder: cut(folder / "a.mp4"),
    "mpeg4.avi": lambda folder: write(folder / "a.avi", "mpeg4", {"g": "10", "bf": "2", "qscale": "2"}),
    "photos.mov": lambda folder: write(folder / "a.mov", "mjpeg", {}, pixels="yuvj420p"),
    "vp8.webm": lambda folder: write(
        folder / "a.webm", "libvpx", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "good"}
    ),
    "vp9.webm": lambda folder: write(folder / "a.webm", "libvpx-vp9", {"g": "20", "cpu-used": "8"}),
    "animation.gif": lambda folder: write(folder / "a.gif", "gif", {}, pixels="rgb8"),
    "no_times.h264": lambda folder: write(folder / "a.h264", "libx264", {"g": "12", "bf": "0"}, kind="h264"),
}


def cut(file: Path) -> Path:
    """Without its first keyframe, so that the frames up to the next one cannot be decoded."""
    write(file.with_suffix(".mkv"), "libx264", X264)
    with av.open(str(file.with_suffix(".mkv"))) as source, av.open(str(file), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(source.streams.video[0])):
            if i and packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def file(name: str) -> Path:
        if name not in made:
            made[name] = KINDS[name](tmp_path_factory.mktemp("video"))
        return made[name]

    return file


def opened(file: Any) -> Any:
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(file) if isinstance(file, Path) else file)


def sampled(video: Any, most: int) -> list[torch.Tensor]:
    from ovis_core.native.video_frames import frames_of
    from ovis_core.pixels import SampledFrames

    return list(SampledFrames(frames_of(video), most))


def assert_as_core(video: Any) -> None:
    """The same frames as core, whatever number is sampled."""
    from ovis_core.native.video_frames import FileFrames, frames_of
    from ovis_core.pixels import SampledFrames

    core = video.get_components().images
    frames = frames_of(video)
    assert isinstance(frames, FileFrames)
    assert len(frames) == len(core)
    for most in (1, 2, 7, len(core), 200):
        expected = list(SampledFrames(list(core), most))
        found = sampled(video, most)
        assert [*map(number, found)] == [*map(number, expected)], most
        # Core converts some formats to floating point, where 8 bits are rounded.
        assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 2.5 / 255
    jumps = [len(core) - 1, len(core) // 5, 0, len(core) // 2, len(core) // 2]
    assert [number(frames[i]) for i in jumps] == [number(core[i]) for i in jumps]
    with pytest.raises(IndexError):
        frames[len(core)]


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_core(comfyui: Any, files: Callable[[str], Path], name: str) -> None:
    video = opened(files(name))
    try:
        video.get_components()
    except (TypeError, PermissionError):  # not every version of core reads these
        assert name in ("no_times.h264", "fragments.mp4", "cut.mp4")
        first = number(sampled(video, 1)[0])
        assert (first > 0) == (name == "cut.mp4")
        assert [*map(number, sampled(video, COUNT))] == [*range(first, COUNT)]
        return
    assert_as_core(video)


def test_frames_of_a_file_in_memory(comfyui: Any, files: Callable[[str], Path]) -> None:
    assert_as_core(opened(io.BytesIO(files("h264.mp4").read_bytes())))


@pytest.mark.parametrize("name", ["h264.mp4", "uneven_times.mkv", "with_sound.mp4", "stream.ts", "vp8.webm"])
@pytest.mark.parametrize(("start", "duration"), [(0.5, 1.0), (1.21, 0.0), (0.0, 0.4), (0.7, 0.05), (-0.8, 0.5)])
def test_frames_of_a_trimmed_video(
    comfyui: Any, files: Callable[[str], Path], name: str, start: float, duration: float
) -> None:
    video = opened(files(name))
    if not hasattr(video, "as_trimmed"):
        pytest.skip("this ComfyUI cannot trim a VIDEO")
    trimmed = video.as_trimmed(start, duration, strict_duration=False)
    core = trimmed.get_components().images
    if len(core) == 0:
        pytest.skip("core finds no frames in this part of the file")
    if name != "stream.ts":
        assert_as_core(trimmed)
        return
    # Core cannot decode the first ones of a stream: it begins after the keyframe that they refer to.
    found = [*map(number, sampled(trimmed, COUNT))]
    assert found == [*range(found[0], found[0] + len(found))]
    assert found[-len(core) :] == [*map(number, core)]


def test_error_for_a_trimmed_video_without_frames(comfyui: Any, files: Callable[[str], Path]) -> None:
    video = opened(files("h264.mp4"))
    if not hasattr(video, "as_trimmed"):
        pytest.skip("this ComfyUI cannot trim a VIDEO")
    with pytest.raises(ValueError, match=r"^video: expected at least one frame, got none; choose another file"):
        sampled(video.as_trimmed(9.0, 1.0, strict_duration=False), 4)


@pytest.mark.parametrize(("turned", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_rotated_frames_are_turned(
    comfyui: Any, files: Callable[[str], Path], tmp_path: Path, turned: int, matrix: tuple[int, ...]
) -> None:
    """As phones mark their videos: the file's header has a matrix by which a player turns the frames."""
    data = bytearray(files("h264.mp4").read_bytes())
    place = data.index(b"tkhd") + 44
    (a, b, c, d), fixed = matrix, lambda value: (value * 65536).to_bytes(4, "big", signed=True)
    old = b"".join(map(fixed, (1, 0, 0, 0, 1, 0)))
    assert data[place : place + 24] == old
    data[place : place + 24] = b"".join(map(fixed, (a, b, 0, c, d, 0)))
    file = tmp_path / "phone.mp4"
    file.write_bytes(data)
    video = opened(file)
    upright = sampled(opened(files("h264.mp4")), 5)
    found = sampled(video, 5)
    for frame, plain in zip(found, upright, strict=True):
        # The player turns clockwise.
        assert torch.equal(frame, torch.rot90(plain, -turned // 90, (0, 1)))
    # Core turns a frame as we do, or not at all. Not every frame shows it: some are black or symmetric.
    core = video.get_components().images[number(upright[1])]
    assert not torch.equal(upright[1], found[1])
    alike = [one for one in (found[1], upright[1]) if one.shape == core.shape]
    assert any((core - one).abs().max() < 2.5 / 255 for one in alike), "core turns frames another way"


def test_frames_of_a_video_that_is_not_a_file(comfyui: Any) -> None:
    from comfy_api.latest import InputImpl, Types

    from ovis_core.native.video_frames import frames_of

    images = torch.stack([torch.from_numpy(drawn(i)).float() / 255 for i in range(20)])
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(8)))
    assert frames_of(video) is video.get_components().images
    assert [*map(number, sampled(video, 4))] == [0, 6, 13, 19]


def test_frames_of_another_packs_video(comfyui: Any, files: Callable[[str], Path]) -> None:
    """A class that changes what a file shows: its own frames are used."""
    from comfy_api.latest import InputImpl, Types

    class Backwards(InputImpl.VideoFromFile):
        def get_components(self) -> Any:
            given = super().get_components()
            return Types.VideoComponents(images=given.images.flip(0), frame_rate=given.frame_rate)

    assert [*map(number, sampled(Backwards(str(files("h264.mp4"))), 3))] == [60, 30, 0]


def test_frames_of_a_video_that_core_edits(
    comfyui: Any, files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer versions of ComfyUI can crop and resize frames when they read them: their own frames are used."""
    from comfy_api.latest import InputImpl, Types

    video = InputImpl.VideoFromFile(str(files("h264.mp4")))
    edited = Types.VideoComponents(images=video.get_components().images[:1, :32], frame_rate=Fraction(8))
    monkeypatch.setattr(video, "has_pending_frame_edits", lambda: True, raising=False)
    monkeypatch.setattr(video, "get_components", lambda: edited)
    (frame,) = sampled(video, 3)
    assert frame.shape == (32, WIDTH, 3)


def test_damaged_files_still_give_frames(comfyui: Any, files: Callable[[str], Path], tmp_path: Path) -> None:
    data = bytearray(files("stream.ts").read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    broken = tmp_path / "broken.ts"
    broken.write_bytes(data)
    found = [*map(number, sampled(opened(broken), 9))]
    assert len(found) == 9
    assert found == sorted(found)
    assert len({*found}) > 4
    assert found[0] == 0


@pytest.mark.parametrize("data", [b"", b"no video", b"\0" * 5000])
def test_error_for_a_file_that_is_not_a_video(comfyui: Any, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(ValueError, match=r"^video: expected a file with a video, got one .*; choose another file\.$"):
        sampled(opened(tmp_path / "a.mp4"), 4)


def test_error_for_a_file_with_sound_only(comfyui: Any, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with pytest.raises(
        ValueError, match=r"^video: expected a file with a video stream that can be decoded, got a file"
    ):
        sampled(opened(tmp_path / "a.wav"), 4)


def test_an_interrupt_stops_decoding(comfyui: Any, files: Callable[[str], Path]) -> None:
    from comfy import model_management

    from ovis_core.native.video_frames import frames_of

    frames = frames_of(opened(files("one_keyframe.mp4")))
    assert number(frames[10]) == 10
    for work in (lambda: frames[50], lambda: frames_of(opened(files("one_keyframe.mp4")))):
        model_management.interrupt_current_processing(True)
        with pytest.raises(model_management.InterruptProcessingException):
            work()
    assert number(frames[50]) == 50


LONG, PERIOD = 18_000, 50  # frames of ten minutes; different ones among them


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes of 1920 x 1080, made of the same packets again and again."""
    file = tmp_path_factory.mktemp("long") / "long.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "25", "bf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        packets = list(encoded(container, stream, PERIOD))
        step = Fraction(1, 30)
        for again in range(LONG // PERIOD):
            for i, packet in enumerate(packets):
                packet.stream, packet.time_base = stream, step
                packet.pts = packet.dts = again * PERIOD + i
                packet.duration = 1
                container.mux(packet)
    return file


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """The most memory that this process takes within, above what it takes before, in bytes."""
    process, ended, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        ended.set()
        watching.join()


def test_a_long_video_takes_little_memory(loaded: tuple[Any, Any, Any], long_file: Path) -> None:
    from ovis_core.native.video_frames import frames_of
    from ovis_core.pixels import SampledFrames, to_pil, understanding_input
    from ovis_core.special_tokens import Placeholder

    tokenizer = loaded[1].tokenizer
    tokenizer.question("Warm up.", [torch.zeros(1080, 1920, 3)])
    with most_memory() as peak:
        tokens = tokenizer.question("What happens?", frames=frames_of(opened(long_file)), max_frames=8)
    (seen,) = (token for token in tokens if not isinstance(token, int))
    assert seen.grid[0] == 8
    # The patches alone are 200 MB, and core's frames of this file would be 448 GB.
    assert seen.patches.nbytes > 190e6
    assert peak[0] < 500e6
    frames = SampledFrames(frames_of(opened(long_file)), 8)
    expected = [round(i * (LONG - 1) / 7) % PERIOD for i in range(8)]
    assert len(set(expected)) == 8
    assert [*map(number, frames)] == expected
    assert torch.equal(understanding_input(map(to_pil, frames), Placeholder.VIDEO).patches, seen.patches)
