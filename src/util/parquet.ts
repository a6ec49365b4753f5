/** Opens Parquet files for reading, with what the reader leaves unchecked. */
import { type AsyncBuffer, asyncBufferFromFile, type FileMetaData, parquetMetadataAsync, type SchemaElement } from "hyparquet";

export interface ParquetFile {
  readonly file: AsyncBuffer;
  readonly metadata: FileMetaData;
}

/**
 * A Parquet file whose row groups have the columns of its schema, in its order. The reader starts all columns, one after the
 * other; if a name or a place of one is wrong, it throws and leaves the others' errors to nobody, which ends the program. So
 * names are checked before, and places give a rejected promise, which the reader waits for as for any other. Rejects with the system's or the
 * reader's error, or one that names the columns: callers say which file it was.
 */
export async function openParquet(path: string): Promise<ParquetFile> {
  const whole = await asyncBufferFromFile(path);
  const file = {
    byteLength: whole.byteLength,
    slice(start: number, end?: number): Promise<ArrayBuffer> {
      const bytes = Promise.try(() => whole.slice(start, end));
      bytes.catch(() => {}); // The reader prefetches ranges that a damaged footer then never asks for.
      return bytes;
    },
  };
  const metadata = await parquetMetadataAsync(file);
  const expected = JSON.stringify(leafPaths(metadata.schema));
  for (const [i, group] of metadata.row_groups.entries()) {
    const paths = JSON.stringify(group.columns.map((column) => column.meta_data?.path_in_schema));
    if (paths !== expected) throw new Error(`row group ${i} has columns ${paths}, the schema ${expected}`);
  }
  return { file, metadata };
}

/** Paths of the columns that hold values: the schema lists a tree, parents first, each with the number of its children. */
function leafPaths([root, ...elements]: readonly SchemaElement[]): readonly (readonly string[])[] {
  const leaves: string[][] = [];
  const open = [{ path: [] as string[], left: root?.num_children ?? 0 }];
  for (const { name, num_children: children = 0 } of elements) {
    while (open.at(-1)?.left === 0) open.pop();
    const parent = open.at(-1);
    if (parent === undefined) throw new Error("a schema with elements that no other one holds");
    parent.left--;
    const path = [...parent.path, name];
    if (children > 0) open.push({ path, left: children });
    else leaves.push(path);
  }
  return leaves;
}
