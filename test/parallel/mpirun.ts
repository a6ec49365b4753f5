/** Starting ranks by `mpirun` in tests, and why that cannot be done here. */
import { spawn, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { loadMpiLibrary } from "../../src/parallel/mpi-library.ts";

/** Why MPI does not run here; null where it does. */
export const noMpi: string | null = await (async () => {
  const { status } = spawnSync("mpirun", ["--version"], { stdio: "ignore" });
  if (status !== 0) return "mpirun is not installed (Debian: openmpi-bin libopenmpi-dev)";
  return loadMpiLibrary().then(
    () => null,
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  );
})();

export interface Ended {
  /** Null: a signal. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly seconds: number;
}

export interface MpirunOptions {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Ends the whole job then. */
  readonly timeoutMs?: number;
  readonly onOutput?: (text: string, pid: number) => void;
}

/** In containers there is only root, and fewer cores than ranks. */
export const mpirunEnv = {
  OMPI_ALLOW_RUN_AS_ROOT: "1",
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1",
  OMPI_MCA_btl_vader_single_copy_mechanism: "none",
};
const usualArgs = ["--oversubscribe", "--bind-to", "none"];

/** `mpirun -n <size> node <module> <args>`; the module is TypeScript of ours. */
export function mpirun(size: number, module: URL, moduleArgs: readonly string[], options: MpirunOptions = {}): Promise<Ended> {
  return mpirunCommand(
    [...usualArgs, ...(options.args ?? []), "-n", String(size), process.execPath, fileURLToPath(module), ...moduleArgs],
    options,
  );
}

export function mpirunCommand(args: readonly string[], { env = {}, timeoutMs = 240_000, onOutput }: MpirunOptions = {}): Promise<Ended> {
  const started = performance.now();
  const { NODE_OPTIONS: _, ...inherited } = process.env;
  return new Promise((resolve, reject) => {
    const child = spawn("mpirun", args, {
      env: { ...inherited, ...mpirunEnv, MOE_THREADS: "1", ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
      onOutput?.(text, child.pid ?? 0);
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      onOutput?.(text, child.pid ?? 0);
    });
    const timer = setTimeout(() => {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, timeoutMs);
    child.on("error", reject);
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ code, stdout, stderr, seconds: (performance.now() - started) / 1000 });
    });
  });
}

/** Lines of ours among what mpirun itself says. */
export function ourLines(stderr: string): string[] {
  return stderr.split("\n").filter((line) => line.startsWith("moe: "));
}
