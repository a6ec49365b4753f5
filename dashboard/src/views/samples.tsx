/** Texts of a run, each token in the color of the expert that took it. */
import { useState } from "preact/hooks";
import type { JSX } from "preact";
import type { SampleText } from "../../../src/dashboard/api.ts";
import { expertColor } from "../colors.ts";
import { runUrl, useAnswer } from "../data.ts";
import { percent } from "../format.ts";
import { Card, LayerSelect, StepSlider } from "../parts/controls.tsx";
import { useSettings } from "../words.ts";
import { chosenLayer, type ViewProps } from "./view.ts";

export function Samples(props: ViewProps): JSX.Element {
  const { main, place, go } = props;
  const { words } = useSettings();
  const { sampleSteps: steps, prompts, id, layers } = main.detail;
  const [prompt, setPrompt] = useState(0);
  const [chosen, setChosen] = useState<number | null>(null);
  const step = steps.findLast((value) => value <= (place.step ?? Infinity)) ?? steps[0] ?? null;
  const answer = useAnswer<SampleText>(
    step === null ? null : runUrl(id, "/sample", { step, prompt }),
    main.detail.state === "live" ? main.version : 0,
  );
  const layer = chosenLayer(props);
  if (step === null) return <p class="note">{words.noSamples}</p>;
  const sample = answer.data;
  const numExperts = layers.find((shape) => shape.layer === layer)?.numExperts ?? largest(sample) + 1;
  return (
    <Card
      wide
      title={words.samples}
      note={words.sampleNote}
      side={
        <>
          {prompts.length > 1 && (
            <label>
              {words.prompt}{" "}
              <select value={prompt} onChange={(event) => setPrompt(Number(event.currentTarget.value))}>
                {prompts.map((text, i) => (
                  <option key={i} value={i}>
                    {text === "" ? words.emptyPrompt : text.slice(0, 40)}
                  </option>
                ))}
              </select>
            </label>
          )}
          <LayerSelect layer={layer} main={main} go={go} />
        </>
      }
    >
      <StepSlider steps={steps} step={step} onStep={(next) => go({ step: next }, false)} />
      {answer.error !== null && <p class="note">{answer.error}</p>}
      {sample !== null && (
        <>
          <Text sample={sample} layer={layer} numExperts={numExperts} chosen={chosen} />
          {sample.layers.length > 0 && (
            <>
              <Experts sample={sample} layer={layer} numExperts={numExperts} chosen={chosen} onChoose={setChosen} />
              <Layers
                sample={sample}
                numExperts={numExperts}
                chosen={chosen}
                layer={layer}
                onLayer={(picked) => go({ layer: picked }, false)}
              />
            </>
          )}
        </>
      )}
    </Card>
  );
}

function largest(sample: SampleText | null): number {
  return (sample?.experts ?? []).flat(2).reduce((most, expert) => Math.max(most, expert), 0);
}
function visible(token: string): string {
  // An empty token is part of a character that a later one completes.
  return token === "" ? "·" : token.replaceAll("\n", "⏎\n");
}

interface Shown {
  readonly sample: SampleText;
  readonly numExperts: number;
  readonly chosen: number | null;
  readonly layer: number | null;
}

function Text({ sample, layer, numExperts, chosen }: Shown): JSX.Element {
  const { words, dark } = useSettings();
  const place = sample.layers.indexOf(layer ?? -1);
  return (
    <p class="text" data-testid="sample">
      {sample.tokens.map((token, t) => {
        const experts = sample.experts[place]?.[t] ?? [];
        const weights = sample.weights[place]?.[t] ?? [];
        const off = chosen !== null && !experts.includes(chosen);
        const [first, second] = experts;
        return (
          <span
            key={t}
            class={t < sample.promptTokens ? "prompt" : undefined}
            data-off={off ? "" : undefined}
            data-expert={first}
            title={experts.map((expert, k) => `${words.expert} ${expert}: ${percent(weights[k], 0)}`).join(", ")}
            style={
              first === undefined
                ? {}
                : {
                    background: off ? "transparent" : expertColor(first, numExperts, dark),
                    borderBottom:
                      second === undefined || off ? "2px solid transparent" : `2px solid ${expertColor(second, numExperts, !dark)}`,
                  }
            }
          >
            {visible(token)}
          </span>
        );
      })}
    </p>
  );
}

/** Shares of the text's tokens, and buttons that show one expert alone. */
function Experts({
  sample,
  layer,
  numExperts,
  chosen,
  onChoose,
}: Shown & { readonly onChoose: (expert: number | null) => void }): JSX.Element {
  const { words, dark } = useSettings();
  const rows = sample.experts[sample.layers.indexOf(layer ?? -1)] ?? [];
  const counts = Array.from({ length: numExperts }, (_, expert) => rows.filter((experts) => experts[0] === expert).length);
  return (
    <div class="experts" role="group" aria-label={words.highlight}>
      <button type="button" aria-pressed={chosen === null} onClick={() => onChoose(null)}>
        {words.allExperts}
      </button>
      {counts.map((count, expert) => (
        <button
          key={expert}
          type="button"
          aria-pressed={chosen === expert}
          title={`${words.expert} ${expert}: ${count} / ${rows.length}`}
          style={{ background: expertColor(expert, numExperts, dark) }}
          onClick={() => onChoose(chosen === expert ? null : expert)}
        >
          {expert} <small class="number">{percent(count / Math.max(1, rows.length), 0)}</small>
        </button>
      ))}
    </div>
  );
}

/** Every layer's first expert of every token. */
function Layers({ sample, numExperts, chosen, layer, onLayer }: Shown & { readonly onLayer: (layer: number) => void }): JSX.Element {
  const { words, dark } = useSettings();
  return (
    <>
      <h3>{words.throughLayers}</h3>
      <p class="note">{words.throughLayersNote}</p>
      <div class="strips" tabIndex={0} role="region" aria-label={words.throughLayers}>
        <table>
          <tbody>
            {sample.layers.map((number, l) => (
              <tr key={number} data-chosen={number === layer ? "" : undefined}>
                <th scope="row">
                  <button type="button" class="quiet" aria-label={`${words.layer} ${number}`} onClick={() => onLayer(number)}>
                    {number}
                  </button>
                </th>
                {sample.tokens.map((token, t) => {
                  const expert = sample.experts[l]?.[t]?.[0] ?? 0;
                  const off = chosen !== null && sample.experts[l]?.[t]?.includes(chosen) !== true;
                  return (
                    <td
                      key={t}
                      title={`${token} · ${words.expert} ${expert}`}
                      style={off ? {} : { background: expertColor(expert, numExperts, dark) }}
                    >
                      {sample.tokens.length <= 64 && !off ? expert : ""}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
