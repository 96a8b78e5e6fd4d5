"""The bundled voice as it lies: transformers loads it, and from text to sound the two agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny import assert_same_codes
from safetensors import safe_open
from transformers import AutoProcessor, CsmForConditionalGeneration

from csm_cli.checkpoint import open_checkpoint
from csm_cli.generation.events import Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.types import Conversation, GenerationOptions, Recording, Turn

ROOT = Path(__file__).parents[2]
VOICE = ROOT / "csm_cli" / "assets" / "voice"
HEARD = "Yes, thank you. The house is quiet."
SAID = "We can go there now."


@pytest.fixture(scope="module")
def theirs() -> CsmForConditionalGeneration:
    return CsmForConditionalGeneration.from_pretrained(VOICE).eval()


@pytest.fixture(scope="module")
def synth() -> Synthesizer:
    return Synthesizer(open_checkpoint(), torch.device("cpu"), torch.float32)


def spoken(synth: Synthesizer, conversation: Conversation) -> Utterance:
    events = synth.speak([conversation], GenerationOptions(temperature=0.0, max_duration=4.0))
    return next(event for event in events if isinstance(event, Utterance))


@pytest.mark.parametrize("context", [False, True], ids=["alone", "with context"])
def test_greedy_speech_equals_transformers(
    theirs: CsmForConditionalGeneration, synth: Synthesizer, context: bool
) -> None:
    """transformers' own processor makes its prompt, its codec hears the context and speaks the result."""
    audio = ROOT / "samples" / "context" / "ben.wav"
    samples = synth.read_recording(Recording(audio)).samples
    heard = {"role": "0", "content": [{"type": "text", "text": HEARD}, {"type": "audio", "path": samples}]}
    said = {"role": "1", "content": [{"type": "text", "text": SAID}]}
    processor = AutoProcessor.from_pretrained(VOICE)
    prompt = processor.apply_chat_template([heard, said] if context else [said], tokenize=True, return_dict=True)
    options = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 50}
    codes = theirs.generate(**prompt, **options)[0]
    sound = theirs.generate(**prompt, **options, output_audio=True)[0]

    past = (Turn(0, HEARD, recording=Recording(audio)),) if context else ()
    ours = spoken(synth, Conversation((Turn(1, SAID),), past))
    assert len(ours.codes) > 5
    assert_same_codes(SAID, ours.codes, codes)
    torch.testing.assert_close(
        torch.from_numpy(ours.audio.samples), sound[: len(ours.audio.samples)], atol=1e-4, rtol=0
    )


def test_the_weights_are_small_and_half() -> None:
    """At most 15.5 M weights and 32 MB, stored as float16."""
    with safe_open(VOICE / "model.safetensors", framework="pt") as file:
        tensors = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors} <= {"F16", "I64"}
        weights = sum(torch.Size(tensor.get_shape()).numel() for tensor in tensors)
    assert weights <= 15.5e6
    assert sum(path.stat().st_size for path in VOICE.rglob("*")) <= 32e6
