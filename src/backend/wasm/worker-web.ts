/** Entry of a pool thread in a browser: its place comes as the first message; it then works until the pool stops. */
import { joinPool } from "./instance.ts";
import type { WorkerInit } from "./types.ts";

const scope = globalThis as unknown as { addEventListener(type: "message", listener: (event: { data: WorkerInit }) => void): void };
scope.addEventListener("message", (event) => joinPool(event.data));
