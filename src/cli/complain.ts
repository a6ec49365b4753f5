/** What the command says about an error, on one line of standard error, and the exit code that follows. */
import { MoeError } from "../util/errors.ts";

export function complain(error: unknown): 1 | 2 {
  if (error instanceof MoeError) {
    process.stderr.write(`moe: ${error.message}\n`);
    return error.exitCode;
  }
  process.stderr.write(
    `moe: internal error, please report it\n${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  return 1;
}
