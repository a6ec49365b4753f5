/**
 * Ranks of row `allreduce.4mb`: threads that `startRanks` started, or processes under mpirun. Either way rank 0 gets `<bytes> <calls>` and says
 * how many seconds the calls took.
 */
import { createInterface } from "node:readline";
import { isMainThread, parentPort } from "node:worker_threads";
import { findLauncher, runMpiRank, runRank, type RankContext } from "../src/parallel/index.ts";

/** Seconds of `calls` sums of `bytes` bytes of f32 over all ranks. */
function sample({ engine: { backend }, communicator }: RankContext, bytes: number, calls: number): number {
  const ptr = backend.alloc(bytes);
  backend.write(ptr, new Float32Array(bytes / 4));
  communicator.barrier();
  const started = performance.now();
  for (let i = 0; i < calls; i++) communicator.allReduce(ptr, bytes / 4, "f32");
  const seconds = (performance.now() - started) / 1000;
  backend.free(ptr);
  return seconds;
}

/** Rank 0 takes lines, and tells the others, which sleep meanwhile. */
async function serve(context: RankContext, lines: AsyncIterable<string>, answer: (seconds: number) => void): Promise<void> {
  const { communicator } = context;
  const say = (text: string): void => void communicator.share(new TextEncoder().encode(text), 0);
  if (communicator.rank === 0) {
    for await (const line of lines) {
      say(line);
      const [bytes = 0, calls = 0] = line.split(" ").map(Number);
      answer(sample(context, bytes, calls));
    }
    say("");
    return;
  }
  for (;;) {
    const [bytes = 0, calls = 0] = new TextDecoder().decode(communicator.share(null, 0)).split(" ").map(Number);
    if (bytes === 0) return;
    sample(context, bytes, calls);
  }
}

/** Messages to this thread, until an empty one. */
async function* messages(): AsyncGenerator<string> {
  for (;;) {
    const line = await new Promise<string>((resolve) => parentPort?.once("message", resolve));
    if (line === "") return;
    yield line;
  }
}

const launcher = findLauncher();
if (!isMainThread) await runRank((context) => serve(context, messages(), context.emit));
else if (launcher !== null) {
  const lines = createInterface({ input: process.stdin });
  await runMpiRank(launcher, (context) => serve(context, lines, (seconds) => process.stdout.write(`${seconds}\n`)), {
    data: null,
    emit: () => undefined,
    complain: (error) => {
      console.error(error);
      return 1;
    },
  });
}
