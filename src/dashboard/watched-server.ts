/**
 * A served model that the dashboard watches: its `/metrics` once a second, by one reader however many pages look on, and only while one does.
 * The address is the one that the command was given; nothing that a page sends changes it.
 */
import { MoeError } from "../util/errors.ts";
import type { ServerAnswer, ServerReading } from "./api.ts";
import { parseSamples, readingOf, type Samples } from "./prometheus.ts";

const maxReadings = 600;
const maxBytes = 16 << 20;

export interface WatchedServerOptions {
  readonly url: string;
  readonly apiKey: string | null;
  readonly intervalMs?: number;
}

export class WatchedServer {
  readonly url: string;
  readonly #address: URL;
  readonly #apiKey: string | null;
  readonly #intervalMs: number;
  readonly #readings: ServerReading[] = [];
  #last: { samples: Samples; time: number } | null = null;
  #error: string | null = null;
  #timer: NodeJS.Timeout | null = null;
  #asking = false;

  /** Throws `usage` for what is no address of a server. */
  constructor({ url, apiKey, intervalMs = 1000 }: WatchedServerOptions) {
    let address: URL;
    try {
      address = new URL(url);
    } catch {
      throw new MoeError("usage", `--server ${url}: expected an address like http://127.0.0.1:8000`);
    }
    if (!["http:", "https:"].includes(address.protocol) || address.username !== "")
      throw new MoeError("usage", `--server ${url}: expected an address like http://127.0.0.1:8000`);
    this.#address = new URL("/metrics", address);
    this.url = address.origin;
    this.#apiKey = apiKey;
    this.#intervalMs = intervalMs;
  }

  get answer(): ServerAnswer {
    return { url: this.url, error: this.#error, readings: this.#readings };
  }

  /** Asks now and at every interval while `isWanted`; `onReading` gets the newest. */
  start(isWanted: () => boolean, onReading: (answer: ServerAnswer) => void): void {
    this.#timer ??= setInterval(() => {
      if (isWanted()) void this.read().then(() => onReading({ ...this.answer, readings: this.#readings.slice(-1) }));
    }, this.#intervalMs);
    this.#timer.unref();
  }
  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  /** One reading. What fails is kept in words as the answer's `error`. */
  async read(): Promise<void> {
    if (this.#asking) return;
    this.#asking = true;
    try {
      const headers = this.#apiKey === null ? {} : { authorization: `Bearer ${this.#apiKey}` };
      const response = await fetch(this.#address, { headers, redirect: "error", signal: AbortSignal.timeout(5000) });
      if (!response.ok) throw new Error(response.status === 401 ? "the server wants a key: --api-key" : `status ${response.status}`);
      const samples = parseSamples(await boundedText(response));
      const time = Date.now();
      const seconds = this.#last === null ? 0 : (time - this.#last.time) / 1000;
      this.#readings.push(readingOf(this.#last?.samples ?? null, samples, { time, seconds }));
      if (this.#readings.length > maxReadings) this.#readings.shift();
      this.#last = { samples, time };
      this.#error = null;
    } catch (error) {
      const cause = error instanceof Error && error.cause instanceof Error ? `: ${error.cause.message}` : "";
      this.#error = `${this.url} does not answer (${error instanceof Error ? error.message : String(error)}${cause})`;
    } finally {
      this.#asking = false;
    }
  }
}

async function boundedText(response: Response): Promise<string> {
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk as Uint8Array, { stream: true });
    if (text.length > maxBytes) throw new Error("its metrics have no end");
  }
  return text;
}
