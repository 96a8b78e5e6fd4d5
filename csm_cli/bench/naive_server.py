"""The server that `csm serve` is compared with: transformers' `generate` behind a lock, one request at a time.

Run as `python -m csm_cli.bench.naive_server MODEL DEVICE`; prints its URL and process as a JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import torch

from csm_cli.audio.io import encode_pcm
from csm_cli.bench.random_checkpoint import silence_logs


def main(model_name: str, device: str) -> None:
    from transformers import AutoProcessor, CsmForConditionalGeneration, set_seed

    silence_logs()
    processor = AutoProcessor.from_pretrained(model_name)
    model = CsmForConditionalGeneration.from_pretrained(model_name).to(device).eval()
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        """POST speaks; GET says that the server is ready."""

        def do_GET(self) -> None:
            self._reply(b"OK")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            turn = {"role": "0", "content": [{"type": "text", "text": body["input"]}]}
            with lock, torch.inference_mode():
                set_seed(body["seed"])
                prompt = processor.apply_chat_template([turn], tokenize=True, return_dict=True).to(device)
                samples = model.generate(**prompt, output_audio=True, max_new_tokens=250)[0]
            self._reply(encode_pcm(samples.float().cpu().numpy()))

        def _reply(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the standard error of the benchmark is for its figures."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    started = {"url": f"http://127.0.0.1:{server.server_port}", "pid": os.getpid()}
    sys.stdout.write(json.dumps(started) + "\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
