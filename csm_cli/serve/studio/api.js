// The server's public API: requests with the key, errors in one form, retries of 503, server-sent events.

const KEY = "csm-studio-key"; // in sessionStorage: gone when the tab closes
const MAX_TRIES = 6;
const MAX_WAIT_SECONDS = 30;

/** A request that failed. status: 0 without an answer. code: the server's, or "offline", "interrupted". */
export class ApiError extends Error {
  constructor(message, status = 0, code = "", retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

const sleep = (seconds, signal) => new Promise((resolve, reject) => {
  const stop = () => { clearTimeout(timer); reject(signal.reason); };
  const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); resolve(); }, seconds * 1000);
  signal?.addEventListener("abort", stop, { once: true });
});

async function errorOf(response) {
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* not JSON: a proxy answered */ }
  const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
  const message = error.message || `the server answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(message, response.status, error.code ?? "", Number.isFinite(retryAfter) ? retryAfter : null);
}

export class Api {
  /** askKey: asks the user for the key, resolves to it or rejects; it is called when the server wants one. */
  constructor(askKey) {
    this.askKey = askKey;
  }

  /**
   * The response of a request that succeeded. 503 is tried again after Retry-After, 401 after the user gave a key.
   *
   * options: method, json (a body), form (FormData), signal, onWait(seconds, problem) before each wait.
   */
  async request(path, { method = "GET", json, form, signal, onWait } = {}) {
    const body = form ?? (json === undefined ? undefined : JSON.stringify(json));
    for (let tries = 1; ; tries++) {
      const key = sessionStorage.getItem(KEY), headers = {};
      if (key) headers.authorization = `Bearer ${key}`;
      if (json !== undefined) headers["content-type"] = "application/json";
      let response;
      try {
        response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
      } catch (problem) {
        if (signal?.aborted) throw problem;
        throw new ApiError("No connection to the server. Check that csm serve is running, then try again.", 0, "offline");
      }
      if (response.ok) return response;
      const error = await errorOf(response);
      if (error.status === 401) {
        // another request may have got the key meanwhile
        if (sessionStorage.getItem(KEY) === key) sessionStorage.setItem(KEY, await this.askKey(Boolean(key)));
        tries--;
      } else if (error.status === 503 && error.retryAfter !== null && error.retryAfter <= MAX_WAIT_SECONDS && tries < MAX_TRIES) {
        const seconds = Math.max(1, error.retryAfter);
        onWait?.(seconds, error);
        await sleep(seconds, signal);
      } else throw error;
    }
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  /** Calls onEvent for each server-sent event and returns the last one. onStart gets the response's sample rate. */
  async events(path, { onEvent, onStart, ...options }) {
    const response = await this.request(path, { method: "POST", ...options });
    onStart?.(Number(response.headers.get("x-sample-rate")) || 24000);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "", last = null;
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (buffer + value).split("\n\n");
        buffer = parts.pop();
        for (const part of parts) {
          if (!part.startsWith("data: ")) continue;
          last = JSON.parse(part.slice(6));
          if (last.type === "error") throw new ApiError(last.error.message, 200, last.error.code ?? "");
          onEvent(last);
        }
      }
    } catch (problem) {
      if (problem instanceof ApiError || options.signal?.aborted) throw problem;
      last = null;
    }
    if (last?.type !== "speech.audio.done") {
      throw new ApiError("The connection broke before the turn was finished.", 0, "interrupted");
    }
    return last;
  }
}
