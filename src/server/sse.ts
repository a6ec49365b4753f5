/** Server-sent events: the head is written with the first event, so that what fails before it is still an ordinary answer with a status. */
import type { ServerResponse } from "node:http";

/** Bytes that may wait for a client that does not read. */
const maxBacklog = 8 << 20;
const keepAliveMs = 15_000;

export class EventStream {
  readonly #response: ServerResponse;
  #keepAlive: NodeJS.Timeout | null = null;

  constructor(response: ServerResponse) {
    this.#response = response;
  }
  get isOpen(): boolean {
    return this.#keepAlive !== null;
  }
  /** Writes the head. */
  open(): void {
    if (this.isOpen) return;
    this.#response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    });
    this.#response.flushHeaders();
    // A request that waits for its turn says so, or proxies take it for dead.
    this.#keepAlive = setInterval(() => this.#write(": waiting\n\n"), keepAliveMs);
    this.#response.once("close", () => {
      this.#stopKeepAlive();
    });
  }
  /** One event, with a name where the protocol has names. */
  send(data: unknown, event?: string): void {
    this.open();
    this.#write(`${event === undefined ? "" : `event: ${event}\n`}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
  }
  end(): void {
    this.#stopKeepAlive();
    if (!this.#response.writableEnded) this.#response.end();
  }
  #stopKeepAlive(): void {
    if (this.#keepAlive !== null) clearInterval(this.#keepAlive);
  }
  #write(text: string): void {
    if (this.#response.destroyed || this.#response.writableEnded) return;
    this.#response.write(text);
    // Who lets megabytes lie does not read: the connection is closed, which ends the request.
    if (this.#response.writableLength > maxBacklog) this.#response.destroy();
  }
}
