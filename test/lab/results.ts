/**
 * What the tests of the engines saw, for the tables of docs/engines.md (table.ts): one JSON line each in build/engines/.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { ROOT } from "../support/simulated-host.ts";

export const RESULTS = path.join(ROOT, "build/engines");

export interface Entry {
  engine: string;
  /** Of the engine, with what else tells it from others: "28", "5 rootless", "2.1, ctr". */
  version: string;
  /** How the container asks, or what is done to it. */
  way: string;
  /** The words of `LEGEND`, or others. */
  result: string;
}

/** What the words in the tables mean; a test records one after it has seen all of it. */
export const LEGEND = {
  given:
    "the node opens in the container, the other GPU's does not, and config.json has the planned edits and no others",
  unchanged: "config.json reaches the low-level runtime byte for byte as the engine made it",
  refused: "the container does not start, and the engine shows Sluice's error",
  kept: "the container has its GPU afterwards, and the other GPU still does not open",
  released: "no receipt is left",
  works:
    "the container has the device's nodes, by their numbers, and no others; it may open them, and not another's; the driver's libraries load by name",
} as const;

const begun = new Set<string>();

/** Notes a result. Call it after the assertions. A new run's results take the place of the former's. */
export function record(engine: string, version: string, way: string, result: string): void {
  const name = `${engine}-${version}`.toLowerCase().replace(/[^a-z0-9.]+/g, "-");
  const file = path.join(RESULTS, `${name}.jsonl`);
  const entry: Entry = { engine, version, way, result };
  fs.mkdirSync(RESULTS, { recursive: true });
  fs.writeFileSync(file, `${JSON.stringify(entry)}\n`, { flag: begun.has(name) ? "a" : "w" });
  begun.add(name);
}
