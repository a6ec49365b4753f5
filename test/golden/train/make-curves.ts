/**
 * Writes curves.json: our own losses, bit by bit, as the widest native instruction set of this machine has them (all of x86
 * have the same, which the test looks at) and as WebAssembly has them. Run by hand, `node make-curves.ts`, when a change is
 * meant to change the arithmetic, and say so in the commit.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { curve, kinds } from "./curves.ts";
import { startTargets } from "./targets.ts";

const curves: Record<string, Record<string, string[]>> = {};
for (const [name, engine] of (await startTargets()).engines) {
  curves[name === "wasm" ? "wasm" : "native"] = Object.fromEntries(kinds.map((kind) => [kind, curve(engine, kind)]));
  engine[Symbol.dispose]();
}
writeFileSync(join(import.meta.dirname, "curves.json"), `${JSON.stringify(curves, null, 1)}\n`);
