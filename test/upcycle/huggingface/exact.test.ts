/**
 * Every exact pair that Hugging Face transformers knows, written here (`write.ts`) and computed there (`check.py`): the upcycled model
 * has the dense one's logits in the real library too. Skips without `MOE_PYTHON`, the path of a Python with torch and transformers.
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
  "transformers computes the dense model's logits from every exact pair, with shards, shared experts and dense layers too",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "moe-huggingface-"));
    try {
      const written = run(process.execPath, [join(here, "write.ts"), join(folder, "pairs")]);
      expect(written.status, written.stderr).toBe(0);
      const checked = run(python, [join(here, "check.py"), join(folder, "pairs")]);
      expect(checked.status, checked.stdout + checked.stderr).toBe(0);
      for (const target of ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]) expect(checked.stdout).toContain(`to-${target}`);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  600_000,
);
