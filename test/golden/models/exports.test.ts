/**
 * What `saveModel` writes, loaded by Hugging Face transformers itself (`check_exports.py`): every tensor finds its place and the
 * logits are those of the golden files. Skips without `MOE_PYTHON`, the path of a Python with torch and transformers.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";

const python = process.env["MOE_PYTHON"] ?? "";
const here = import.meta.dirname;

function run(command: string, args: readonly string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(command, args, { encoding: "utf8", env: { ...process.env, HF_HUB_OFFLINE: "1" }, maxBuffer: 1 << 26 });
}
const hasTransformers = python !== "" && run(python, ["-c", "import torch, transformers, safetensors"]).status === 0;

test.skipIf(!hasTransformers)(
  "transformers loads what we write of every family it has, with the logits of the golden files",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "moe-exports-"));
    try {
      const written = run(process.execPath, [join(here, "export.ts"), folder]);
      expect(written.status, written.stderr).toBe(0);
      const checked = run(python, [join(here, "check_exports.py"), folder]);
      expect(checked.status, checked.stderr).toBe(0);
      const lines = checked.stdout.trim().split("\n");
      for (const name of ["mixtral", "qwen2-moe", "qwen3-moe", "olmoe"]) {
        const line = lines.find((text) => text.startsWith(`${name}.f32:`));
        expect(Number(/gap (\S+)$/.exec(line ?? "")?.[1]), line).toBeLessThan(1e-4);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  180_000,
);
