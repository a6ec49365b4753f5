/**
 * A browser as the host of moe.wasm: the artifact comes by URL, threads are Web Workers. Pages need cross-origin isolation (COOP and COEP
 * headers) for threads; without it memory cannot be sent to a worker, and the engine runs on one thread and says why.
 *
 * The few browser names used are typed here: this project is not compiled with the browser's library of types.
 */
import { MoeError } from "../../util/errors.ts";
import type { WasmHost } from "./types.ts";

interface WebWorker {
  postMessage(message: unknown): void;
  terminate(): void;
}

interface WebScope {
  readonly Worker?: new (url: URL | string, options: { type: "module" }) => WebWorker;
  readonly WorkerGlobalScope?: unknown;
  readonly crossOriginIsolated?: boolean;
}

/**
 * @param artifact URL of moe.wasm
 * @param workerScript URL of the compiled `worker-web.js`, which a bundler may have moved
 */
export function webHost(artifact: URL | string, workerScript: URL | string): WasmHost {
  const scope = globalThis as unknown as WebScope;
  return {
    // Only workers may wait; a page's main thread spins until its kernel is done.
    callerMayWait: scope.WorkerGlobalScope !== undefined,
    async readArtifact() {
      const response = await fetch(artifact);
      if (!response.ok) throw new MoeError("resource", `${String(artifact)}: expected moe.wasm, got HTTP status ${response.status}`);
      return new Uint8Array(await response.arrayBuffer());
    },
    spawn(init) {
      if (scope.crossOriginIsolated !== true) throw new Error("the page is not cross-origin isolated (COOP and COEP headers)");
      if (scope.Worker === undefined) throw new Error("there are no Web Workers");
      const worker = new scope.Worker(workerScript, { type: "module" });
      worker.postMessage(init); // oxlint-disable-line unicorn/require-post-message-target-origin -- that is a window's
      return worker;
    },
  };
}
