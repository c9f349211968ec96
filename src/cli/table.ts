/** Text from a file, fit for a terminal: control characters become `?`. */
export function plain(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: what a file says must not drive the reader's terminal
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "?");
}

/** Rows as aligned columns under a heading; the last column is not padded. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [heading, ...rows].map((row) => row.map(plain));
  const widths = heading.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  return all
    .map((row) => row.map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0))).join("  "))
    .map((line) => `${line}\n`)
    .join("");
}
