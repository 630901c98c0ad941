"""Frames from files: upright, RGB, every one that was asked for; and a damaged file is a `SourceError`, always."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import wave
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from skerry.errors import SourceError
from skerry.execution.frames import open_video, pixels, read_frames, read_image

ORIENTATION = 0x0112  # EXIF


def picture():
    """Three rows, two columns, each pixel its own colour."""
    return np.array(
        [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)], [(0, 255, 255), (255, 0, 255)]], np.uint8
    )


def saved(array, path, mode=None, **options):
    Image.fromarray(array).convert(mode or "RGB").save(path, **options)
    return path


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".tiff"])
def test_an_image_is_rgb_with_height_first(tmp_path, suffix):
    np.testing.assert_array_equal(read_image(saved(picture(), tmp_path / f"a{suffix}")), picture())


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_a_lossy_image_is_nearly_the_same(tmp_path, suffix):
    large = np.repeat(np.repeat(picture(), 16, axis=0), 16, axis=1)
    found = read_image(saved(large, tmp_path / f"a{suffix}", quality=95))
    assert found.shape == large.shape
    assert np.abs(found.astype(int) - large).mean() < 8


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 3)),  # the camera was turned left: the picture must be turned right
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_a_photo_stands_upright_as_its_exif_says(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(picture(), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), turned(picture()))


def test_the_exif_of_a_jpeg_counts_too(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = saved(np.zeros((8, 24, 3), np.uint8), tmp_path / "a.jpg", exif=exif)
    assert read_image(path).shape == (24, 8, 3)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_image_comes_as_three_bytes_a_pixel(tmp_path, mode):
    if mode == "I;16":
        Image.fromarray(np.full((3, 2), 300, np.uint16)).save(tmp_path / "a.tif")
    else:
        saved(picture(), tmp_path / "a.tif", mode)
    found = read_image(tmp_path / "a.tif")
    assert (found.shape, found.dtype) == ((3, 2, 3), np.uint8)


def test_white_is_white_in_every_kind_of_image(tmp_path):
    for mode in ("L", "P", "1", "RGBA", "CMYK"):
        path = saved(np.full((3, 2, 3), 255, np.uint8), tmp_path / f"{mode}.tif", mode)
        assert (read_image(path) == 255).all(), mode


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("raw", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0"])
def test_what_is_no_image_is_a_source_error_that_names_the_file(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(SourceError, match=f"cannot read the image .*{name}"):
        read_image(tmp_path / name)


def test_an_image_that_is_not_there_or_is_a_folder(tmp_path):
    for path in (tmp_path / "nowhere.jpg", tmp_path):
        with pytest.raises(SourceError, match="cannot read the image"):
            read_image(path)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_an_image_that_would_fill_the_memory_is_refused_before_it_does(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    with pytest.raises(SourceError, match="bomb"):
        read_image(tmp_path / "bomb.png")


def test_a_png_whose_second_half_is_damaged_is_a_source_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50, 40, 8, 2, 0, 0, 0))
    halves = chunk(b"IDAT", rows[:3000]) + chunk(b"\xd0\xa9\x11~", rows[3000:])
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + halves + chunk(b"IEND", b""))
    with pytest.raises(SourceError, match=r"half\.png"):
        read_image(tmp_path / "half.png")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_gray_of_16_bits_keeps_its_shades(tmp_path, name):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    Image.fromarray(ramp).save(tmp_path / name)

    found = read_image(tmp_path / name)

    assert found.shape == (8, 64, 3)
    assert np.array_equal(found[..., 0], np.round(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / "a.tif")

    with pytest.raises(SourceError, match="its pixels are numbers of 32 bits; expected 8 or 16"):
        read_image(tmp_path / "a.tif")


def test_a_photo_whose_exif_is_damaged_is_a_source_error_or_a_picture(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x011A] = 72.0
    exif[0x010E] = "a description"
    raw = io.BytesIO()
    Image.fromarray(np.zeros((8, 24, 3), np.uint8)).save(raw, "JPEG", exif=exif)
    start = raw.getvalue().index(b"Exif")
    for seed in range(300):
        chance, damaged = random.Random(seed), bytearray(raw.getvalue())
        for _ in range(3):
            damaged[start + 6 + chance.randrange(90)] = chance.randrange(256)
        (tmp_path / "a.jpg").write_bytes(damaged)
        with contextlib.suppress(SourceError):
            assert read_image(tmp_path / "a.jpg").shape[2] == 3


# --- videos --------------------------------------------------------------------------------------------------------


def film(path, frames=12, rate=10, **metadata):
    """Grey frames, each 20 brighter than the one before."""
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            grey = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames):
    """Which frames of `film` these are."""
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_a_video_gives_all_its_frames_in_order_and_its_rate(tmp_path):
    with open_video(film(tmp_path / "a.mp4", rate=10)) as video:
        assert video.rate == 10
        frames = [pixels(frame) for frame in video.frames()]
    assert numbers(frames) == list(range(12))
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((48, 64, 3), "uint8")}


def test_a_video_in_colour_is_rgb(tmp_path):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        red = np.zeros((48, 64, 3), np.uint8)
        red[:, :, 0] = 220
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    with open_video(path) as video:
        (frame,) = map(pixels, video.frames())
    assert np.abs(frame.mean(axis=(0, 1)) - (220, 0, 0)).max() < 12


def test_a_video_decodes_on_one_thread(tmp_path):
    with open_video(film(tmp_path / "a.mp4")) as video:
        assert video._stream.codec_context.thread_count == 1


@pytest.mark.parametrize("raw", [b"", b"no video at all" * 50])
def test_what_is_no_video_is_a_source_error_that_names_the_file(tmp_path, raw):
    (tmp_path / "a.mp4").write_bytes(raw)
    with pytest.raises(SourceError, match=r"cannot open the video .*a\.mp4"), open_video(tmp_path / "a.mp4"):
        pass


def test_a_video_that_is_not_there_or_is_a_folder(tmp_path):
    for path in (tmp_path / "nowhere.mp4", tmp_path):
        with pytest.raises(SourceError, match="cannot open the video"), open_video(path):
            pass


def test_sound_alone_is_no_video(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16_000))
    with pytest.raises(SourceError, match=r"a\.wav has no video stream"), open_video(tmp_path / "a.wav"):
        pass


def test_a_video_of_an_unknown_kind_is_a_source_error(tmp_path):
    path = film(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"XYZW"))
    with pytest.raises(SourceError, match=r"a\.avi"), open_video(path) as video:
        list(video.frames())


def test_a_title_that_is_not_unicode_does_not_stop_a_video(tmp_path):
    path = film(tmp_path / "a.mp4", title="a lighthouse")
    path.write_bytes(path.read_bytes().replace(b"a lighthouse", b"a lighth\xf6use"))
    with open_video(path) as video:
        assert len(list(video.frames())) == 12


def test_a_damaged_video_gives_its_good_frames_or_a_source_error(tmp_path):
    raw = film(tmp_path / "a.mp4").read_bytes()
    damaged_path = tmp_path / "b.mp4"
    for seed in range(150):
        chance, damaged = random.Random(seed), bytearray(raw)
        if seed % 3 == 0:
            del damaged[chance.randrange(len(damaged)) :]
        for _ in range(seed % 3 * 5):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        damaged_path.write_bytes(damaged)
        with contextlib.suppress(SourceError), open_video(damaged_path) as video:
            assert all(pixels(frame).shape[2] == 3 for frame in video.frames())


def test_leaving_a_video_early_closes_it(tmp_path):
    path = film(tmp_path / "a.mp4")
    with open_video(path) as video:
        first = next(video.frames())
    assert pixels(first).mean() < 5  # a decoded frame outlives its file


# --- frames by number ----------------------------------------------------------------------------------------------


def test_frames_are_found_by_path_and_number(tmp_path):
    one, two = str(film(tmp_path / "a.mp4")), str(film(tmp_path / "b.mp4"))
    photo = str(saved(np.full((48, 64, 3), 220, np.uint8), tmp_path / "c.png"))
    found = read_frames([(one, 0), (one, 7), (one, 11), (two, 3), (photo, 0)])
    assert numbers(found) == [0, 7, 11, 3, 11]


def test_no_frame_is_read_before_it_is_asked_for(tmp_path):
    frames = read_frames([(str(film(tmp_path / "a.mp4")), 2), (str(tmp_path / "nowhere.mp4"), 0)])
    assert numbers([next(frames)]) == [2]
    with pytest.raises(SourceError):
        next(frames)


def test_a_frame_that_is_asked_for_twice_comes_twice(tmp_path):
    path = str(film(tmp_path / "a.mp4"))
    assert numbers(read_frames([(path, 3), (path, 3), (path, 5)])) == [3, 3, 5]


@pytest.mark.parametrize("wanted", [[12], [3, 99]])
def test_a_frame_beyond_the_end_is_a_source_error_and_not_left_out(tmp_path, wanted):
    path = str(film(tmp_path / "a.mp4"))
    with pytest.raises(SourceError, match=r"a\.mp4"):
        list(read_frames([(path, number) for number in wanted]))
