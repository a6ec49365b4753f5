/**
 * The library that speaks MPI (`native/ranks/mpi.c`): where it lies, building it where MPI came after the installation, and its functions.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { mpiLibraryPath } from "../backend/native/library.ts";
import { MoeError } from "../util/errors.ts";
import { bindCalls, nativeCallTypes, type NativeCalls } from "./native-driver.ts";

export interface MpiCalls extends NativeCalls {
  init(lostSeconds: number): number;
  rank(self: number): number;
  size(self: number): number;
  hasPulse(self: number): number;
  end(self: number, reason: string): void;
  hasEnded(self: number): number;
  reason(self: number): string;
  reasonRank(self: number): number;
  error(self: number): string;
  finalize(self: number): number;
  abort(self: number, exitCode: number): void;
}
const callTypes = {
  ...nativeCallTypes,
  init: ["uintptr_t", "double"],
  rank: ["int", "uintptr_t"],
  size: ["int", "uintptr_t"],
  hasPulse: ["int", "uintptr_t"],
  end: ["void", "uintptr_t", "str"],
  hasEnded: ["int", "uintptr_t"],
  reason: ["str", "uintptr_t"],
  reasonRank: ["int", "uintptr_t"],
  error: ["str", "uintptr_t"],
  finalize: ["int", "uintptr_t"],
  abort: ["void", "uintptr_t", "int"],
} as const satisfies Record<keyof MpiCalls, readonly [string, ...string[]]>;

const toInstall = "install Open MPI (Debian: apt install openmpi-bin libopenmpi-dev), then npm run build:native";

function packagePath(path: string): string {
  return fileURLToPath(new URL(`../../${path}`, import.meta.url));
}
function hasMpicc(env: NodeJS.ProcessEnv): boolean {
  return Boolean(env["MPICC"]) || (env["PATH"] ?? "").split(delimiter).some((directory) => existsSync(join(directory, "mpicc")));
}

/**
 * Loads it, building it first where only the library is missing. Does not start MPI. Throws `resource` where it cannot be had, saying what to install.
 */
export async function loadMpiLibrary(env: NodeJS.ProcessEnv = process.env): Promise<MpiCalls> {
  const path = mpiLibraryPath(env);
  if (!existsSync(path) && !env["MOE_MPI_LIBRARY"] && hasMpicc(env)) {
    const result = spawnSync(process.execPath, [packagePath("native/build.mjs"), "--quiet"], {
      encoding: "utf8",
      env: { ...env, NODE_OPTIONS: "" },
    });
    if (result.status !== 0)
      throw new MoeError("resource", `MPI: its library was not built: ${(result.stderr || String(result.error)).trim()}`);
  }
  if (!existsSync(path)) throw new MoeError("resource", `MPI is not usable here, ${path} is missing: ${toInstall}`);
  try {
    const { default: koffi } = await import("koffi");
    const library = koffi.load(path);
    return bindCalls<MpiCalls>((symbol, result, args) => library.func(symbol, result, [...args]), "moe_mpi", callTypes);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new MoeError("resource", `MPI is not usable here, ${path} does not load (${reason}): ${toInstall}`, { cause: error });
  }
}
