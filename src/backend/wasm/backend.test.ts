/**
 * The WebAssembly backend on hosts that are not Node: the browser's, with Web Workers played by Node's threads, and ones that refuse threads.
 */
import { readFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test, vi } from "vitest";
import { artifactPath, nodeHost } from "./host-node.ts";
import { webHost } from "./host-web.ts";
import { createWasmBackend } from "./backend.ts";
import type { WasmBackend } from "./backend.ts";

/** What a Web Worker is to its creator, on a Node thread whose listeners get what is posted. */
class PlayedWebWorker {
  static readonly started: Worker[] = [];
  static readonly errors: unknown[] = [];
  readonly #worker: Worker;
  constructor(url: URL) {
    const entry = `const { parentPort } = require("node:worker_threads");
      globalThis.addEventListener = (_, listener) => parentPort.on("message", (data) => listener({ data }));
      import(${JSON.stringify(url.href)});`;
    this.#worker = new Worker(entry, { eval: true });
    this.#worker.unref();
    this.#worker.on("error", (error) => PlayedWebWorker.errors.push(error));
    PlayedWebWorker.started.push(this.#worker);
  }
  postMessage(message: unknown): void {
    this.#worker.postMessage(message); // oxlint-disable-line unicorn/require-post-message-target-origin -- that is a window's
  }
  terminate(): void {
    void this.#worker.terminate();
  }
}

const artifact = `data:application/wasm;base64,${readFileSync(artifactPath, "base64")}`;
const workerScript = new URL("./worker-web.ts", import.meta.url);

/** Fills a long row and reads both ends. */
function fill(backend: WasmBackend, value: number): number[] {
  const n = 1_000_003;
  const ptr = backend.alloc(4 * n);
  backend.kernels.fillF32(ptr, n, value);
  const ends = [ptr, ptr + 4 * (n - 1)].map((at) => {
    const one = new Float32Array(1);
    backend.read(one, at);
    return one[0] ?? Number.NaN;
  });
  backend.free(ptr);
  return ends;
}

describe("the WebAssembly backend in a browser", () => {
  afterEach(() => {
    vi.unstubAllGlobals();
    PlayedWebWorker.started.length = 0;
  });

  test("starts Web Workers that join the pool without an error, from a main thread that may not wait", async () => {
    vi.stubGlobal("Worker", PlayedWebWorker);
    vi.stubGlobal("crossOriginIsolated", true);
    const host = webHost(artifact, workerScript);
    expect(host.callerMayWait).toBe(false);
    const backend = await createWasmBackend(host, 3);
    expect([backend.numThreads, backend.threadsReason, PlayedWebWorker.started.length]).toEqual([3, undefined, 2]);
    const ended = Promise.all(PlayedWebWorker.started.map((worker) => new Promise((done) => worker.once("exit", done))));
    await new Promise((done) => setTimeout(done, 300));
    for (let value = 1; value <= 20; value++) expect(fill(backend, value)).toEqual([value, value]);
    backend.dispose();
    await ended;
    expect(PlayedWebWorker.errors).toEqual([]);
  });

  test("works on one thread where the page is not cross-origin isolated, and says so", async () => {
    vi.stubGlobal("Worker", PlayedWebWorker);
    const backend = await createWasmBackend(webHost(artifact, workerScript), 2);
    expect([backend.numThreads, PlayedWebWorker.started.length]).toEqual([1, 0]);
    expect(backend.threadsReason).toContain("not cross-origin isolated");
    expect(fill(backend, 5)).toEqual([5, 5]);
    backend.dispose();
  });

  test("names what it got where the artifact is missing", async () => {
    vi.stubGlobal("fetch", async () => new Response("", { status: 404 }));
    await expect(createWasmBackend(webHost("https://example.org/moe.wasm", workerScript), 1)).rejects.toMatchObject({
      kind: "resource",
      message: "https://example.org/moe.wasm: expected moe.wasm, got HTTP status 404",
    });
  });
});

describe("a host without its promises", () => {
  test("gives a backend of fewer threads when a later one does not start, without a leak", async () => {
    let spawned = 0;
    const host = {
      ...nodeHost,
      spawn: (init: Parameters<typeof nodeHost.spawn>[0]) => {
        if (++spawned > 1) throw new Error("no more threads");
        return nodeHost.spawn(init);
      },
    };
    const backend = await createWasmBackend(host, 4);
    expect([backend.numThreads, backend.threadsReason, backend.liveBytes]).toEqual([2, "threads do not start: no more threads", 0]);
    expect(fill(backend, 2)).toEqual([2, 2]);
    backend.dispose();
  });

  test("refuses bytes that are not WebAssembly as a resource that is missing", async () => {
    const host = { ...nodeHost, readArtifact: async () => Uint8Array.of(1, 2, 3, 4) };
    await expect(createWasmBackend(host, 1)).rejects.toMatchObject({
      kind: "resource",
      message: expect.stringContaining("does not start here") as string,
    });
  });
});
