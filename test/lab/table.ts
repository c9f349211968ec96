/**
 * Writes the tables of docs/engines.md from what the tests of the engines saw (results.ts).
 *
 *   node --import tsx test/lab/table.ts [--check]
 *
 * With --check it writes nothing and fails where the document contradicts the tests. Engines that the tests did not run,
 * or of which they found another version than the document has, contradict nothing.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { ROOT } from "../support/simulated-host.ts";
import { type Entry, LEGEND, RESULTS } from "./results.ts";

const DOCUMENT = path.join(ROOT, "docs/engines.md");

function readEntries(): Entry[] {
  if (!fs.existsSync(RESULTS)) return [];
  const files = fs.readdirSync(RESULTS).filter((name) => name.endsWith(".jsonl"));
  return files
    .sort()
    .flatMap((name) => fs.readFileSync(path.join(RESULTS, name), "utf8").trim().split("\n"))
    .map((line) => JSON.parse(line) as Entry);
}

/** A row for each way, a column for each version; a dash where a version was not asked that way. */
function table(entries: readonly Entry[]): string {
  const versions = [...new Set(entries.map((entry) => entry.version))].sort((a, b) =>
    b.localeCompare(a, "en", { numeric: true }),
  );
  const ways = [...new Set(entries.map((entry) => entry.way))];
  const cell = (way: string, version: string): string => {
    const found = entries.filter((entry) => entry.way === way && entry.version === version);
    return found.length === 0 ? "-" : [...new Set(found.map((entry) => entry.result))].join(", ");
  };
  return [
    `| | ${versions.join(" | ")} |`,
    `|---|${versions.map(() => "---|").join("")}`,
    ...ways.map((way) => `| ${way.replaceAll("|", "\\|")} | ${versions.map((v) => cell(way, v)).join(" | ")} |`),
  ].join("\n");
}

function legend(): string {
  return [
    "| word | what was seen |",
    "|---|---|",
    ...Object.entries(LEGEND).map(([word, what]) => `| ${word} | ${what} |`),
  ].join("\n");
}

function markers(name: string): [begin: string, end: string] {
  return [`<!-- ${name}: made by \`make engines-table\` -->`, `<!-- end of ${name} -->`];
}

/** Puts a table between its markers. @throws Error where the document has none of that name */
function place(text: string, name: string, rendered: string): string {
  const [begin, end] = markers(name);
  const [from, to] = [text.indexOf(begin), text.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${DOCUMENT} lacks the lines "${begin}" and "${end}"`);
  return `${text.slice(0, from + begin.length)}\n\n${rendered}\n\n${text.slice(to)}`;
}

/** What a table in the document says, in the same form. */
function readTable(text: string, engine: string): Entry[] {
  const [begin, end] = markers(engine);
  const lines = text
    .slice(text.indexOf(begin), text.indexOf(end))
    .split("\n")
    .filter((line) => line.startsWith("|"));
  const [head = [], , ...rows] = lines.map((line) =>
    line
      .split(/(?<!\\)\|/)
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
  return rows.flatMap(([way = "", ...results]) =>
    results.map((result, i) => ({ engine, version: head[i + 1] ?? "", way: way.replaceAll("\\|", "|"), result })),
  );
}

/** Where a table of the document says something else of a version that it has. */
function contradictions(text: string, engine: string, seen: readonly Entry[]): string[] {
  const said = readTable(text, engine);
  const saidVersions = new Set(said.map((entry) => entry.version));
  const rendered = `${markers(engine)[0]}\n${table(seen)}\n${markers(engine)[1]}`;
  return readTable(rendered, engine).flatMap(({ version, way, result }) => {
    if (!saidVersions.has(version)) return [];
    const other = said.find((entry) => entry.version === version && entry.way === way)?.result;
    return other === result
      ? []
      : [`${engine} ${version}, ${way}: the tests saw "${result}", it says "${other ?? ""}"`];
  });
}

const entries = readEntries();
const text = fs.readFileSync(DOCUMENT, "utf8");
const engines = [...new Set(entries.map((entry) => entry.engine))];
const of = (engine: string): Entry[] => entries.filter((entry) => entry.engine === engine);
if (process.argv.includes("--check")) {
  const wrong = engines.flatMap((engine) => contradictions(text, engine, of(engine)));
  if (wrong.length > 0) {
    process.stderr.write(`docs/engines.md contradicts the tests; run \`make engines-table\`:\n${wrong.join("\n")}\n`);
    process.exit(1);
  }
} else {
  const filled = engines.reduce(
    (filling, engine) => place(filling, engine, table(of(engine))),
    place(text, "legend", legend()),
  );
  fs.writeFileSync(DOCUMENT, filled);
}
