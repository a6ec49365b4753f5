/** `moe quickstart`: the whole loop on a small real text. */
import { join } from "node:path";
import { Option, type Command } from "commander";
import { quickstart, type QuickstartSummary } from "../../quickstart/index.ts";
import { defaultDashboardPort, wholeNumber } from "../options.ts";
import { formatCount, formatTable, Output } from "../output.ts";
import { openEngine } from "../session.ts";
import { Reporter } from "../train-reporter.ts";

interface QuickstartFlags {
  readonly out?: string;
  readonly size: "full" | "smoke";
  readonly seed: number;
  readonly json?: boolean;
}

export function addQuickstart(program: Command): void {
  program
    .command("quickstart")
    .description("the whole loop on a small real text: dense training, upcycling, MoE training, comparison, samples")
    .option("--out <folder>", "run folder (default: runs/quickstart-<time>)")
    .addOption(
      new Option("--size <size>", "full: one to three minutes on two cores; smoke: seconds").choices(["full", "smoke"]).default("full"),
    )
    .option("--seed <n>", "seed of weights and data order", wholeNumber(0), 1)
    .option("--json", "print one JSON object")
    .action(run);
}

async function run(flags: QuickstartFlags): Promise<void> {
  const output = new Output({ json: flags.json === true });
  const stamp = new Date().toISOString().replaceAll(/[:.]/g, "-").slice(0, 19);
  const runFolder = flags.out ?? join("runs", `quickstart-${stamp}`);
  const controller = new AbortController();
  const stop = (): void => {
    controller.abort();
  };
  process.once("SIGINT", stop).once("SIGTERM", stop);
  using engine = await openEngine();
  const { name, isa, numThreads } = engine.backend;
  output.log(`engine ${name} (${isa}, ${numThreads} threads), run folder ${runFolder}`);
  output.log(`to watch it: ${watchCommand(runFolder)}`);
  let reporter: Reporter | null = null;
  let phase = "";
  try {
    const summary = await quickstart({
      engine,
      runFolder,
      size: flags.size,
      seed: flags.seed,
      signal: controller.signal,
      onEvent: (event) => {
        if (event.type === "note") {
          output.log(event.text);
          return;
        }
        if (event.phase !== phase) {
          reporter?.stop();
          phase = event.phase;
          reporter = new Reporter(output, phase, { showsMfu: phase === "dense" });
        }
        reporter?.on(event.event);
        if (event.event.type === "evaluation") reporter?.stop();
      },
    });
    output.result(summary, describe(summary));
  } finally {
    (reporter as Reporter | null)?.stop();
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}

/** The dashboard of the runs, and where it will be. */
function watchCommand(runFolder: string): string {
  const moe = process.env["npm_lifecycle_event"] === undefined ? "moe" : "npm run moe --";
  return `${moe} dashboard ${runFolder} (http://127.0.0.1:${defaultDashboardPort}/)`;
}

function describe(s: QuickstartSummary): string {
  const loss = (value: number, error: number): string => `${value.toFixed(4)} +- ${error.toFixed(4)}`;
  const { steps, tokensPerStep } = s;
  const rows = [
    ["model", "parameters", "active", "trained on", "validation loss"],
    [
      "dense",
      formatCount(s.denseNumParams),
      formatCount(s.denseNumParams),
      `${formatCount(steps.dense * tokensPerStep)} tokens`,
      loss(s.denseValLoss, s.denseValLossError),
    ],
    [
      "MoE, 8 experts top-2",
      formatCount(s.numParams),
      formatCount(s.numActiveParams),
      `+ ${formatCount(steps.moe * tokensPerStep)} tokens`,
      loss(s.moeValLoss, s.moeValLossError),
    ],
    [
      "dense, equal tokens",
      formatCount(s.denseNumParams),
      formatCount(s.denseNumParams),
      `+ ${formatCount(steps.moe * tokensPerStep)} tokens`,
      loss(s.denseLongerValLoss, s.denseLongerValLossError),
    ],
    [
      "dense, equal FLOPs",
      formatCount(s.denseNumParams),
      formatCount(s.denseNumParams),
      `+ ${formatCount(steps.denseEqualFlops * tokensPerStep)} tokens`,
      loss(s.denseEqualFlopsValLoss, s.denseEqualFlopsValLossError),
    ],
  ];
  const loads = s.expertLoad.map(({ layer, load }) => [`layer ${layer}`, ...load.map((x) => `${(100 * x).toFixed(0)}%`)]);
  const samples = s.samples.map(({ model, text }) => `[${model}] The people of the United States${text}`);
  return [
    "",
    formatTable(rows),
    "",
    `at step 0 the MoE equals the dense model: largest logit difference ${s.upcycleMaxGap.toExponential(1)} of the largest logit`,
    "",
    "expert load (fair share 12.5%)",
    formatTable(loads),
    "",
    samples.join("\n\n"),
    "",
    `${s.seconds.toFixed(0)} s; everything is in ${s.runDir}; to look at it: ${watchCommand(s.runDir)}`,
  ].join("\n");
}
