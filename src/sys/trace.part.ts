import places from "sluice:places";

/** A stack trace of the executable, its places in the bundles replaced by those in the TypeScript sources. */
export function traceSource(stack: string): string {
  return stack.replace(/([\w-]+\.js):(\d+):(\d+)/g, (place, script: string, line: string, column: string) => {
    return sourceOf(script, Number(line), Number(column)) ?? place;
  });
}

function sourceOf(script: string, line: number, column: number): string | undefined {
  const [files = "", ...rows] = (Object.hasOwn(places, script) ? places[script] : undefined)?.split("\n") ?? [];
  const pieces = (rows[line - 1] ?? "").split(" ").map((piece) => piece.split(":"));
  const [, file, sourceLine] = pieces.findLast((piece) => Number(piece[0]) <= column) ?? [];
  const source = file === undefined ? undefined : files.split("\t")[Number(file)];
  return source === undefined || sourceLine === "0" ? source : `${source}:${sourceLine}`;
}
