"""pipecat's OpenAI service speaks a text in a pipeline; prints what arrived. Runs in an environment of its own."""

import asyncio
import json
import sys

from pipecat.frames.frames import ErrorFrame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.tests.utils import run_test


async def main(url: str) -> None:
    service = OpenAITTSService(api_key="none", base_url=f"{url}/v1", sample_rate=24000)
    frames, _ = await run_test(service, frames_to_send=[TTSSpeakFrame("Hello there.")])
    audio = [frame for frame in frames if isinstance(frame, TTSAudioRawFrame)]
    figures = {
        "seconds": sum(len(frame.audio) for frame in audio) / 2 / 24000,
        "rates": sorted({frame.sample_rate for frame in audio}),
        "errors": [frame.error for frame in frames if isinstance(frame, ErrorFrame)],
    }
    sys.stdout.write(json.dumps(figures) + "\n")


asyncio.run(main(sys.argv[1]))
