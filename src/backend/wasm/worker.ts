/** Entry of a pool thread under Node: takes its place from `workerData` and works until the pool stops. */
import { workerData } from "node:worker_threads";
import { joinPool } from "./instance.ts";
import type { WorkerInit } from "./types.ts";

joinPool(workerData as WorkerInit);
