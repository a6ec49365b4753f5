/** From the kernel table to the names of compiled functions: shared by the loaders of the native library and of WebAssembly. */
import { MoeError } from "../util/errors.ts";
import type { KernelName, Kernels } from "./kernels.ts";
import { kernelSignatures } from "./kernels.ts";

/** `rmsNormForward` with `avx2` is `moe_rms_norm_forward_avx2`; `fillF32` is `moe_fill_f32_...`, as C writes it. */
export function kernelSymbol(name: KernelName, isa: string): string {
  return `moe_${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}_${isa}`;
}

/**
 * The table of kernels, each found by `find` under its symbol. A kernel that is not there is our bug (a library of another
 * version, or a kernel nobody wrote): throws `internal`, naming all that are missing.
 */
export function bindKernels(
  where: string,
  isa: string,
  find: (symbol: string, signature: string) => ((...args: number[]) => void) | null,
): Kernels {
  const bound = Object.entries(kernelSignatures).map(
    ([name, signature]) => [name, find(kernelSymbol(name as KernelName, isa), signature)] as const,
  );
  const missing = bound.filter(([, kernel]) => kernel === null).map(([name]) => kernelSymbol(name as KernelName, isa));
  if (missing.length > 0)
    throw new MoeError(
      "internal",
      `${where}: expected every kernel of the table, found none of ${missing.join(", ")}; rebuild it (npm run build:native, build:wasm)`,
    );
  return Object.fromEntries(bound) as unknown as Kernels;
}

/** Replaces every kernel of a backend that is gone: a call into freed memory would end the process. */
export function retireKernels(kernels: Kernels, backend: string): void {
  const retired = (): never => {
    throw new MoeError("internal", `${backend}: a kernel was called after dispose()`);
  };
  for (const name of Object.keys(kernels)) Object.assign(kernels, { [name]: retired });
}
