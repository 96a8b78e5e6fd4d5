"""A voice for a pipecat agent: its OpenAI service speaks through `csm serve` (pip install pipecat-ai)."""

import asyncio

from pipecat.frames.frames import EndFrame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner


class Speaker(FrameProcessor):
    """Here an agent has its transport's output."""

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            print(len(frame.audio), "bytes of audio at", frame.sample_rate, "Hz")
        await self.push_frame(frame, direction)


async def main():
    speech = OpenAITTSService(base_url="http://127.0.0.1:8000/v1", api_key="none", sample_rate=24000)
    worker = PipelineWorker(Pipeline([speech, Speaker()]))
    await worker.queue_frames([TTSSpeakFrame("Hello there. How can I help?"), EndFrame()])
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()


asyncio.run(main())
