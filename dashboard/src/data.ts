/** What the page knows from its server: answers by address, asked for again when their run has something new; and one stream of events. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { Events, IndexState, RunList, RunSummary, ServerAnswer } from "../../src/dashboard/api.ts";

export interface LiveState {
  readonly state: RunSummary["state"];
  readonly index: IndexState;
}
type Listener = () => void;

/** The newest of what the events told. One for the page. */
class Live {
  readonly runs = new Map<string, LiveState>();
  /** Changes when the list of runs does. */
  listVersion = 0;
  server: ServerAnswer | null = null;
  connected = false;
  readonly #listeners = new Set<Listener>();

  connect(): void {
    const source = new EventSource("api/events");
    source.addEventListener("open", () => {
      this.connected = true;
      // What happened meanwhile was not heard.
      this.listVersion++;
      this.#tell();
    });
    source.addEventListener("error", () => {
      this.connected = false;
      this.#tell();
    });
    const on = <K extends keyof Events>(name: K, handle: (data: Events[K]) => void): void => {
      source.addEventListener(name, (event) => {
        handle(JSON.parse((event as MessageEvent<string>).data) as Events[K]);
        this.#tell();
      });
    };
    on("runs", () => {
      this.listVersion++;
    });
    on("run", ({ id, state, index }) => {
      if (this.runs.get(id)?.state !== state) this.listVersion++;
      this.runs.set(id, { state, index });
    });
    on("server", (answer) => {
      const before = this.server?.readings ?? [];
      const last = before.at(-1)?.time ?? 0;
      this.server = { ...answer, readings: [...before, ...answer.readings.filter(({ time }) => time > last)].slice(-600) };
    });
  }
  subscribe(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }
  #tell(): void {
    for (const listener of this.#listeners) listener();
  }
}
export const live = new Live();

/** Renders again when `pick` of the live state changes. */
export function useLive<T>(pick: (state: Live) => T): T {
  const [value, setValue] = useState(() => pick(live));
  const current = useRef(pick);
  current.current = pick;
  useEffect(
    () =>
      live.subscribe(() => {
        setValue(() => current.current(live));
      }),
    [],
  );
  return value;
}

export interface Answer<T> {
  readonly data: T | null;
  readonly error: string | null;
  readonly loading: boolean;
}

/**
 * The answer at an address, asked for again when `version` changes. While one is on its way the last one stays; a newer address makes an
 * older answer void. With the same address, a version that comes while one is asked for waits for it.
 */
export function useAnswer<T>(url: string | null, version: number | string = 0): Answer<T> {
  const [answer, setAnswer] = useState<Answer<T> & { url: string | null }>({ data: null, error: null, loading: url !== null, url: null });
  const asking = useRef<{ url: string; controller: AbortController; again: boolean } | null>(null);
  useEffect(() => {
    if (url === null) return;
    const ask = (): void => {
      const controller = new AbortController();
      const mine = { url, controller, again: false };
      asking.current = mine;
      const done = (next: Answer<T>): void => {
        if (asking.current !== mine) return;
        asking.current = null;
        setAnswer({ ...next, url });
        if (mine.again) ask();
      };
      fetch(url, { signal: controller.signal })
        .then(async (response) => {
          const body = (await response.json()) as T & { error?: string };
          if (!response.ok) throw new Error(body.error ?? `status ${response.status}`);
          done({ data: body, error: null, loading: false });
        })
        .catch((error: unknown) => {
          if (!controller.signal.aborted)
            done({ data: null, error: error instanceof Error ? error.message : String(error), loading: false });
        });
    };
    if (asking.current?.url === url) asking.current.again = true;
    else {
      asking.current?.controller.abort();
      ask();
    }
  }, [url, version]);
  useEffect(
    () => () => {
      asking.current?.controller.abort();
      asking.current = null;
    },
    [],
  );
  return url === null ? { data: null, error: null, loading: false } : answer;
}

/** Answers at several addresses at once, by their key. */
export function useAnswers<T>(urls: Readonly<Record<string, string>>, version: number | string): Readonly<Record<string, T>> {
  const [answers, setAnswers] = useState<Record<string, T>>({});
  const key = JSON.stringify(urls);
  const asking = useRef<{ key: string; again: boolean } | null>(null);
  useEffect(() => {
    if (asking.current?.key === key) {
      asking.current.again = true;
      return;
    }
    const mine = { key, again: false };
    asking.current = mine;
    const ask = async (): Promise<void> => {
      do {
        mine.again = false;
        const pairs = await Promise.all(Object.entries(urls).map(([name, url]) => answered<T>(name, url)));
        if (asking.current !== mine) return;
        setAnswers(Object.fromEntries(pairs.filter((pair) => pair !== null)));
      } while (mine.again);
      asking.current = null;
    };
    void ask();
  }, [key, version]);
  useEffect(
    () => () => {
      asking.current = null;
    },
    [],
  );
  return answers;
}

async function answered<T>(name: string, url: string): Promise<readonly [string, T] | null> {
  try {
    const response = await fetch(url);
    return response.ok ? [name, (await response.json()) as T] : null;
  } catch {
    return null;
  }
}

export function useRunList(): RunList | null {
  const version = useLive((state) => state.listVersion);
  return useAnswer<RunList>("api/runs", version).data;
}

export function runUrl(id: string, path = "", query: Readonly<Record<string, string | number | null | undefined>> = {}): string {
  const given = Object.entries(query).flatMap(([key, value]) =>
    value === null || value === undefined ? [] : [[key, String(value)] as const],
  );
  const text = new URLSearchParams(given.map(([key, value]) => [key, value])).toString();
  return `api/runs/${id}${path}${text === "" ? "" : `?${text}`}`;
}
