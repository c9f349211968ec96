/**
 * Holds the import rule of DESIGN.md section 4 and what the build relies on. Prints each violation as
 * `file:line: rule` and exits 1. `node --import tsx scripts/check-imports.ts [ROOT]`
 *
 * The text of each file is searched for import and export statements that begin a line, which is where Biome puts
 * them; the compiler proves that what they name exists.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";

const BASE = ["sys"];
const STANDARDS = ["cdi", "oci", ...BASE];
const PLAN = ["plan", "request", "policy", "share", "vm", "host", ...STANDARDS];

/** Which rooms a room of src/ may import, beside itself. A room that is not here does not exist yet: add it. */
const ROOMS: Readonly<Record<string, readonly string[]>> = {
  sys: [],
  ttrpc: [], // written to be published on its own
  cdi: BASE,
  oci: ["cdi", ...BASE],
  request: STANDARDS,
  policy: ["request", ...STANDARDS], // a grant answers a request
  host: STANDARDS,
  share: ["host", ...STANDARDS],
  vm: ["host", ...STANDARDS],
  plan: PLAN.slice(1),
  hook: PLAN,
  shim: PLAN,
  nri: ["ttrpc", ...PLAN],
  kubelet: PLAN,
  daemon: ["nri", "kubelet", "ttrpc", ...PLAN], // sluiced: puts them together
  cli: ["hook", "shim", ...PLAN], // dispatches to them
};

/**
 * What runs in Node only: the daemon, the kubelet's gRPC, and the thin transports, `*.node.ts`. All else is pure: it also
 * runs in the native executable's engine.
 */
const MAY_USE_NODE = /^src\/(?:sys\/node\.ts$|(?:kubelet|daemon)\/|(?:ttrpc|nri)\/[^/]+\.node\.ts$)/;

/** Protocols whose messages are protobuf, which is a package without any Node in it. */
const MAY_USE_PROTOBUF = /^src\/(?:ttrpc|nri)\//;

/** What a test that also runs in the native executable's engine finds there. */
const UNIT_TEST_MODULES = ["node:test", "node:assert/strict"];

export interface Violation {
  /** Relative to the root. */
  readonly file: string;
  /** From 1. */
  readonly line: number;
  readonly rule: string;
}

interface Import {
  readonly specifier: string;
  readonly line: number;
  /** Erased by the compiler. An `import { type X }` is not: it still loads the module. */
  readonly typeOnly: boolean;
}

