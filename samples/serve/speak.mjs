// Speech from `csm serve` with OpenAI's JavaScript client: npm install openai, then node speak.mjs
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: process.env.CSM_API_KEY ?? "none" });
const speech = await client.audio.speech.create({
  model: "csm",
  voice: "alloy",
  input: "Hello there.",
  response_format: "wav",
});
await writeFile("hello.wav", Buffer.from(await speech.arrayBuffer()));
