/**
 * A rank under mpirun: `node programs-mpi.ts <folder>` runs the programs in <folder>/programs, and writes what came out for this rank to
 * <folder>/<rank>. Or, with a second argument, what a rank does that is to fail.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deserialize, serialize } from "node:v8";
import { findLauncher } from "../../src/parallel/launcher.ts";
import { runMpiRank } from "../../src/parallel/mpi.ts";
import { MoeError } from "../../src/util/errors.ts";
import { checkNothingLive, runProgram, type Program } from "./programs.ts";

const [folder = "", failure = ""] = process.argv.slice(2);
const launcher = findLauncher();
if (launcher === null) throw new Error("start this by mpirun");

await runMpiRank(
  launcher,
  async ({ engine: { backend }, communicator }) => {
    const { rank } = communicator;
    const ptr = backend.alloc(64);
    switch (failure) {
      case "": {
        const programs = deserialize(readFileSync(join(folder, "programs"))) as Program[];
        const results = programs.map((program) => runProgram(backend, communicator, program));
        backend.free(ptr);
        checkNothingLive(backend);
        writeFileSync(join(folder, String(rank)), serialize(results));
        return;
      }
      case "throws":
        if (rank === 1) throw new MoeError("resource", "this rank gives up");
        break;
      case "all throw":
        throw new MoeError("configuration", "the same everywhere");
      case "sleeps":
        if (rank === 1) await new Promise((resolve) => setTimeout(resolve, 100_000));
        break;
      case "is elsewhere":
        if (rank === 1) communicator.share(new Uint8Array(5), 1);
        break;
      case "kills itself":
        communicator.barrier();
        if (rank === 1) process.kill(process.pid, "SIGKILL");
        break;
      case "stops":
        communicator.barrier();
        // Its sockets stay open, and nothing of it moves: as behind a cut link.
        if (rank === 1) process.kill(process.pid, "SIGSTOP");
        break;
      default:
        throw new Error(`unknown: ${failure}`);
    }
    communicator.barrier();
    backend.free(ptr);
  },
  {
    data: null,
    timeoutMs: failure === "sleeps" ? 1500 : 60_000,
    lostSeconds: failure === "stops" ? 5 : 12,
    emit: () => undefined,
    complain: (error) => {
      process.stderr.write(`moe: ${error instanceof Error ? error.message : String(error)}\n`);
      return error instanceof MoeError ? error.exitCode : 1;
    },
  },
);