const STATEMENTS = [
  // import x, { y } from "z"; import * as x from "z"; import "z"
  /^import\s+(type\s)?(?:\s*[\w$*{][^"';]*?\sfrom\s*)?"([^"]+)"/gm,
  // export * from "z"; export { x } from "z"
  /^export\s+(type\s)?\s*(?:\*[^"';]*?|\{[^}]*\})\s*from\s*"([^"]+)"/gm,
  // import("z"), as a call or in a type
  /\b(typeof\s+)?import\(\s*"([^"]+)"\s*\)/g,
];

function lineOf(text: string, index: number): number {
  return text.slice(0, index).split("\n").length;
}

function importsOf(text: string): Import[] {
  return STATEMENTS.flatMap((statement) =>
    [...text.matchAll(statement)].map((match) => ({
      specifier: match[2] as string,
      line: lineOf(text, match.index),
      typeOnly: match[1] !== undefined,
    })),
  );
}

/** TypeScript files under a folder of the root, relative to the root, with `/`. */
function filesIn(root: string, folder: string): string[] {
  const from = path.join(root, folder);
  if (!fs.existsSync(from)) return [];
  return fs
    .readdirSync(from, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts"))
    .map((name) => `${folder}/${name.split(path.sep).join("/")}`)
    .sort();
}

/** `src/<room>/...` gives the room; a file directly in src/ has none. */
function roomOf(file: string): string | undefined {
  return /^src\/([^/]+)\//.exec(file)?.[1];
}

function resolve(file: string, specifier: string): string {
  return path.posix.normalize(path.posix.join(path.posix.dirname(file), specifier));
}

/** The rules on one import of a file in src/. */
function ruleOfSource(file: string, { specifier, typeOnly }: Import): string | undefined {
  const room = roomOf(file) as string;
  if (specifier.startsWith("node:")) {
    return MAY_USE_NODE.test(file)
      ? undefined
      : `only src/sys/node.ts, src/daemon, src/kubelet and *.node.ts of src/nri and src/ttrpc import ${specifier}`;
  }
  if (!specifier.startsWith(".")) {
    // "sluice:..." is made by the build.
    if (MAY_USE_PROTOBUF.test(file) && /^@bufbuild\/protobuf(?:\/|$)/.test(specifier)) return undefined;
    const allowed = typeOnly || specifier.startsWith("sluice:") || MAY_USE_NODE.test(file) || /\.part\.ts$/.test(file);
    return allowed
      ? undefined
      : `the package ${specifier} belongs into a *.part.ts, which loads only when it is needed`;
  }
  const target = resolve(file, specifier);
  const targetRoom = roomOf(target);
  if (targetRoom === undefined) return `src/${room} imports ${target}, which is in no room of src`;
  if (targetRoom !== room && !(ROOMS[room] ?? []).includes(targetRoom)) {
    return `src/${room} may not import src/${targetRoom}`;
  }
  if (target.endsWith(".door.ts")) return `${target} is an entry: nothing imports it`;
  if (target === "src/sys/native.ts" && !file.endsWith(".door.ts") && !typeOnly) {
    return `only a *.door.ts imports ${target}: all else is given its Sys`;
  }
  const isTransport = target === "src/sys/node.ts" || target.endsWith(".node.ts");
  if (isTransport && !typeOnly && !MAY_USE_NODE.test(file)) return `only what runs in Node imports ${target}`;
  return undefined;
}

/** The rules on a file's own text. */
function* rulesOfText(file: string, text: string): Generator<Omit<Violation, "file">> {
  if (file !== "src/sys/native.ts") {
    for (const match of text.matchAll(/\bdeclare\s+\w+\s+native\b|\bglobalThis\b[^\n]*\bnative\b/g)) {
      yield { line: lineOf(text, match.index), rule: "only src/sys/native.ts uses the global native" };
    }
  }
  if (file.endsWith(".part.ts")) {
    for (const match of text.matchAll(/^export\s+(?!function\s+\w|(?:declare\s+)?(?:type|interface)\s)/gm)) {
      yield {
        line: lineOf(text, match.index),
        rule: "a *.part.ts exports functions only: they are called across bundles",
      };
    }
  }
}

type Graph = ReadonlyMap<string, readonly Import[]>;

/** One violation for each import that closes a cycle. Types may be cyclic; modules may not. */
function* runtimeCycles(graph: Graph): Generator<Violation> {
  const done = new Set<string>();
  const way: string[] = [];
  function* visit(file: string): Generator<Violation> {
    way.push(file);
    for (const { specifier, line, typeOnly } of graph.get(file) ?? []) {
      if (typeOnly || !specifier.startsWith(".")) continue;
      const target = resolve(file, specifier);
      const start = way.indexOf(target);
      if (start >= 0) yield { file, line, rule: `import cycle: ${[...way.slice(start), target].join(" -> ")}` };
      else if (!done.has(target) && graph.has(target)) yield* visit(target);
    }
    way.pop();
    done.add(file);
  }
  for (const file of graph.keys()) if (!done.has(file)) yield* visit(file);
}

/** Node's modules in unit tests, or in what these load, but for the two that the engine's test runner has. */
function* unitTestModules(graph: Graph): Generator<Violation> {
  const seen = new Set<string>([...graph.keys()].filter((file) => file.startsWith("test/unit/")));
  // A set's iterator also visits what is added on the way.
  for (const file of seen) {
    for (const { specifier, line, typeOnly } of graph.get(file) ?? []) {
      if (typeOnly) continue;
      if (specifier.startsWith(".")) seen.add(resolve(file, specifier));
      else if (!file.startsWith("src/") && !UNIT_TEST_MODULES.includes(specifier)) {
        yield { file, line, rule: `unit tests also run in the executable's engine, which has no ${specifier}` };
      }
    }
  }
}

/** All violations in a tree with the project's layout, by file and line. */
export function checkImports(root: string): Violation[] {
  const texts = new Map(
    ["src", "test"].flatMap((folder) =>
      filesIn(root, folder).map((file) => [file, fs.readFileSync(path.join(root, file), "utf8")] as const),
    ),
  );
  const graph: Graph = new Map([...texts].map(([file, text]) => [file, importsOf(text)]));
  const found: Violation[] = [...runtimeCycles(graph), ...unitTestModules(graph)];
  for (const [file, text] of texts) {
    if (!file.startsWith("src/")) continue;
    for (const violation of rulesOfText(file, text)) found.push({ file, ...violation });
    if (!Object.hasOwn(ROOMS, roomOf(file) ?? "")) {
      found.push({ file, line: 1, rule: "this folder is no room; the table of rooms is in scripts/check-imports.ts" });
      continue;
    }
    for (const statement of graph.get(file) ?? []) {
      const rule = ruleOfSource(file, statement);
      if (rule !== undefined) found.push({ file, line: statement.line, rule });
    }
  }
  return found.sort((a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : a.line - b.line));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = process.argv[2] ?? path.join(path.dirname(fileURLToPath(import.meta.url)), "..");
  const violations = checkImports(root);
  for (const { file, line, rule } of violations) console.error(`${file}:${line}: ${rule}`);
  if (violations.length > 0) process.exitCode = 1;
}
