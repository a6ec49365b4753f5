/** The generated pages that are committed: where each lies and what it says now. */
import { commandsPage } from "./commands.ts";
import { configurationPage } from "./configuration.ts";

export interface GeneratedPage {
  /** From the root of the repository. */
  readonly path: string;
  readonly url: URL;
  readonly text: string;
}

export async function generatedPages(): Promise<GeneratedPage[]> {
  const page = (path: string, text: string): GeneratedPage => ({ path, url: new URL(`../../${path}`, import.meta.url), text });
  return [page("docs/reference/configuration.md", configurationPage()), page("docs/reference/commands.md", await commandsPage())];
}
