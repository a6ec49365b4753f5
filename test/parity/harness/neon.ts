/**
 * A backend whose kernels are the NEON ones, run under qemu-aarch64: the C program `native/test/neon.c` serves it over two named
 * pipes, one request at a time. So the whole kernel suite judges the NEON code on a machine that has none.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../../src/backend/backend.ts";
import { bindKernels } from "../../../src/backend/symbols.ts";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const program = join(root, "build/native/aarch64-harness/neon");
const runner = process.arch === "arm64" ? [] : ["qemu-aarch64"];

const operations = { open: 0, lookup: 1, call: 2, alloc: 3, free: 4, write: 5, read: 6, live: 7, peak: 8 } as const;
const nothing = new Uint8Array(0);

/** Builds the program and runs its self-test. Null when both worked, else why NEON cannot be tested here. */
export function prepareNeon(): string | null {
  for (const tool of runner.concat(process.arch === "arm64" ? "cc" : "aarch64-linux-gnu-gcc", "mkfifo")) {
    if (spawnSync(tool, ["--version"]).status !== 0) return `${tool} is not installed`;
  }
  const build = spawnSync(process.execPath, [join(root, "native/build.mjs"), "--target", "aarch64"], { encoding: "utf8" });
  if (build.status !== 0 || !existsSync(program)) throw new Error(`the NEON harness fails: ${build.stdout}${build.stderr}`);
  return null;
}

class Pipe {
  readonly #directory = mkdtempSync(join(tmpdir(), "moe-neon-"));
  readonly #requests: number;
  readonly #answers: number;

  constructor() {
    const [requests, answers] = [join(this.#directory, "requests"), join(this.#directory, "answers")];
    execFileSync("mkfifo", [requests, answers]);
    const [command, ...args] = [...runner, program, requests, answers];
    spawn(command, args, { stdio: ["ignore", "inherit", "inherit"] }).unref();
    this.#requests = openSync(requests, "w");
    this.#answers = openSync(answers, "r");
  }

  #receive(target: Uint8Array): void {
    for (let at = 0; at < target.length;) {
      const count = readSync(this.#answers, target, at, target.length - at, null);
      if (count === 0) throw new Error("the NEON program ended in the middle of an answer: a kernel crashed");
      at += count;
    }
  }

  /** Sends one request; the answer's payload fills `target`. */
  request(
    operation: keyof typeof operations,
    integers: readonly number[] = [],
    floats: readonly number[] = [],
    payload = nothing,
    target = nothing,
  ): number {
    const head = BigInt64Array.of(
      BigInt(operations[operation]),
      BigInt(integers.length),
      BigInt(floats.length),
      BigInt(payload.byteLength),
      0n,
    );
    const parts = [head, BigInt64Array.from(integers, BigInt), Float32Array.from(floats), payload];
    const message = Buffer.concat(parts.map(({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength)));
    for (let at = 0; at < message.length;) at += writeSync(this.#requests, message, at);
    const answer = new BigInt64Array(2);
    this.#receive(new Uint8Array(answer.buffer));
    this.#receive(target);
    return Number(answer[0]);
  }

  close(): void {
    closeSync(this.#requests);
    closeSync(this.#answers);
    rmSync(this.#directory, { recursive: true });
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array<ArrayBuffer> {
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
}

/** Starts the program. `prepareNeon` must have returned null. */
export function openNeon(numThreads: number): Backend {
  const pipe = new Pipe();
  pipe.request("open", [numThreads]);
  const kernels = bindKernels(program, "neon", (symbol, signature) => {
    const index = pipe.request("lookup", [], [], Buffer.from(symbol));
    if (index < 0) return null;
    return (...args: number[]) => {
      if (args.length !== signature.length) throw new Error(`${symbol}: expected ${signature.length} arguments, got ${args.length}`);
      const isFloat = (_: number, i: number): boolean => signature.charAt(i) === "f";
      pipe.request("call", [index, ...args.filter((value, i) => !isFloat(value, i))], args.filter(isFloat));
    };
  });
  return {
    name: "native",
    isa: "neon",
    numThreads,
    kernels,
    alloc: (byteLength) => pipe.request("alloc", [byteLength]),
    free(ptr) {
      if (pipe.request("free", [ptr]) !== 0) throw new Error(`free: ${ptr} is not a live allocation`);
    },
    get liveBytes() {
      return pipe.request("live");
    },
    get peakBytes() {
      return pipe.request("peak");
    },
    resetPeak: () => {},
    trim: () => {},
    read: (target, ptr) => void pipe.request("read", [ptr, target.byteLength], [], nothing, bytesOf(target)),
    write: (ptr, source) => void pipe.request("write", [ptr], [], bytesOf(source)),
    view() {
      throw new Error("the NEON program's memory is another process's");
    },
    canView: false,
    mapFile: () => null,
    dispose: () => pipe.close(),
  };
}
