/**
 * What this machine gives the program, and what to install for more: the report behind `moe doctor`. It loads the engine that a
 * program would get, looks for the tools that build or connect engines, and changes nothing (apart from building the native library where
 * it is missing, as every first use does).
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { availableParallelism, cpus, freemem, totalmem } from "node:os";
import { promisify } from "node:util";
import { MoeError } from "../util/errors.ts";
import type { BackendName } from "./backend.ts";
import type { BackendOptions } from "./environment.ts";
import { resolveRequest } from "./environment.ts";
import type { PassedOver } from "./load.ts";
import { chooseEngine, describeEngine } from "./load.ts";

/** A program on this machine, or why it is not there. */
export interface FoundTool {
  readonly found: boolean;
  /** Its version line, or the reason. */
  readonly detail: string;
}

export interface DoctorReport {
  readonly engine: BackendName;
  /** One line: why this engine. */
  readonly why: string;
  readonly passedOver: readonly PassedOver[];
  readonly isa: string;
  /** Sets of native kernels that this machine can run; empty without the native library. */
  readonly isasAvailable: readonly string[];
  readonly numThreads: number;
  readonly numCpus: number;
  readonly cpu: string;
  readonly memoryBytes: number;
  readonly freeMemoryBytes: number;
  readonly platform: string;
  readonly node: string;
  readonly compiler: FoundTool;
  readonly mpi: FoundTool;
  readonly webgpu: FoundTool;
  /** What would give more, one sentence each; empty where nothing would. */
  readonly advice: readonly string[];
}

const run = promisify(execFile);

/** The first of `commands` that answers `--version`. */
async function findTool(commands: readonly string[], env: NodeJS.ProcessEnv): Promise<FoundTool> {
  for (const command of commands) {
    try {
      const { stdout } = await run(command, ["--version"], { env, timeout: 10_000 });
      return { found: true, detail: `${command}: ${stdout.split("\n")[0] ?? ""}` };
    } catch {
      continue;
    }
  }
  return { found: false, detail: `none of ${commands.join(", ")} runs` };
}

async function nativeIsasHere(env: NodeJS.ProcessEnv): Promise<readonly string[]> {
  const { loadNativeLibrary } = await import("./native/library.ts");
  try {
    return (await loadNativeLibrary(env["MOE_NATIVE_LIBRARY"] || undefined)).isas;
  } catch (error) {
    if (error instanceof MoeError) return [];
    throw error;
  }
}

/** Whether ranks can be processes: `mpirun`, and our library, which needs MPI's. Loads it, starts nothing. */
async function findMpi(env: NodeJS.ProcessEnv): Promise<FoundTool> {
  const mpirun = await findTool(["mpirun", "mpiexec"], env);
  if (!mpirun.found) return mpirun;
  const { mpiLibraryPath } = await import("./native/library.ts");
  const path = mpiLibraryPath(env);
  if (!existsSync(path)) return { found: false, detail: `${mpirun.detail}, but ${path} is not built (it needs mpicc)` };
  try {
    (await import("koffi")).default.load(path);
    return { found: true, detail: `${mpirun.detail}, usable: mpirun -n <ranks> npx moe train ...` };
  } catch (error) {
    return {
      found: false,
      detail: `${mpirun.detail}, but ${path} does not load: ${error instanceof Error ? error.message : String(error)}`,
    };
  }
}

function advise(report: Omit<DoctorReport, "advice">, forced: boolean, threadsAsked: number): string[] {
  const advice: string[] = [];
  if (report.engine !== "native" && forced && report.isasAvailable.length > 0) {
    advice.push("The native engine works here and is faster: unset MOE_ENGINE.");
  } else if (report.engine !== "native" && !report.compiler.found) {
    advice.push("Install a C compiler (Debian: apt install gcc) and run npm run build:native: the native engine is several times faster.");
  } else if (report.engine !== "native" && report.isasAvailable.length === 0) {
    advice.push("Run npm run build:native and read its error: a compiler is here, but the native engine does not load.");
  }
  if (threadsAsked < report.numCpus) advice.push(`Only ${threadsAsked} of ${report.numCpus} processors are in use: unset MOE_THREADS.`);
  if (!report.mpi.found)
    advice.push(
      "Install Open MPI (Debian: apt install openmpi-bin libopenmpi-dev) and run npm run build:native to train on more than one machine.",
    );
  return advice;
}

/**
 * Looks at the machine. Throws `usage` where an environment variable asks for what does not exist, and what `chooseEngine` throws where a forced engine does not start.
 * @example
 * const report = await diagnose();
 * report.engine; // "native"
 */
export async function diagnose(options: BackendOptions = {}, env: NodeJS.ProcessEnv = process.env): Promise<DoctorReport> {
  const { numThreads: threadsAsked } = resolveRequest(options, env);
  const choice = await chooseEngine(options, env);
  const { backend, forced, passedOver } = choice;
  try {
    const compilers = env["CC"] ? [env["CC"]] : ["cc", "gcc", "clang"];
    const [compiler, mpi, isasAvailable] = await Promise.all([findTool(compilers, env), findMpi(env), nativeIsasHere(env)]);
    const report = {
      engine: backend.name,
      why: describeEngine(choice),
      passedOver,
      isa: backend.isa,
      isasAvailable,
      numThreads: backend.numThreads,
      numCpus: availableParallelism(),
      cpu: cpus()[0]?.model ?? "unknown",
      memoryBytes: totalmem(),
      freeMemoryBytes: freemem(),
      platform: `${process.platform}-${process.arch}`,
      node: process.version,
      compiler,
      mpi,
      webgpu: { found: false, detail: "this version has no WebGPU engine" },
    };
    return { ...report, advice: advise(report, forced, threadsAsked) };
  } finally {
    backend.dispose();
  }
}
