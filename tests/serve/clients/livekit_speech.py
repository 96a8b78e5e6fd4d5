"""livekit-plugins-openai speaks a text in each way it knows; prints what arrived. Runs in an environment of its own."""

import asyncio
import json
import sys

from livekit.plugins.openai import TTS


async def speak(url: str, model: str, response_format: str) -> dict[str, float]:
    speech = TTS(model=model, voice="ash", base_url=f"{url}/v1", api_key="none", response_format=response_format)
    speech.prewarm()
    seconds, rates = 0.0, set()
    async for event in speech.synthesize("Hello there."):
        seconds += event.frame.duration
        rates.add(event.frame.sample_rate)
    await speech.aclose()
    return {"seconds": seconds, "rates": sorted(rates)}


async def main(url: str) -> None:
    ways = [(model, name) for model in ("tts-1", "gpt-4o-mini-tts") for name in ("mp3", "opus", "wav", "pcm", "flac")]
    figures = {f"{model} {name}": await speak(url, model, name) for model, name in ways}
    sys.stdout.write(json.dumps(figures) + "\n")


asyncio.run(main(sys.argv[1]))
