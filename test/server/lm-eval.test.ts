/**
 * lm-evaluation-harness's own client of completion servers (`local-completions`) scores and continues texts through the server; the numbers are
 * those of this package's model asked directly. Skips visibly where Python or the harness is not there.
 */
import { execFile, spawnSync } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { post, removeFolder, serveTiny, writeTinyModel, type TestServer } from "./harness.ts";

const python = process.env["MOE_PYTHON"] ?? "";
const imports = "import lm_eval.models.openai_completions, tenacity, aiohttp, transformers";
const hasHarness = python !== "" && spawnSync(python, ["-c", imports], { timeout: 120_000 }).status === 0;

let folder = "";
let server: TestServer;
beforeAll(async () => {
  folder = await writeTinyModel();
  server = await serveTiny(folder);
}, 60_000);
afterAll(async () => {
  await server.close();
  removeFolder(folder);
}, 60_000);

const script = `
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
url, folder, pairs, prompts = json.loads(sys.argv[1])
model = LocalCompletionsAPI(base_url=url + "/v1/completions", model="tiny", tokenizer=folder, tokenizer_backend="huggingface", batch_size=2, max_length=512)
scores = model.loglikelihood([Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)], disable_tqdm=True)
texts = model.generate_until([Instance("generate_until", {}, (prompt, {"until": ["\\n\\n"], "max_gen_toks": 12}), i) for i, prompt in enumerate(prompts)], disable_tqdm=True)
print("RESULT" + json.dumps({"scores": scores, "texts": texts}))
`;

test.skipIf(!hasHarness)(
  `lm-evaluation-harness scores and continues texts${hasHarness ? "" : " (skipped: MOE_PYTHON names no Python with lm-eval[api])"}`,
  { timeout: 240_000 },
  async () => {
    const pairs = [
      ["The sky is", " blue and wide"],
      ["Once upon a time", " there was a king"],
      ["One, two,", " three"],
    ] as const;
    const prompts = ["Hello there", "Once upon"];
    const { stdout } = await promisify(execFile)(python, ["-c", script, JSON.stringify([server.url, folder, pairs, prompts])], {
      env: { ...process.env, HF_HUB_OFFLINE: "1", TOKENIZERS_PARALLELISM: "false", CUDA_VISIBLE_DEVICES: "" },
      maxBuffer: 1 << 26,
    });
    const { scores, texts } = JSON.parse(stdout.slice(stdout.lastIndexOf("RESULT") + 6)) as {
      scores: [number, boolean][];
      texts: string[];
    };
    for (const [i, [context, continuation]] of pairs.entries()) {
      const length = (await idsOf(context)).length;
      const { body } = await post(server, "/v1/completions", {
        prompt: await idsOf(context + continuation),
        max_tokens: 0,
        echo: true,
        logprobs: 0,
      });
      const [choice] = body["choices"] as { logprobs: { token_logprobs: number[] } }[];
      const sum = (choice?.logprobs.token_logprobs ?? []).slice(length).reduce((a, b) => a + b, 0);
      expect(scores[i]?.[0]).toBeCloseTo(sum, 9);
    }
    for (const [i, prompt] of prompts.entries()) {
      const { body } = await post(server, "/v1/completions", { prompt, max_tokens: 12, temperature: 0, stop: ["\n\n"] });
      expect(texts[i]).toBe((body["choices"] as { text: string }[])[0]?.text);
    }
  },
);
async function idsOf(prompt: string): Promise<number[]> {
  return (await post(server, "/tokenize", { prompt })).body["tokens"] as number[];
}
