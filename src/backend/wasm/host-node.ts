/** Node as the host of moe.wasm: the artifact is a file of the package, threads are worker threads. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { MoeError } from "../../util/errors.ts";
import type { WasmHost } from "./types.ts";

/** The committed artifact. */
export const artifactPath = fileURLToPath(new URL("../../../native/prebuilt/moe.wasm", import.meta.url));

export const nodeHost: WasmHost = {
  callerMayWait: true,
  async readArtifact() {
    return readFile(artifactPath).catch((error: unknown) => {
      throw new MoeError("resource", `the WebAssembly engine is not in this package: ${String(error)}`, { cause: error });
    });
  },
  spawn(init) {
    // Compiled code runs worker.js, a source checkout worker.ts: the same folder, this file's own extension.
    const entry = new URL(`./worker${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url);
    const worker = new Worker(entry, { workerData: init, execArgv: [], stdout: false });
    worker.unref();
    // The pool runs on without a thread that fails: whatever nobody claims, the caller computes.
    worker.on("error", (error) => process.emitWarning(`a thread of the WebAssembly engine failed: ${String(error)}`));
    return { terminate: () => void worker.terminate() };
  },
};
