/** What a reader of a page has: the commands on the PATH, the repository's packages for programs, and a Hub with one small model. */
import { chmodSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { loadBackend } from "../../src/backend/load.ts";
import { writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { Decoder, saveModel } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { FakeHub } from "../fake-hub.ts";
import { mpirunEnv } from "../parallel/mpirun.ts";

const root = resolve(import.meta.dirname, "../..");

/** A model of SmolLM2's kind (three heads on one, its tokenizer's rules, a chat template), small enough for a second. */
export async function writeSmallModel(folder: string): Promise<void> {
  const size = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 3, numKvHeads: 1, headDim: 16, maxPositions: 2048 };
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  using decoder = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size, initStd: 0.2 }, { dtype: "f32", seed: 3 });
  saveModel(decoder, folder);
  const tokenizerJson = JSON.parse(readFileSync(join(root, "test/golden/tokenizer/hf-smollm.tokenizer.json"), "utf8")) as unknown;
  const chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
  writeTokenizerFiles({ tokenizerJson, tokenizerConfig: { bos_token: "<|im_start|>", eos_token: "<|im_end|>", chat_template } }, folder);
}

/** The Hub of the pages: all of them begin with this model. */
export function hubWith(modelFolder: string): FakeHub {
  const hub = new FakeHub("HuggingFaceTB/SmolLM2-135M-Instruct");
  for (const name of readdirSync(modelFolder)) hub.files.set(name, readFileSync(join(modelFolder, name)));
  return hub;
}

/** Elsewhere npm is npm: the first use of the dashboard builds its page. */
const npm = `[ "$PWD" = "$MOE_PAGE" ] || { PATH="\${PATH#*:}"; exec npm "$@"; }
case "$1 $2 $3" in "run moe --"*) shift 3; exec moe "$@" ;; esac
if [ "$1" = start ]; then shift; [ "$1" = -- ] && shift; exec moe quickstart "$@"; fi
echo "npm $*: the test of the pages has no such command" >&2; exit 1`;
const npx = `[ "$1" = moe ] && shift && exec moe "$@"
echo "npx $*: the test of the pages has no such command" >&2; exit 1`;

function link(target: string, path: string): void {
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(target, path);
}

/** Makes a folder that commands run in, with what of a clone they use, and gives their environment. */
export function furnish(folder: string, hub: FakeHub): Record<string, string | undefined> {
  const bin = join(folder, ".bin");
  mkdirSync(bin, { recursive: true });
  const moe = `exec "${process.execPath}" "${join(root, "src/cli/main.ts")}" "$@"`;
  for (const [name, script] of Object.entries({ moe, npm, npx })) {
    writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  for (const name of ["src", "node_modules/.bin", "node_modules/@stdlib", "node_modules/openai"])
    link(join(root, name), join(folder, name));
  // `moe.ts` is the sources: as a link out of node_modules, because Node strips no types inside of it.
  const own = join(folder, "node_modules/moe.ts");
  link(join(root, "src/api"), join(own, "api"));
  writeFileSync(join(own, "package.json"), JSON.stringify({ name: "moe.ts", type: "module", exports: { ".": "./api/index.ts" } }));
  const { NODE_OPTIONS: _, MOE_EVAL_DATA: __, ...inherited } = process.env;
  const path = [bin, dirname(process.execPath), process.env["PATH"]].join(delimiter);
  const ranks = { ...mpirunEnv, OMPI_MCA_rmaps_base_oversubscribe: "1", OMPI_MCA_hwloc_base_binding_policy: "none" };
  return { ...inherited, ...ranks, PATH: path, MOE_PAGE: folder, HF_ENDPOINT: hub.endpoint };
}
