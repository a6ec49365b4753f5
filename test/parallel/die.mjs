/**
 * Loaded into a server under test (`NODE_OPTIONS=--import`): the thread of rank 1 ends, without a word, between two steps of the model once the
 * file that MOE_TEST_DIE names is there. Ranks read messages with `deserialize`, which is where they are caught.
 */
import { existsSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import v8 from "node:v8";
import { isMainThread, workerData } from "node:worker_threads";

const flag = process.env.MOE_TEST_DIE;
if (!isMainThread && workerData?.memory?.rank === 1 && flag !== undefined) {
  const { deserialize } = v8;
  v8.deserialize = (bytes) => {
    if (existsSync(flag)) process.exit(5);
    return deserialize(bytes);
  };
  syncBuiltinESMExports();
}
