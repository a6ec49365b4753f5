import { execFile, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { diagnose } from "./doctor.ts";
import { chooseEngine, describeEngine } from "./load.ts";
import { nativeLibraryPath } from "./native/library.ts";

const run = promisify(execFile);
const here = new URL(".", import.meta.url);
const hasNative = existsSync(nativeLibraryPath());

/** Runs `code` in a process of its own; `load` and `Worker` are there. */
async function inProcess(code: string, env: Record<string, string> = {}): Promise<string> {
  const script = `const { loadBackend } = await import(${JSON.stringify(new URL("load.ts", here).href)}); ${code}`;
  const { stdout } = await run(process.execPath, ["--input-type=module", "-e", script], {
    timeout: 30_000,
    env: { ...process.env, ...env },
  });
  return stdout.trim();
}

describe("choosing an engine", () => {
  test.runIf(hasNative)("takes the native engine where it works, and says why", async () => {
    const choice = await chooseEngine({}, {});
    expect(choice.backend.name).toBe("native");
    expect(describeEngine(choice)).toMatch(/^native \((avx2|avx512|avx512bf16|amx|neon), \d+ threads?\): the best there is$/);
    choice.backend.dispose();
  });

  test("takes the next engine where the native library does not load, and keeps the reason", async () => {
    const choice = await chooseEngine({ numThreads: 1 }, { MOE_NATIVE_LIBRARY: "/absent/libmoe.so" });
    expect(choice.backend.name).toBe("wasm");
    expect(choice.passedOver).toEqual([{ engine: "native", reason: expect.stringContaining("/absent/libmoe.so") as string }]);
    expect(describeEngine(choice)).toContain("wasm (simd128, 1 thread): not native: /absent/libmoe.so");
    choice.backend.dispose();
  });

  test("throws the reason instead where the engine was forced", async () => {
    await expect(chooseEngine({ engine: "native" }, { MOE_NATIVE_LIBRARY: "/absent/libmoe.so" })).rejects.toMatchObject({
      kind: "resource",
    });
    await expect(chooseEngine({}, { MOE_ISA: "avx2", MOE_NATIVE_LIBRARY: "/absent/libmoe.so" })).rejects.toMatchObject({
      kind: "resource",
    });
  });

  test.runIf(hasNative)("names what the machine can run when an instruction set is not among it", async () => {
    const impossible = process.arch === "arm64" ? "avx2" : "neon";
    await expect(chooseEngine({}, { MOE_ISA: impossible })).rejects.toMatchObject({
      kind: "usage",
      message: expect.stringMatching(/can run \(.+\), got/) as string,
    });
  });

  test("gives the engine, instruction set and threads that the environment forces", async () => {
    const print = "const b = await loadBackend(); console.log(b.name, b.isa, b.numThreads); b.dispose();";
    expect(await inProcess(print, { MOE_ENGINE: "wasm", MOE_THREADS: "3" })).toBe("wasm simd128 3");
    expect(await inProcess(print, { MOE_ENGINE: "reference" })).toBe("reference scalar 1");
    if (hasNative && process.arch === "x64") expect(await inProcess(print, { MOE_ISA: "avx2", MOE_THREADS: "2" })).toBe("native avx2 2");
  });
});

describe.each(["native", "wasm"] as const)("threads of the %s engine", (engine) => {
  const missing = engine === "native" && !hasNative;
  const work = `const p = b.alloc(4e6); for (let i = 0; i < 50; i++) b.kernels.fillF32(p, 1e6, i); const out = new Float32Array(1); b.read(out, p + 4e6 - 4); console.log(out[0]);`;

  /** The sum of squares of sines, `rounds` times, as bits. */
  async function sums(numThreads: number, rounds: number): Promise<number[]> {
    const { backend } = await chooseEngine({ engine, numThreads });
    expect(backend.numThreads).toBe(numThreads);
    const n = 100_003;
    const [x, sum, total] = [backend.alloc(4 * n), backend.alloc(8), new Float64Array(1)];
    const values = Float32Array.from({ length: n }, (_, i) => Math.sin(i));
    backend.write(x, values);
    const results = Array.from({ length: rounds }, () => {
      backend.kernels.sumSquares(sum, x, n);
      backend.read(total, sum);
      return total[0] ?? Number.NaN;
    });
    backend.free(x);
    backend.free(sum);
    expect(backend.liveBytes).toBe(0);
    backend.dispose();
    return results;
  }

  test.skipIf(missing).each([2, 3])("compute the same bits with %d as with one", async (numThreads) => {
    const [serial] = await sums(1, 1);
    // The sum of sin^2 over n consecutive integers is n / 2 within a few units.
    expect(Math.abs((serial ?? 0) - 100_003 / 2)).toBeLessThan(2);
    expect(new Set(await sums(numThreads, 200))).toEqual(new Set([serial]));
  });

  test.skipIf(missing)("let the process end without dispose", async () => {
    expect(await inProcess(`const b = await loadBackend(); ${work}`, { MOE_ENGINE: engine, MOE_THREADS: "3" })).toBe("49");
  });

  test.skipIf(missing)("let a worker thread end without dispose, and another start after it", async () => {
    const worker = `import { loadBackend } from ${JSON.stringify(new URL("load.ts", here).href)}; const b = await loadBackend(); ${work}`;
    const code = `const { Worker } = await import("node:worker_threads");
      for (let i = 0; i < 2; i++) await new Promise((done, failed) => new Worker(new URL("data:text/javascript," + encodeURIComponent(${JSON.stringify(worker)}))).on("exit", done).on("error", failed));`;
    expect(await inProcess(code, { MOE_ENGINE: engine, MOE_THREADS: "3" })).toBe("49\n49");
  });
});

describe("the doctor", () => {
  test("reports the engine that a program would get", async () => {
    const report = await diagnose({}, { ...process.env, MOE_ENGINE: "wasm", MOE_THREADS: "1", MOE_ISA: "" });
    expect(report).toMatchObject({
      engine: "wasm",
      isa: "simd128",
      numThreads: 1,
      platform: `${process.platform}-${process.arch}`,
      webgpu: { found: false },
    });
    expect(report.memoryBytes).toBeGreaterThan(0);
    if (hasNative) expect(report.advice.join("\n")).toContain("unset MOE_ENGINE");
    if (report.numCpus > 1) expect(report.advice.join("\n")).toContain("unset MOE_THREADS");
  });
  test("says what to install where no compiler is found", async () => {
    const report = await diagnose({ numThreads: 1 }, { PATH: fileURLToPath(here), MOE_NATIVE_LIBRARY: "/absent/libmoe.so" });
    expect(report).toMatchObject({ engine: "wasm", isasAvailable: [], compiler: { found: false }, mpi: { found: false } });
    expect(report.advice.join("\n")).toMatch(/C compiler.*\n.*Open MPI/s);
  });
  test.skipIf(spawnSync("mpirun", ["--version"]).status !== 0)(
    "does not call an MPI usable that our library was not built for",
    async () => {
      const { mpi, advice } = await diagnose({ numThreads: 1 }, { ...process.env, MOE_MPI_LIBRARY: "/absent/libmoempi.so" });
      expect(mpi).toMatchObject({ found: false, detail: expect.stringMatching(/^mpirun: .*, but \/absent\/libmoempi\.so is not built/) });
      expect(advice.join("\n")).toContain("openmpi-bin libopenmpi-dev");
    },
  );
});
