/** Where the reader is, in the address: a link shows another the same. `#/<view>?run=a,b&step=100&layer=3`. */
import { useEffect, useState } from "preact/hooks";

export const views = ["overview", "training", "balance", "gates", "similarity", "samples", "pipeline", "results", "serving"] as const;
export type View = (typeof views)[number];

export interface Place {
  readonly view: View;
  /** The first is the one that views of a single run show. */
  readonly runs: readonly string[];
  /** Null: the newest. */
  readonly step: number | null;
  readonly layer: number | null;
  /** Steps that charts show; null: all. */
  readonly range: readonly [number, number] | null;
}

function parsed(hash: string): Place {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?");
  const given = new URLSearchParams(query);
  const number = (name: string): number | null => (/^\d{1,15}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
  const [from, to] = [number("from"), number("to")];
  return {
    view: views.find((view) => view === path) ?? "overview",
    runs: (given.get("run") ?? "").split(",").filter((id) => /^[0-9a-f]{12}$/.test(id)),
    step: number("step"),
    layer: number("layer"),
    range: from !== null && to !== null && from < to ? [from, to] : null,
  };
}

function written({ view, runs, step, layer, range }: Place): string {
  const query = [
    ...(runs.length > 0 ? [`run=${runs.join(",")}`] : []),
    ...(step === null ? [] : [`step=${step}`]),
    ...(layer === null ? [] : [`layer=${layer}`]),
    ...(range === null ? [] : [`from=${range[0]}`, `to=${range[1]}`]),
  ].join("&");
  return `#/${view}${query === "" ? "" : `?${query}`}`;
}

export type Go = (change: Partial<Place>, remember?: boolean) => void;

export function usePlace(): [Place, Go] {
  const [place, setPlace] = useState(() => parsed(location.hash));
  useEffect(() => {
    const onChange = (): void => {
      setPlace(parsed(location.hash));
    };
    addEventListener("hashchange", onChange);
    return () => {
      removeEventListener("hashchange", onChange);
    };
  }, []);
  const go: Go = (change, remember = true) => {
    setPlace((before) => {
      const next = { ...before, ...change };
      const url = written(next);
      if (remember) history.pushState(null, "", url);
      else history.replaceState(null, "", url);
      return next;
    });
  };
  return [place, go];
}
