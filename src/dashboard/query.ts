/**
 * SQL over the metrics of runs (`moe query`): records become tables of an SQLite database in memory, made for the one question and gone after
 * it. SQLite is Node's own (`node:sqlite`), so nothing is installed; the connection is read-only once the tables are filled, and cannot reach
 * files. Tables:
 *
 *   runs(run, path, state, steps, last_step, config)          config is JSON: config ->> '$.numSteps'
 *   steps(run, step, loss, auxiliaryLoss, ...)                every scalar of step records; nested ones as "traffic.tp.bytes"
 *   layers(run, step, layer, dropRate, coefficient, ...)      every number of `layers[]`
 *   loads(run, step, layer, expert, load)
 *   evaluations(run, step, name, loss, standardError, numTokens, numSequences)
 *   similarity(run, step, layer, weights, outputs)            means over pairs
 *
 * Column names are the keys of docs/metrics.md; SQLite does not tell capital letters from small ones.
 */
import { constants, DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { MoeError } from "../util/errors.ts";
import { Catalog } from "./catalog.ts";
import { readInside } from "./inside.ts";
import { LineTail } from "./line-tail.ts";
import { asArray, asCount, asNumber, asObject, asText, eachNumber, parseJson } from "./record.ts";

export interface QueryResult {
  readonly columns: readonly string[];
  readonly rows: readonly (readonly (string | number | null)[])[];
  /** Lines of metrics files that are no records. */
  readonly badLines: number;
}

const maxColumns = 512;
const maxRows = 1_000_000;

/** Answers `sql` over the runs below each folder. Throws `usage` for SQL that does not read, `file` for a folder that is none. */
export function queryRuns(folders: readonly string[], sql: string): QueryResult {
  const database = new DatabaseSync(":memory:", { allowExtension: false });
  try {
    const filler = new Filler(database);
    for (const folder of folders) {
      const catalog = new Catalog(folder);
      for (const run of catalog.runs) {
        if (run.kind !== "run") continue;
        const name = folders.length === 1 ? run.name : run.name === "." ? folder : `${folder}/${run.name}`;
        filler.addRun(name === "." ? folder : name, run.folder, run.summary().state);
      }
    }
    filler.finish();
    // Nothing to write, no other file to attach, no extension to load: what is left is reading.
    // Node before 24.10 has no authorizer; the tables are read-only there as well.
    database.setAuthorizer?.((action) => (readingActions.has(action) ? constants.SQLITE_OK : constants.SQLITE_DENY));
    return { ...answer(database, sql), badLines: filler.badLines };
  } finally {
    database.close();
  }
}

const readingActions = new Set<number>([
  constants.SQLITE_SELECT,
  constants.SQLITE_READ,
  constants.SQLITE_FUNCTION,
  constants.SQLITE_RECURSIVE,
]);

function answer(database: DatabaseSync, sql: string): Omit<QueryResult, "badLines"> {
  try {
    const statement = database.prepare(sql);
    statement.setReturnArrays(true);
    const columns = statement.columns().map(({ name }) => name);
    const rows: (string | number | null)[][] = [];
    for (const row of statement.iterate()) {
      if (rows.length >= maxRows) throw new MoeError("usage", `--sql: more than ${maxRows} rows; add a LIMIT`);
      rows.push((row as unknown as unknown[]).map(plain));
    }
    return { columns, rows };
  } catch (error) {
    if (error instanceof MoeError) throw error;
    const message = error instanceof Error ? error.message : String(error);
    const reason = /not authorized/.test(message) ? "only reading is allowed (SELECT)" : message;
    throw new MoeError("usage", `--sql: ${reason}; the tables are runs, steps, layers, loads, evaluations, similarity`, { cause: error });
  }
}
function plain(value: unknown): string | number | null {
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "number" || typeof value === "string") return value;
  return value instanceof Uint8Array ? Buffer.from(value).toString("hex") : null;
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** A table whose columns come as records bring them. */
class GrowingTable {
  readonly #database: DatabaseSync;
  readonly #name: string;
  readonly #columns: string[];
  readonly #known: Set<string>;
  #insert: StatementSync | null = null;

  constructor(database: DatabaseSync, name: string, columns: readonly string[]) {
    this.#database = database;
    this.#name = name;
    this.#columns = [...columns];
    this.#known = new Set(columns.map((column) => column.toLowerCase()));
    database.exec(`CREATE TABLE ${quoted(name)} (${columns.map(quoted).join(", ")})`);
  }
  add(values: ReadonlyMap<string, SQLInputValue>): void {
    for (const column of values.keys()) {
      if (this.#known.has(column.toLowerCase()) || this.#columns.length >= maxColumns) continue;
      this.#known.add(column.toLowerCase());
      this.#columns.push(column);
      this.#database.exec(`ALTER TABLE ${quoted(this.#name)} ADD COLUMN ${quoted(column)}`);
      this.#insert = null;
    }
    this.#insert ??= this.#database.prepare(`INSERT INTO ${quoted(this.#name)} VALUES (${this.#columns.map(() => "?").join(", ")})`);
    this.#insert.run(...this.#columns.map((column) => values.get(column) ?? null));
  }
}

class Filler {
  readonly #database: DatabaseSync;
  readonly #runs: GrowingTable;
  readonly #steps: GrowingTable;
  readonly #layers: GrowingTable;
  readonly #evaluations: GrowingTable;
  readonly #similarity: GrowingTable;
  readonly #loads: StatementSync;
  badLines = 0;

  constructor(database: DatabaseSync) {
    this.#database = database;
    const table = (name: string, ...columns: readonly string[]): GrowingTable => new GrowingTable(database, name, columns);
    this.#runs = table("runs", "run", "path", "state", "steps", "last_step", "config");
    this.#steps = table(
      "steps",
      "run",
      "step",
      "loss",
      "auxiliaryLoss",
      "learningRate",
      "gradNorm",
      "tokens",
      "seconds",
      "tokensPerSecond",
      "mfu",
      "peakBytes",
    );
    this.#layers = table("layers", "run", "step", "layer", "dropRate", "numDropped", "coefficient");
    this.#evaluations = table("evaluations", "run", "step", "name", "loss", "standardError", "numTokens", "numSequences");
    this.#similarity = table("similarity", "run", "step", "layer", "weights", "outputs");
    database.exec("CREATE TABLE loads (run, step, layer, expert, load)");
    this.#loads = database.prepare("INSERT INTO loads VALUES (?, ?, ?, ?, ?)");
    database.exec("BEGIN");
  }

  addRun(run: string, folder: string, state: string): void {
    const tail = new LineTail(folder, "metrics.jsonl");
    let [steps, lastStep] = [0, null as number | null];
    for (let more = true; more;) {
      const reading = tail.read(8 << 20);
      for (const { text } of reading.lines) {
        const record = asObject(parseJson(text));
        const step = asCount(record?.["step"]);
        if (record === null || step === null) {
          if (text.trim() !== "") this.badLines++;
          continue;
        }
        if (record["type"] === "step") [steps, lastStep] = [steps + 1, step];
        this.#addRecord(run, step, record);
      }
      this.badLines += reading.numTooLong;
      ({ more } = reading);
    }
    const config = readInside(folder, "config.json", 4 << 20);
    const readable = config !== null && parseJson(config) !== undefined ? config : null;
    this.#runs.add(
      new Map<string, SQLInputValue>(Object.entries({ run, path: folder, state, steps, last_step: lastStep, config: readable })),
    );
  }
  #addRecord(run: string, step: number, record: Readonly<Record<string, unknown>>): void {
    switch (record["type"]) {
      case "step":
        this.#steps.add(numbersOf(record, { run, step }));
        for (const item of asArray(record["layers"])) {
          const layer = asObject(item);
          const number = asCount(layer?.["layer"]);
          if (layer === null || number === null) continue;
          this.#layers.add(numbersOf(layer, { run, step, layer: number }));
          for (const [expert, load] of asArray(layer["load"]).entries())
            if (typeof load === "number") this.#loads.run(run, step, number, expert, load);
        }
        return;
      case "evaluation":
        this.#evaluations.add(numbersOf(record, { run, step, name: asText(record["name"], 200) }));
        return;
      case "similarity":
        for (const item of asArray(record["layers"])) {
          const layer = asObject(item);
          const mean = (of: string): number | null => finite(asNumber(asObject(layer?.[of])?.["mean"]));
          const values = { run, step, layer: asCount(layer?.["layer"]), weights: mean("weights"), outputs: mean("outputs") };
          this.#similarity.add(new Map<string, SQLInputValue>(Object.entries(values)));
        }
        return;
      default:
    }
  }
  finish(): void {
    this.#database.exec("COMMIT");
    this.#database.exec("PRAGMA query_only = 1");
  }
}

function finite(value: number): number | null {
  return Number.isFinite(value) ? value : null;
}
/** What `fixed` says, then the record's numbers. */
function numbersOf(record: Readonly<Record<string, unknown>>, fixed: Readonly<Record<string, SQLInputValue>>): Map<string, SQLInputValue> {
  const values = new Map<string, SQLInputValue>(Object.entries(fixed));
  eachNumber(record, (path, value) => {
    if (!values.has(path)) values.set(path, value);
  });
  return values;
}
