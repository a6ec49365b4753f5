/**
 * The errors of the project: one base class, kinds split by whose fault it is. A message names the operation, what was
 * expected, what was found, and the next step. Exit codes of the command follow from the kind.
 */

/**
 * - `usage`: wrong flags or arguments (exit 2)
 * - `configuration`: a configuration or recipe that contradicts itself or the model
 * - `file`: an input file that is missing, corrupt or hostile
 * - `shape`: operands that do not fit together
 * - `unsupported`: valid, but not something this program does
 * - `resource`: disk, memory, threads
 * - `communication`: another rank or host
 * - `internal`: our bug
 */
export type ErrorKind = "usage" | "configuration" | "file" | "shape" | "unsupported" | "resource" | "communication" | "internal";

export class MoeError extends Error {
  readonly kind: ErrorKind;
  constructor(kind: ErrorKind, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "MoeError";
    this.kind = kind;
  }
  /** Exit code of the command for this error: 2 for wrong usage, otherwise 1. */
  get exitCode(): 1 | 2 {
    return this.kind === "usage" ? 2 : 1;
  }
}

/** The file `path` is not what it should be. `expected` and `got` are phrases; offsets and names belong into them. */
export function fileError(path: string, expected: string, got: string, cause?: unknown): MoeError {
  return new MoeError("file", `${path}: expected ${expected}, got ${got}`, cause === undefined ? undefined : { cause });
}
