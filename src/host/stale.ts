import type { Files } from "../sys/sys.ts";
import { readOrigin } from "./origin.ts";

/** The names of Sluice's own specs, which alone have an origin. */
const OWN = /\/sluice-[^/]*\.json$/;

/** Those of Sluice's own among spec files that were made from facts that are no longer so. */
export function staleSpecs(files: Files, paths: readonly string[]): string[] {
  return paths.filter((path) => OWN.test(path) && readOrigin(files, path)?.isStale(files) === true);
}
