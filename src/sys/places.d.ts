/**
 * Made by scripts/build.ts: for each script of the executable, the TypeScript place of each piece of its text.
 *
 * A first line with the source files, separated by tabs. Then for each line of the script, separated by spaces, what
 * begins at a column: `<column>:<number of the file>:<line in it>`, the line 0 where it has none.
 */
declare module "sluice:places" {
  const places: Record<string, string>;
  export default places;
}
