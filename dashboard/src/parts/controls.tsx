/** Small parts that views share. */
import type { ComponentChildren, JSX } from "preact";
import type { Json } from "../../../src/dashboard/api.ts";
import type { ViewProps } from "../views/view.ts";
import { useSettings } from "../words.ts";

export function Card({
  title,
  note,
  side,
  children,
  wide = false,
}: {
  readonly title?: string;
  readonly note?: string | undefined;
  readonly side?: ComponentChildren;
  readonly children: ComponentChildren;
  readonly wide?: boolean;
}): JSX.Element {
  return (
    <section class={wide ? "card wide" : "card"}>
      {(title !== undefined || side !== undefined) && (
        <div class="head">
          <div>
            {title !== undefined && <h2>{title}</h2>}
            {note !== undefined && <p class="note">{note}</p>}
          </div>
          {side !== undefined && <div class="side">{side}</div>}
        </div>
      )}
      {children}
    </section>
  );
}

export function LayerSelect({ layer, main, go }: Pick<ViewProps, "main" | "go"> & { readonly layer: number | null }): JSX.Element | null {
  const { words } = useSettings();
  if (layer === null || main.detail.layers.length < 2) return null;
  return (
    <label>
      {words.layer}{" "}
      <select value={layer} onChange={(event) => go({ layer: Number(event.currentTarget.value) }, false)}>
        {main.detail.layers.map(({ layer }) => (
          <option key={layer} value={layer}>
            {layer}
          </option>
        ))}
      </select>
    </label>
  );
}

/** A position among steps that were recorded; arrow keys move it, being a range input. */
export function StepSlider({
  steps,
  step,
  onStep,
}: {
  readonly steps: readonly number[];
  readonly step: number;
  readonly onStep: (step: number) => void;
}): JSX.Element | null {
  const { words } = useSettings();
  if (steps.length < 2) return null;
  const index = steps.reduce((best, value, i) => (value <= step ? i : best), 0);
  return (
    <label class="slider">
      <span>
        {words.step} <b class="number">{steps[index]}</b>
      </span>
      <input
        type="range"
        min={0}
        max={steps.length - 1}
        value={index}
        aria-valuetext={`${words.step} ${steps[index] ?? ""}`}
        onInput={(event) => onStep(steps[Number(event.currentTarget.value)] ?? step)}
      />
    </label>
  );
}

/** JSON as it can be read: objects fold, long lists are shortened by the server. */
export function Tree({ value, name, depth = 0 }: { readonly value: Json; readonly name?: string; readonly depth?: number }): JSX.Element {
  const label = name === undefined ? null : <span class="key">{name}</span>;
  if (value === null || typeof value !== "object")
    return (
      <div class="leaf">
        {label} <span class="number">{value === null ? "null" : String(value)}</span>
      </div>
    );
  const entries: (readonly [string, Json])[] = Array.isArray(value)
    ? value.map((item: Json, i) => [String(i), item] as const)
    : Object.entries(value);
  const plain = Array.isArray(value) && value.every((item: Json) => item === null || typeof item !== "object");
  if (plain && entries.length <= 32)
    return (
      <div class="leaf">
        {label} <span class="number">[{entries.map(([, item]) => String(item)).join(", ")}]</span>
      </div>
    );
  const shown = entries.slice(0, 500);
  const inner = shown.map(([key, item]) => <Tree key={key} name={key} value={item} depth={depth + 1} />);
  if (name === undefined) return <div class="tree">{inner}</div>;
  return (
    <details>
      <summary>
        {label} <span class="note">{Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`}</span>
      </summary>
      <div class="tree">{inner}</div>
    </details>
  );
}
