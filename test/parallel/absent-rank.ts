/** Entry of a rank of a group in which one does not come. */
import type { BackendName } from "../../src/backend/backend.ts";
import { runRank } from "../../src/parallel/index.ts";

export interface Absence {
  readonly engine: BackendName;
  readonly rank: number;
  readonly how: "throws" | "throws while its memory is being read" | "exits" | "sleeps" | "elsewhere" | "another length" | "returns";
}

const count = 1 << 20;

await runRank(({ engine: { backend }, communicator, data }) => {
  const { rank, how } = data as Absence;
  const ptr = backend.alloc(4 * count);
  backend.write(ptr, new Float32Array(count).fill(1));
  communicator.barrier();
  if (how === "throws while its memory is being read") {
    // All ranks are in the midst of sums over all memories when one of them leaves, and its memory goes.
    for (let i = 0; i < 200; i++) {
      const pending = communicator.startAllReduce(ptr, count, "f32");
      if (communicator.rank === rank && i === 20) throw new Error("this rank gives up");
      pending.wait();
    }
  }
  if (how === "another length") {
    const sends = communicator.rank === rank ? [16, 8] : [8, 8];
    communicator.allToAll(ptr, [8, 8], ptr + 64, sends);
  }
  if (how === "returns") {
    // Its last words still arrive.
    if (communicator.rank === rank) for (const to of [0, 2]) communicator.send(ptr, 400, to, 7);
    else communicator.recv(ptr + 64, 400, rank, 7);
    if (communicator.rank === rank) {
      backend.free(ptr);
      return;
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
  }
  if (communicator.rank !== rank) communicator.barrier();
  else if (how === "throws") throw new Error("this rank gives up");
  else if (how === "elsewhere") communicator.share(new Uint8Array(5), rank);
  else if (how === "exits") process.exit(3);
  else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 6000);
  backend.free(ptr);
});
