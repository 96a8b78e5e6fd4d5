"""Sound that libsndfile does not read: by PyAV, by ffmpeg, or a command that converts it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csm_cli.audio.decoders import AudioBytes
from csm_cli.audio.io import probe, read_audio
from csm_cli.errors import AudioUnreadable

av = pytest.importorskip("av")

RATE = 24000
# suffix, libav's container and codec, rate
KINDS = [
    ("m4a", "ipod", "aac", 44100),
    ("mp4", "mp4", "aac", 24000),
    ("aac", "adts", "aac", 44100),
    ("webm", "webm", "libopus", 48000),
    ("mka", "matroska", "aac", 44100),
    ("opus", "ogg", "libopus", 48000),
    ("wma", "asf", "wmav2", 44100),
]
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


def encoded(path: Path, container: str, codec: str, rate: int, seconds: float = 2.0, video: bool = False) -> Path:
    with av.open(str(path), "w", format=container) as output:
        if video:
            pictures = output.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        sound = output.add_stream(codec, rate=rate, layout="stereo")
        sound.bit_rate = 96_000
        samples = (9000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, 2)[None], format="s16", layout="stereo")
        frame.sample_rate = rate
        if video:
            for index in range(round(25 * 2 * seconds)):
                picture = av.VideoFrame(32, 32, "yuv420p")
                picture.pts = index
                output.mux(pictures.encode(picture))
            output.mux(pictures.encode())
        resampler = av.AudioResampler(sound.codec_context.format, "stereo", rate, sound.codec_context.frame_size)
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(sound.encode(each))
        output.mux(sound.encode())
    return path


@pytest.fixture(params=["pyav", pytest.param("ffmpeg", marks=needs_ffmpeg)])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "ffmpeg":
        monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(("suffix", "container", "codec", "rate"), KINDS)
def test_what_phones_and_browsers_record_is_read(
    tmp_path: Path, suffix: str, container: str, codec: str, rate: int
) -> None:
    path = encoded(tmp_path / f"a clip.{suffix}", container, codec, rate)
    assert abs(probe(path).duration - 2.0) < 0.1
    audio = read_audio(path, RATE, start=0.5, end=1.5)
    spectrum = np.abs(np.fft.rfft(audio.samples))
    assert len(audio.samples) == RATE and spectrum.argmax() == 440
    data = AudioBytes("cell", path.read_bytes())
    assert np.array_equal(read_audio(data, RATE, start=0.5, end=1.5).samples, audio.samples)


@pytest.mark.usefixtures("decoder")
def test_the_sound_of_a_video_is_read(tmp_path: Path) -> None:
    path = encoded(tmp_path / "clip.mp4", "mp4", "aac", 44100, 1.0, video=True)  # its pictures last twice as long
    assert abs(read_audio(path, RATE).duration - 1.0) < 0.1


@pytest.mark.usefixtures("decoder")
def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "mute.mp4"), "w") as output:
        stream = output.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode())
    with pytest.raises(AudioUnreadable, match="no sound track"):
        probe(tmp_path / "mute.mp4")


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = encoded(tmp_path / "cut.m4a", "ipod", "aac", 44100)
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    with pytest.raises(AudioUnreadable) as caught:
        probe(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_without_a_decoder_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encoded(tmp_path / "a clip.m4a", "ipod", "aac", 44100)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioUnreadable) as caught:
        probe(path)
    message = str(caught.value)
    assert "pip install 'csm-cli[av]'" in message and "\n" not in message
    assert f"ffmpeg -i '{path}' '{tmp_path / 'a clip.wav'}'" in message


@pytest.mark.usefixtures("decoder")
def test_a_playlist_leads_to_no_other_file(tmp_path: Path) -> None:
    encoded(tmp_path / "secret.m4a", "ipod", "aac", 44100)
    for name, text in [
        ("a.m3u8", "#EXTM3U\n#EXTINF:1,\nsecret.m4a\n"),
        ("b.m4a", "ffconcat version 1.0\nfile secret.m4a"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioUnreadable, match="not readable as audio"):
            probe(tmp_path / name)


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = encoded(tmp_path / "clip.m4a", "ipod", "aac", 44100, 1.0)
    assert probe(path).duration < 1.2
    encoded(path, "ipod", "aac", 44100, 2.0)
    assert probe(path).duration > 1.9


@pytest.mark.usefixtures("decoder")
def test_hours_in_a_small_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csm_cli.audio.decoders.MAX_SAMPLES", 700_000)
    data = encoded(tmp_path / "long.webm", "webm", "libopus", 48000, 10.0).read_bytes()
    with pytest.raises(AudioUnreadable, match="too long"):
        probe(AudioBytes("upload", data))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return [encoded(folder / each[0], *each[1:], 0.3).read_bytes() for each in KINDS]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_damage_is_read_or_refused(whole: list[bytes], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(whole)))
    for at, patch in data.draw(
        st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=4)), max_size=6)
    ):
        content[at : at + len(patch)] = patch
    clip = AudioBytes("clip", bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        read_audio(clip, RATE)
    except AudioUnreadable as error:
        assert str(error).startswith("clip: ") and "\n" not in str(error)
