/** The command line as a promise: verbs, arguments and options. A change here is a change for users. */
import { expect, test } from "vitest";
import { createProgram } from "../../src/cli/program.ts";

test("verbs, arguments and options are those that were promised", async () => {
  const lines = (await createProgram()).commands.map((command) => {
    const args = command.registeredArguments.map((argument) => (argument.required ? `<${argument.name()}>` : `[${argument.name()}]`));
    return [command.name(), ...args, ...command.options.map((option) => option.flags.split(" ").slice(0, 2).join(" "))].join(" ");
  });
  expect(lines).toMatchInlineSnapshot(`
    [
      "quickstart --out <folder> --size <size> --seed <n> --json",
      "doctor --json",
      "pull <hub id> --out <folder> --file <name> --revision <name> --json",
      "inspect <model> --json",
      "upcycle <dense> <out> --config <file> --experts <n> --top-k <k> --target <family> --granularity <g> --shared-expert <share> --method <name> --noise-std <x> --drop-ratio <r> --experts-from <path> --router <init> --router-std <x> --no-gate-norm --every <k> --optimizer <state> --seed <n> --dtype <type> --dense-tokens <n> --budget-tokens <n> --probe <file> --no-verify --json",
      "train <recipe> --model <path> --text <path> --validation <path> --set <key=value> --out <folder> --resume --ranks <n> --comm <how> --layout <file> --trace <file> --dashboard [port] --tensorboard [folder] --json",
      "generate <model> --prompt <text> --chat --max-tokens <n> --temperature <t> --top-p <p> --top-k <k> --repetition-penalty <x> --seed <n> --stop <text...> --dtype <type> --kv-dtype <type> --activations <how> --tp <n> --comm <how> --tp-weights <list> --tp-memory <list> --json",
      "chat <model> --system <text> --max-tokens <n> --max-context <n> --temperature <t> --top-p <p> --top-k <k> --min-p <p> --repetition-penalty <x> --seed <n> --dtype <type> --kv-dtype <type> --activations <how>",
      "serve <model> --port <n> --host <address> --name <name> --max-batch <n> --max-context <n> --max-queue <n> --timeout <seconds> --drain-timeout <seconds> --dtype <type> --kv-dtype <type> --activations <how> --kv-memory <MiB> --speculate <how> --draft-model <path> --tp <n> --comm <how> --tp-weights <list> --tp-memory <list> --api-key <key> --json-logs",
      "eval <model> --tasks <names> --num-fewshot <n> --limit <n> --output-path <folder> --log-samples --resume --data <folder> --skip-broken --batch-tokens <n> --max-length <n> --seed <n> --dtype <type> --activations <how> --json",
      "export <model> <out> --format <format> --dtype <type> --json",
      "plan <config> --cluster <name> --gpus <n> --batch <tokens> --sequence <tokens> --objective <what> --pp <n> --dp <n> --tp <n> --ep <n> --etp <n> --micro-batch <n> --interleave <n> --zero <stage> --schedule <name> --software <name> --layers <list> --recompute <how> --memory-reserve <share> --tokens <n> --price <x> --serve --weights <format> --kv <type> --prompt-tokens <n> --output-tokens <n> --out <folder> --json",
      "quantize <model> <out> --format <format> --scales <kind> --layout <layout> --experts <how> --activations <how> --ignore <pattern> --probe <file> --no-report --json",
      "dashboard [folder] --port <n> --host <address> --server <url> --api-key <key> --json",
      "query <folders> --sql <query> --json",
      "completion <shell>",
    ]
  `);
});

test("a verb alone is loaded without the others, and has the same options as in the whole program", async () => {
  const flagsOf = (program: Awaited<ReturnType<typeof createProgram>>): string[][] =>
    program.commands.map((command) => [command.name(), ...command.options.map((option) => option.flags)]);
  const all = flagsOf(await createProgram());
  for (const verb of all.map(([name]) => name ?? "")) {
    expect(flagsOf(await createProgram(verb))).toEqual(all.filter(([name]) => name === verb));
  }
  expect(flagsOf(await createProgram("serv"))).toEqual(all);
  expect(flagsOf(await createProgram("constructor"))).toEqual(all);
});
