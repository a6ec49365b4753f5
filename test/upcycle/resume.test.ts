/**
 * An upcycling that is killed, or meets a full disk, and comes back: the same files as without, nothing done twice, nothing that loads
 * before it is whole. Runs as processes, because SIGKILL is.
 */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  openSync,
  closeSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { openModelSource } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { upcycle, type UpcycleOptions, type UpcycleReceipt } from "../../src/upcycle/index.ts";
import { MoeError } from "../../src/util/errors.ts";
import { smallConfig, writeDense } from "./fixtures.ts";

let folder = "";
let dense = "";
/** Three shards; noise, so that a tensor made twice from other random numbers would show. */
const options: UpcycleOptions = { numExperts: 4, topK: 2, method: { type: "noise", std: 0.1 }, maxShardBytes: 100_000, dtype: "f32" };
let reference: Record<string, string> = {};

/** Everything in a folder, but of the receipt only what does not tell of the interruption. */
function contents(path: string): Record<string, string> {
  const files = readdirSync(path).map((name): [string, string] => [name, readFileSync(join(path, name)).toString("base64")]);
  const { numTensorsResumed, ...receipt } = JSON.parse(readFileSync(join(path, "upcycling.json"), "utf8")) as UpcycleReceipt;
  expect(numTensorsResumed).toBeGreaterThanOrEqual(0);
  return { ...Object.fromEntries(files), "upcycling.json": JSON.stringify(receipt) };
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-resume-"));
  dense = join(folder, "dense");
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  writeDense(engine, smallConfig, "f32", dense);
  upcycle(dense, join(folder, "reference"), options);
  reference = contents(join(folder, "reference"));
  expect(Object.keys(reference).filter((name) => name.endsWith(".safetensors")).length).toBe(3);
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

const library = fileURLToPath(new URL("../../src/upcycle/index.ts", import.meta.url));
/** An upcycling in a process of its own that kills itself with SIGKILL at `killAt`: after so many tensors, or at a later moment. */
function killed(out: string, killAt: number | "tokenizer" | "probe"): void {
  const program = `
    import { upcycle } from ${JSON.stringify(library)};
    const die = () => process.kill(process.pid, "SIGKILL");
    let tensors = 0;
    upcycle(${JSON.stringify(dense)}, ${JSON.stringify(out)}, ${JSON.stringify(options)},
      () => { if (${killAt === "tokenizer"}) die(); },
      { onProgress: () => { if (++tensors === ${typeof killAt === "number" ? killAt : -1}) die(); },
        probe: () => { ${killAt === "probe" ? "die();" : ""} return null; } });`;
  const { signal } = spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8" });
  expect(signal).toBe("SIGKILL");
}

describe("a killed upcycling", () => {
  test.each([1, 33, 60, "tokenizer", "probe"] as const)(
    "at %s leaves nothing that loads half, and is continued to the same bytes",
    (at) => {
      const out = join(folder, `killed-${at}`);
      killed(out, at);
      expect(existsSync(out)).toBe(false);
      if (at !== "probe") expect(() => openModelSource(`${out}.partial`)).toThrow(MoeError);
      const { numTensorsResumed, tensors } = upcycle(dense, out, options);
      expect(numTensorsResumed).toBe(typeof at === "number" ? at : tensors.length);
      expect(contents(out)).toEqual(reference);
      expect(existsSync(`${out}.partial`)).toBe(false);
    },
  );
  test("while it began, or wrote one of the small files, begins anew and leaves nothing behind", () => {
    const out = join(folder, "beginning");
    const partial = `${out}.partial`;
    const torn = ".config.json.4194303-0a1b2c3d.tmp";
    for (const missing of ["plan.json", "progress.jsonl"]) {
      killed(out, 5);
      for (const name of readdirSync(partial)) if (name !== "plan.json" || name === missing) rmSync(join(partial, name));
      writeFileSync(join(partial, torn), "{");
      expect(upcycle(dense, out, options).numTensorsResumed).toBe(0);
      expect(contents(out)).toEqual(reference);
      rmSync(out, { recursive: true });
    }
    killed(out, 40);
    writeFileSync(join(partial, torn), "{");
    expect(upcycle(dense, out, options).numTensorsResumed).toBe(40);
    expect(contents(out)).toEqual(reference);
  });
  test("again and again gets further each time", () => {
    const out = join(folder, "again");
    for (const at of [20, 20, 40]) killed(out, at);
    expect(upcycle(dense, out, options).numTensorsResumed).toBe(40);
    expect(contents(out)).toEqual(reference);
  });
  test("whose bytes were damaged since goes on from before the damage", () => {
    const out = join(folder, "damaged");
    killed(out, 40);
    const partial = `${out}.partial`;
    const plan = JSON.parse(readFileSync(join(partial, "plan.json"), "utf8")) as {
      tensors: { name: string; file: string; byteLength: number }[];
    };
    const victim = plan.tensors[24];
    const file = join(partial, victim?.file ?? "");
    const header = JSON.parse(
      readFileSync(file)
        .subarray(8, 8 + Number(readFileSync(file).readBigUInt64LE(0)))
        .toString(),
    ) as Record<string, { data_offsets: [number, number] }>;
    const fd = openSync(file, "r+");
    writeSync(
      fd,
      Buffer.from([1, 2, 3]),
      0,
      3,
      8 + Number(readFileSync(file).readBigUInt64LE(0)) + (header[victim?.name ?? ""]?.data_offsets[0] ?? 0),
    );
    closeSync(fd);
    expect(upcycle(dense, out, options).numTensorsResumed).toBe(24);
    expect(contents(out)).toEqual(reference);
  });
  test("with a journal that was cut, or is not one, goes on from what is sure", () => {
    for (const [spoil, resumed] of [
      [(text: string): string => text.slice(0, -20), 39],
      [(): string => "never\nmind\n", 0],
      [(): string => "", 0],
    ] as const) {
      const out = join(folder, `journal-${resumed}-${spoil.length}`);
      killed(out, 40);
      const journal = join(`${out}.partial`, "progress.jsonl");
      writeFileSync(journal, spoil(readFileSync(journal, "utf8")));
      expect(upcycle(dense, out, options).numTensorsResumed).toBe(resumed);
      expect(contents(out)).toEqual(reference);
      rmSync(out, { recursive: true });
    }
  });
  test("is begun anew where the options or the source are others by now", () => {
    const out = join(folder, "others");
    killed(out, 40);
    expect(upcycle(dense, out, { ...options, seed: 2 }).numTensorsResumed).toBe(0);
    expect(contents(out)).not.toEqual(reference);
    const moved = join(folder, "moved");
    killed(moved, 40);
    const copy = join(folder, "copy");
    cpSync(dense, copy, { recursive: true });
    expect(upcycle(copy, moved, options).numTensorsResumed).toBe(0);
  });
  test("is left alone while its process lives, and a folder of somebody else always", () => {
    const out = join(folder, "busy");
    killed(out, 5);
    writeFileSync(join(`${out}.partial`, "lock"), JSON.stringify({ pid: process.ppid, host: hostname(), started: null }));
    expect(() => upcycle(dense, out, options)).toThrow(
      `an unfinished output that no process is writing, got one of process ${process.ppid}`,
    );
    expect(readdirSync(`${out}.partial`)).toContain("progress.jsonl");
    const mine = join(folder, "mine");
    cpSync(dense, `${mine}.partial`, { recursive: true });
    expect(() => upcycle(dense, mine, options)).toThrow(/expected nothing, or what an upcycling left/);
    expect(readdirSync(`${mine}.partial`).sort()).toEqual(readdirSync(dense).sort());
  });
});

test("a disk that is full is named, leaves nothing that loads, and the same command goes on when there is room", () => {
  const out = join(folder, "full");
  const program = `
    import { upcycle } from ${JSON.stringify(library)};
    try { upcycle(${JSON.stringify(dense)}, ${JSON.stringify(out)}, ${JSON.stringify({ ...options, maxShardBytes: 5e9 })}); }
    catch (error) { console.log(error.kind, error.message); }`;
  // Files of at most 200 kB: what the system says then (EFBIG) is of the same kind as a full disk.
  const script = `ulimit -f 200; exec "$0" --input-type=module -e "$1"`;
  const { stdout } = spawnSync("bash", ["-c", script, process.execPath, program], { encoding: "utf8" });
  expect(stdout).toMatch(/^resource .*full\.partial.*; .*full\.partial stays: the same command continues it\n$/);
  expect(existsSync(out)).toBe(false);
  expect(() => openModelSource(`${out}.partial`)).toThrow(MoeError);
  upcycle(dense, out, { ...options, maxShardBytes: 5e9 });
  using source = openModelSource(out);
  expect(source.config.moe?.numExperts).toBe(4);
  expect(statSync(join(out, "model.safetensors")).size).toBeGreaterThan(200 * 1024);
});
