/** Command that renews the generated pages. */
export const renew = "node scripts/docs/write.ts";

/** The first sentence of a generated page. */
export function generatedNote(source: string): string {
  return `This page is generated from ${source} by \`${renew}\`; \`test/docs/reference.test.ts\` fails where it is out of date.`;
}
