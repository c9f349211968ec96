import lines from "sluice:lines";

/** A stack trace of the executable, its places in the bundles replaced by those in the TypeScript sources. */
export function traceSource(stack: string): string {
  return stack.replace(/([\w-]+\.js):(\d+)(?::\d+)?/g, (place, script: string, line: string) => {
    const source = Object.hasOwn(lines, script) ? lines[script]?.[Number(line) - 1] : undefined;
    return source === undefined || source === "" ? place : source;
  });
}
