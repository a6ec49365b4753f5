/**
 * `npm run bench -- <theme> [options]`: measures us and our rivals in one run. Rows go to standard output (a table, or with `--json` an
 * array of `{name, ours, rival, unit, bar}` and more), progress to standard error. The exit code is 0 also where bars are missed: this
 * measures, `report.ts` judges.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism, loadavg } from "node:os";
import { dirname } from "node:path";
import { parseArgs } from "node:util";
import { chooseEngine, describeEngine } from "../src/backend/load.ts";
import { startRival, type Context } from "./context.ts";
import { dashboardRows } from "./dashboard.ts";
import { engineRows } from "./engine.ts";
import { inferenceRows } from "./inference.ts";
import { efforts, type Row } from "./measure.ts";
import { Roof } from "./process.ts";
import { profile, profiles, type ProfileName } from "./profile.ts";
import { moeRows } from "./moe.ts";
import { parallelRows } from "./parallel.ts";
import { plannerRows } from "./planner.ts";
import { describeRow, markdownReport, textTable } from "./report.ts";

const themes = {
  engine: engineRows,
  moe: moeRows,
  inference: inferenceRows,
  parallel: parallelRows,
  planner: plannerRows,
  dashboard: dashboardRows,
} as const;

/** Load a processor above which somebody else is computing. */
const busyLoad = 0.25;

const usage = `npm run bench -- <theme> [options]
themes: ${Object.keys(themes).join(", ")}
  --json            rows as JSON on standard output
  --only <prefix>   only rows whose name begins so
  --quick           few and short samples: to see that everything runs, not to quote
  --report <file>   also writes a report (results/<theme>_<hardware>_<yyyymm>.md)
  --profile <what>  where the time of one of our steps goes: ${profiles.join(", ")}`;

function isTheme(name: string | undefined): name is keyof typeof themes {
  return name !== undefined && Object.hasOwn(themes, name);
}

/** Versions of the Python side, as far as it runs. */
async function rivalVersions(): Promise<Record<string, string>> {
  const rival = await startRival("linear.versions");
  if (typeof rival === "string") return {};
  using running = rival;
  return (await running.call("linear.versions")) as Record<string, string>;
}

async function measure(theme: keyof typeof themes, context: Context): Promise<Row[]> {
  const rows: Row[] = [];
  for await (const row of themes[theme](context)) {
    context.log(describeRow(row));
    rows.push(row);
  }
  return rows;
}

async function main(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      json: { type: "boolean", default: false },
      only: { type: "string", default: "" },
      quick: { type: "boolean", default: false },
      report: { type: "string" },
      profile: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  const [theme, ...rest] = positionals;
  if (values.help || !isTheme(theme) || rest.length > 0) {
    console.error(usage);
    return values.help ? 0 : 2;
  }
  if (values.profile !== undefined) {
    const wanted = profiles.find((name): name is ProfileName => name === values.profile);
    if (wanted === undefined) throw new Error(`--profile: expected ${profiles.join(", ")}, got "${values.profile}"`);
    console.log(await profile(wanted));
    return 0;
  }
  const started = performance.now();
  const busy = loadavg()[0] ?? 0;
  if (busy > busyLoad * availableParallelism())
    console.error(`the machine is busy (load ${busy.toFixed(1)}): the figures will not be worth quoting`);
  using roof = new Roof();
  const log = (line: string): void => void process.stderr.write(`${line}\n`);
  const rows = await measure(theme, { effort: values.quick ? efforts.quick : efforts.full, only: values.only, roof, log });
  if (rows.length === 0) throw new Error(`--only ${values.only}: no row of ${theme} begins so`);
  console.log(values.json ? JSON.stringify(rows) : textTable(rows));
  if (values.report !== undefined) {
    const choice = await chooseEngine();
    const engine = describeEngine(choice);
    choice.backend.dispose();
    const command = `npm run bench -- ${args.join(" ")}`;
    const facts = {
      theme,
      command,
      seconds: (performance.now() - started) / 1000,
      versions: await rivalVersions(),
      engine,
      loadBefore: busy,
    };
    mkdirSync(dirname(values.report), { recursive: true });
    writeFileSync(values.report, markdownReport(rows, facts));
    log(`wrote ${values.report}`);
  }
  return 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
