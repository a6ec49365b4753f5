/**
 * A plugin of typedoc: comments that begin with a shape, `[T, H]: hidden states`, look like a link's definition to Markdown, which would swallow
 * them. The bracket is escaped.
 */
import { Converter } from "typedoc";

/** @param {import("typedoc").Application} application */
export function load(application) {
  application.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    for (const { comment } of Object.values(project.reflections)) {
      const first = comment?.summary[0];
      if (first?.kind === "text") first.text = first.text.replace(/^(\s*)\[(?=[^\]]*\]:)/, "$1\\[");
    }
  });
}
