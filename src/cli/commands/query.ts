/** `moe query`: SQL over the metrics of runs. */
import type { Command } from "commander";
import { queryRuns } from "../../dashboard/query.ts";
import { formatTable, Output } from "../output.ts";

interface QueryFlags {
  readonly sql: string;
  readonly json?: boolean;
}

export function addQuery(program: Command): void {
  program
    .command("query")
    .description("SQL over the metrics of runs: tables runs, steps, layers, loads, evaluations, similarity")
    .argument("<folders...>", "folders of runs, or of folders with runs")
    .requiredOption("--sql <query>", 'for example "SELECT run, step, loss FROM evaluations ORDER BY loss LIMIT 5"')
    .option("--json", "print one JSON object")
    .action(run);
}

function run(folders: readonly string[], flags: QueryFlags): void {
  const output = new Output({ json: flags.json === true });
  const result = queryRuns(folders, flags.sql);
  if (result.badLines > 0) output.log(`warning: ${result.badLines} lines that are no records were passed over`);
  const rows = result.rows.map((row) => row.map(shown));
  output.result(result, [formatTable([result.columns, ...rows]), `${result.rows.length} rows`].join("\n"));
}

/** Six digits; JSON has all of them. */
function shown(value: string | number | null): string {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
  return value ?? "";
}
