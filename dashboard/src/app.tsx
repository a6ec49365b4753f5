/** The frame of the page: which runs, which view, language and theme. */
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import type { JSX } from "preact";
import type { RunDetail, RunSummary } from "../../src/dashboard/api.ts";
import { dashes, lineColor } from "./colors.ts";
import { runUrl, useAnswer, useLive, useRunList } from "./data.ts";
import { compact, whole } from "./format.ts";
import { usePlace, views, type Go, type Place } from "./place.ts";
import { Balance } from "./views/balance.tsx";
import { Gates } from "./views/gates.tsx";
import { Overview } from "./views/overview.tsx";
import { Pipeline } from "./views/pipeline.tsx";
import { Results } from "./views/results.tsx";
import { Samples } from "./views/samples.tsx";
import { Serving } from "./views/serving.tsx";
import { Similarity } from "./views/similarity.tsx";
import { Training } from "./views/training.tsx";
import type { OpenRun, ViewProps } from "./views/view.ts";
import { dictionaries, SettingsContext, useSettings, type Language } from "./words.ts";

type Theme = "auto" | "light" | "dark";

function stored<T extends string>(key: string, allowed: readonly T[], otherwise: T): T {
  try {
    return allowed.find((value) => value === localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
function store(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // A browser that keeps nothing: the choice holds as long as the page.
  }
}

function useDark(theme: Theme): boolean {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [prefers, setPrefers] = useState(query.matches);
  useEffect(() => {
    const onChange = (): void => setPrefers(query.matches);
    query.addEventListener("change", onChange);
    return () => query.removeEventListener("change", onChange);
  }, []);
  return theme === "dark" || (theme === "auto" && prefers);
}

export function App(): JSX.Element {
  const [theme, setTheme] = useState<Theme>(() => stored("moe-theme", ["auto", "light", "dark"], "auto"));
  const [language, setLanguage] = useState<Language>(() =>
    stored("moe-language", ["en", "zh"], navigator.language.startsWith("zh") ? "zh" : "en"),
  );
  const dark = useDark(theme);
  const words = dictionaries[language];
  // Before the next frame: neither a flash of the other theme, nor a choice that a reload at once would lose.
  useLayoutEffect(() => {
    document.documentElement.dataset["theme"] = dark ? "dark" : "light";
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    store("moe-theme", theme);
    store("moe-language", language);
  }, [dark, theme, language]);
  return (
    <SettingsContext.Provider value={{ words, language, dark }}>
      <Frame
        controls={
          <>
            <select aria-label={words.theme} value={theme} onChange={(event) => setTheme(event.currentTarget.value as Theme)}>
              <option value="auto">{words.themeAuto}</option>
              <option value="light">{words.themeLight}</option>
              <option value="dark">{words.themeDark}</option>
            </select>
            <button
              type="button"
              class="quiet"
              aria-label={words.languageLabel}
              onClick={() => setLanguage(language === "en" ? "zh" : "en")}
            >
              {words.language}
            </button>
          </>
        }
      />
    </SettingsContext.Provider>
  );
}

function Frame({ controls }: { readonly controls: JSX.Element }): JSX.Element {
  const { words } = useSettings();
  const [place, go] = usePlace();
  const list = useRunList();
  const connected = useLive((state) => state.connected);
  const known = list?.runs ?? [];
  const chosen = place.runs.filter((id) => known.some((run) => run.id === id));
  // The newest run that has steps, where none is named.
  const first =
    chosen[0] ??
    (known.find((run) => run.kind === "run" && run.lastStep !== null) ?? known.find((run) => run.kind === "run") ?? known[0])?.id ??
    null;
  const ids = first === null ? [] : [first, ...chosen.filter((id) => id !== first)].slice(0, 8);
  const view = list !== null && list.runs.length === 0 && list.server !== null ? "serving" : place.view;
  useEffect(() => {
    const name = known.find((run) => run.id === first)?.name;
    document.title = `${name === undefined || name === "." ? "" : `${name} – `}moe dashboard`;
  }, [first, known]);
  return (
    <>
      <a
        class="skip"
        href="#content"
        onClick={(event) => {
          event.preventDefault();
          document.querySelector<HTMLElement>("#content")?.focus();
        }}
      >
        {words.skip}
      </a>
      <header>
        <h1>
          <img src="icon.svg" width={20} height={20} alt="" /> moe
        </h1>
        <p class="root">{list?.root ?? ""}</p>
        {!connected && list !== null && (
          <p class="warning" role="status">
            {words.disconnected}
          </p>
        )}
        <div class="controls">{controls}</div>
      </header>
      <div class="body">
        <RunPicker runs={known} ids={ids} go={go} truncated={list?.truncated === true} />
        <main id="content" tabIndex={-1}>
          <nav aria-label={words.views}>
            {views
              .filter((name) => name !== "serving" || list?.server !== null)
              .map((name) => (
                <a
                  key={name}
                  href={`#/${name}`}
                  aria-current={name === view ? "page" : undefined}
                  onClick={(event) => {
                    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
                    event.preventDefault();
                    go({ view: name });
                  }}
                >
                  {words[name]}
                </a>
              ))}
          </nav>
          {view === "serving" ? (
            <Serving />
          ) : first === null ? (
            <Nothing ready={list !== null} />
          ) : (
            <RunViews ids={ids} summaries={known} place={{ ...place, view }} go={go} />
          )}
        </main>
      </div>
    </>
  );
}

function Nothing({ ready }: { readonly ready: boolean }): JSX.Element {
  const { words } = useSettings();
  return (
    <section class="card">
      {ready && (
        <>
          <p>{words.noRuns}</p>
          <p>
            <code>{words.noRunsHint}</code>
          </p>
        </>
      )}
    </section>
  );
}

function RunPicker({
  runs,
  ids,
  go,
  truncated,
}: {
  readonly runs: readonly RunSummary[];
  readonly ids: readonly string[];
  readonly go: Go;
  readonly truncated: boolean;
}): JSX.Element {
  const { words, dark } = useSettings();
  const live = useLive((state) => state.runs.size);
  const states = useLive((state) => [...state.runs].map(([id, run]) => `${id}:${run.index.lastStep}`).join());
  void live;
  void states;
  return (
    <aside aria-label={words.runs}>
      <h2>{words.runs}</h2>
      <ul>
        {runs.map((run) => {
          const index = ids.indexOf(run.id);
          return (
            <li key={run.id} data-chosen={index === 0 ? "" : undefined}>
              <button
                type="button"
                class="run"
                aria-current={index === 0 ? "true" : undefined}
                onClick={() => go({ runs: [run.id], step: null, range: null })}
              >
                <span class="name">{run.name === "." ? "(root)" : run.name}</span>
                <span class="state" data-state={run.state}>
                  {run.kind === "run" ? words[run.state] : ""}
                </span>
                <span class="facts">
                  {run.lastStep === null ? "" : `${whole(run.lastStep)}${run.numSteps === null ? "" : ` / ${whole(run.numSteps)}`}`}
                  {run.lastLoss === null ? "" : ` · ${compact(run.lastLoss, 4)}`}
                </span>
              </button>
              {run.kind === "run" && runs.length > 1 && (
                <label class="compare">
                  <input
                    type="checkbox"
                    checked={index >= 0}
                    disabled={index === 0}
                    aria-label={`${words.compare}: ${run.name}`}
                    onChange={(event) => {
                      const others = ids.filter((id) => id !== run.id);
                      go({ runs: event.currentTarget.checked ? [...others, run.id] : others });
                    }}
                  />
                  <svg width={18} height={6} aria-hidden="true">
                    {index >= 0 && (
                      <line x1={0} x2={18} y1={3} y2={3} stroke={lineColor(index, dark)} stroke-width={3} stroke-dasharray={dashes[0]} />
                    )}
                  </svg>
                </label>
              )}
            </li>
          );
        })}
      </ul>
      {truncated && <p class="note">{words.truncatedList}</p>}
    </aside>
  );
}

/** Details of up to eight runs; hooks must be as many every time. */
function useDetails(ids: readonly string[]): (RunDetail | null)[] {
  const versions = useLive((state) => ids.map((id) => `${state.runs.get(id)?.index.version ?? 0}/${state.listVersion}`).join());
  const at = versions.split(",");
  const slots = Array.from({ length: 8 }, (_, i) => ids[i] ?? null);
  return slots.map((id, i) => {
    // eslint-disable-next-line react-hooks/rules-of-hooks -- always eight
    const { data } = useAnswer<RunDetail>(id === null ? null : runUrl(id), at[i] ?? 0);
    return data?.id === id ? data : null;
  });
}

function RunViews({
  ids,
  summaries,
  place,
  go,
}: {
  readonly ids: readonly string[];
  readonly summaries: readonly RunSummary[];
  readonly place: Place;
  readonly go: Go;
}): JSX.Element {
  const { words } = useSettings();
  const details = useDetails(ids);
  const runs: OpenRun[] = details.flatMap((detail, color) =>
    detail === null ? [] : [{ detail, color, name: detail.name === "." ? "run" : detail.name, version: detail.index.version }],
  );
  const main = runs.find((run) => run.detail.id === ids[0]);
  if (main === undefined) return <section class="card" aria-busy="true" />;
  const props: ViewProps = { runs, main, place, go };
  const { index, forcedBalance, problems } = main.detail;
  const kind = summaries.find((run) => run.id === ids[0])?.kind;
  return (
    <>
      {!index.complete && (
        <p class="banner" role="status">
          {words.indexing} {((100 * index.bytes) / Math.max(1, index.totalBytes)).toFixed(0)}%{" "}
          <progress value={index.bytes} max={Math.max(1, index.totalBytes)} aria-label={words.indexing} />
        </p>
      )}
      {forcedBalance && <p class="banner warning">{words.forced}</p>}
      {problems.map((problem) => (
        <p key={problem} class="banner warning">
          {problem}
        </p>
      ))}
      {index.complete && index.numSteps === 0 && kind === "run" && <p class="banner">{words.emptyRun}</p>}
      <ViewOf {...props} />
    </>
  );
}

function ViewOf(props: ViewProps): JSX.Element {
  switch (props.place.view) {
    case "overview":
      return <Overview {...props} />;
    case "training":
      return <Training {...props} />;
    case "balance":
      return <Balance {...props} />;
    case "gates":
      return <Gates {...props} />;
    case "similarity":
      return <Similarity {...props} />;
    case "samples":
      return <Samples {...props} />;
    case "pipeline":
      return <Pipeline {...props} />;
    case "results":
      return <Results {...props} />;
    case "serving":
      return <Serving />;
    default:
      return props.place.view satisfies never;
  }
}
