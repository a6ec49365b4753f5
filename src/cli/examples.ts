/**
 * Two examples of every verb, shown at the end of its help. A test runs each of them, in order, in one folder that has a small model
 * `SmolLM2-135M`, a text `book.txt` and evaluation data in `data`.
 */
import type { Command } from "commander";

export interface Example {
  readonly command: string;
  readonly what: string;
}

const listed: Readonly<Record<string, readonly (readonly [string, string])[]>> = {
  quickstart: [
    ["moe quickstart --size smoke", "the whole loop in seconds"],
    ["moe quickstart --size smoke --out runs/first --seed 2", "into this folder, from another seed"],
  ],
  doctor: [
    ["moe doctor", "which engine runs here, and why not a better one"],
    ["moe doctor --json", "the same for a program"],
  ],
  pull: [
    ["moe pull HuggingFaceTB/SmolLM2-135M-Instruct --out pulled", "a model from the Hub; HF_ENDPOINT names another"],
    ["moe pull HuggingFaceTB/SmolLM2-135M-Instruct --revision main --out newest", "of a branch, a tag or a commit"],
  ],
  inspect: [
    ["moe inspect SmolLM2-135M", "parameters, bytes, tensors"],
    ["moe inspect SmolLM2-135M --json", "the same for a program"],
  ],
  upcycle: [
    ["moe upcycle SmolLM2-135M smol-moe --experts 8 --top-k 2 --target mixtral", "8 copies of each feed-forward network, exact at step 0"],
    ["moe upcycle SmolLM2-135M smol-drop --experts 4 --top-k 2 --method drop --drop-ratio 0.5", "half of each expert's columns drawn anew"],
  ],
  train: [
    [
      "moe train smollm2-finetune --model smol-moe --text book.txt --out runs/book --set numSteps=2 --set batchSequences=2 --set microBatchSequences=2 --set data.sequenceLength=64 --set schedule.warmupSteps=1",
      "a recipe, with some fields changed",
    ],
    ["moe train runs/book --resume --set numSteps=3", "goes on from the newest checkpoint"],
  ],
  generate: [
    ['moe generate smol-moe --prompt "Once upon a time" --max-tokens 20', "the most probable continuation"],
    ['moe generate smol-moe --prompt "Once" --max-tokens 20 --temperature 0.8 --top-p 0.95 --seed 7', "a drawn one"],
  ],
  chat: [
    ["moe chat SmolLM2-135M", "a conversation; end it with Ctrl-D"],
    ['moe chat SmolLM2-135M --system "Answer in one word." --temperature 0', "with instructions"],
  ],
  serve: [
    ["moe serve smol-moe", "OpenAI's protocol on http://127.0.0.1:8000, a chat page at /"],
    ["moe serve smol-moe --tp 3 --tp-weights 2,1,1 --port 8080", "over three unequal ranks"],
  ],
  eval: [
    ["moe eval smol-moe --tasks perplexity:book.txt", "perplexity on a text"],
    ["moe eval smol-moe --tasks gsm8k --limit 2 --num-fewshot 1 --data data", "a benchmark from local files"],
  ],
  export: [
    ["moe export smol-moe smol-moe.gguf --dtype bf16", "for llama.cpp"],
    ["moe export smol-moe smol-moe-f32.gguf --dtype f32", "without rounding"],
  ],
  plan: [
    ["moe plan skywork-moe --cluster a800 --gpus 64", "the best layout for 64 cards"],
    ["moe plan mixtral-8x7b --serve --cluster rtx-4090 --gpus 8", "what 8 cards can serve"],
  ],
  quantize: [
    ["moe quantize smol-moe smol-fp8 --format fp8", "weights of one byte"],
    ["moe quantize smol-moe smol-fp8-tensor --format fp8 --scales tensor --no-report", "one scale a matrix, without the report"],
  ],
  dashboard: [
    ["moe dashboard runs", "all runs of a folder, in the browser"],
    ["moe dashboard runs/book --port 6006", "one run, at a port of your choice"],
  ],
  query: [
    ['moe query runs --sql "SELECT run, step, loss FROM steps ORDER BY step DESC LIMIT 5"', "the last steps of all runs"],
    ['moe query runs/book --sql "SELECT layer, max(dropRate) FROM layers GROUP BY layer" --json', "for a program"],
  ],
  completion: [
    ["moe completion bash > moe.bash", "then: source moe.bash"],
    ["moe completion fish > moe.fish", "then: a file in ~/.config/fish/completions"],
  ],
};

/** The examples of a verb. */
export function examplesOf(verb: string): Example[] {
  return (listed[verb] ?? []).map(([command, what]) => ({ command, what }));
}

/** Puts the verb's examples at the end of its help. */
export function addExamples(command: Command): void {
  const lines = examplesOf(command.name()).map(({ command: line, what }) => `  ${line}\n      ${what}`);
  if (lines.length > 0) command.addHelpText("after", `\nExamples:\n${lines.join("\n")}`);
}
