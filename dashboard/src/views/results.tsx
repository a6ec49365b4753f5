/** Files of the run: evaluations, the receipt of upcycling, the planner's report, the configuration. */
import type { JSX } from "preact";
import type { ArtifactAnswer, DocumentAnswer, EvaluationAnswer, Json } from "../../../src/dashboard/api.ts";
import { runUrl, useAnswers } from "../data.ts";
import { bytes, compact, duration, percent, whole } from "../format.ts";
import { Card, Tree } from "../parts/controls.tsx";
import { useSettings } from "../words.ts";
import type { ViewProps } from "./view.ts";

export function Results({ main }: ViewProps): JSX.Element {
  const { words } = useSettings();
  const { id, artifacts, config } = main.detail;
  const shown = artifacts.filter(({ kind }) => kind !== "trace").slice(0, 24);
  const urls = Object.fromEntries(shown.map((item) => [item.id, runUrl(id, "/artifact", { id: item.id })]));
  const answers = useAnswers<ArtifactAnswer>(urls, shown.map(({ name }) => name).join());
  return (
    <>
      {shown.length === 0 && <p class="note">{words.noResults}</p>}
      {shown.map((item) => {
        const answer = answers[item.id];
        if (answer === undefined || answer.kind === "trace") return null;
        return answer.kind === "evaluation" ? <Evaluation key={item.id} answer={answer} /> : <Document key={item.id} answer={answer} />;
      })}
      {config !== null && (
        <Card wide title={words.configuration}>
          <Tree value={config} />
        </Card>
      )}
    </>
  );
}

function Evaluation({ answer }: { readonly answer: EvaluationAnswer }): JSX.Element {
  const { words } = useSettings();
  return (
    <Card
      wide
      title={words.evaluations}
      note={[
        answer.model,
        answer.name,
        answer.date === null ? null : new Date(answer.date * 1000).toISOString().slice(0, 16).replace("T", " "),
      ]
        .filter((part) => part !== null)
        .join(" · ")}
    >
      <div class="scroll" tabIndex={0} role="region" aria-label={words.evaluations}>
        <table class="numbers">
          <thead>
            <tr>
              {[words.task, words.metric, words.filter, words.shots, words.value, words.error].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {answer.rows.map((row, i) => (
              <tr key={i}>
                <th scope="row" style={{ paddingInlineStart: `${row.depth * 1.2}rem` }}>
                  {answer.rows[i - 1]?.task === row.task ? "" : row.task}
                </th>
                <td>
                  {row.metric} {row.higherIsBetter === true ? "↑" : row.higherIsBetter === false ? "↓" : ""}
                </td>
                <td>{row.filter}</td>
                <td class="number">{row.shots ?? ""}</td>
                <td class="number">
                  <b>{row.value.toFixed(4)}</b>
                </td>
                <td class="number">{row.standardError === null ? "" : `± ${row.standardError.toFixed(4)}`}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Card>
  );
}

/** Numbers that stand out, by what their keys say. */
function headline(document: Json): (readonly [string, string])[] {
  const found: (readonly [string, string])[] = [];
  const visit = (value: Json, path: string, depth: number): void => {
    if (found.length >= 16) return;
    if (typeof value === "number") {
      const key = path.split(".").at(-1) ?? "";
      const shown = /bytes/i.test(key)
        ? bytes(value)
        : key.endsWith("Ms")
          ? duration(value / 1000)
          : /seconds$/i.test(key)
            ? duration(value)
            : /(mfu|rate|share|fraction|bubble)$/i.test(key)
              ? percent(value)
              : Number.isInteger(value)
                ? whole(value)
                : compact(value, 4);
      found.push([path, shown]);
    } else if (depth > 0 && value !== null && typeof value === "object" && !Array.isArray(value))
      for (const [key, item] of Object.entries(value)) visit(item, path === "" ? key : `${path}.${key}`, depth - 1);
  };
  const best = document !== null && typeof document === "object" && "best" in document ? document.best : undefined;
  if (best !== undefined && best !== null && typeof best === "object") visit(best, "", 1);
  visit(document, "", best === undefined ? 1 : 0);
  // The numbers that stand beside `best`, at the top.
  if (best !== undefined && document !== null && typeof document === "object")
    for (const [key, value] of Object.entries(document)) if (typeof value === "number") visit(value, key, 0);
  return found;
}

function Document({ answer }: { readonly answer: DocumentAnswer }): JSX.Element {
  const { words } = useSettings();
  return (
    <Card wide title={answer.kind === "plan" ? words.plan : words.receipt} note={answer.name}>
      <dl class="tiles">
        {headline(answer.document).map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd class="number">{value}</dd>
          </div>
        ))}
      </dl>
      <StageMemory document={answer.document} />
      <Tree value={answer.document} />
    </Card>
  );
}

/** `memoryBytesPerStage` with layers and recomputed layers, where a plan has them. */
function StageMemory({ document }: { readonly document: Json }): JSX.Element | null {
  const { words } = useSettings();
  const best = document !== null && typeof document === "object" && "best" in document ? document.best : document;
  const of = (name: string): readonly Json[] => {
    for (const source of [best, document])
      if (source !== null && source !== undefined && typeof source === "object" && name in source) {
        const value = (source as Readonly<Record<string, Json>>)[name];
        if (Array.isArray(value)) return value as readonly Json[];
      }
    return [];
  };
  const memory = of("memoryBytesPerStage");
  const [stages, recompute] = [of("stages"), of("recompute")];
  if (memory.length === 0) return null;
  const most = memory.reduce<number>((a, b) => Math.max(a, typeof b === "number" ? b : 0), 1);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={words.perStage}>
      <table class="numbers">
        <thead>
          <tr>
            {[words.perStage, words.layers, words.recomputed, words.memory].map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
            <td />
          </tr>
        </thead>
        <tbody>
          {memory.map((value, i) => (
            <tr key={i}>
              <th scope="row">{i}</th>
              <td class="number">{everyNth(stages, i, memory.length)}</td>
              <td class="number">{everyNth(recompute, i, memory.length)}</td>
              <td class="number">{typeof value === "number" ? bytes(value) : ""}</td>
              <td class="bar">
                <meter min={0} max={most} value={typeof value === "number" ? value : 0} aria-label={`${words.memory} ${i}`} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Entries of a pipeline rank: with interleaved stages it has every `count`-th. */
function everyNth(values: readonly Json[], index: number, count: number): string {
  return values
    .filter((_, i) => i % count === index)
    .map((value) => (typeof value === "number" ? String(value) : JSON.stringify(value)))
    .join(" + ");
}
