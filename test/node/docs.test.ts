import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { parseConfig } from "../../src/policy/config.part.ts";
import { DEFAULTS } from "../../src/policy/config.ts";
import { VERSION } from "../../src/sys/version.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Folders that hold no files of ours. */
const SKIPPED = new Set([".git", "build", "node_modules"]);

/** Files below a folder whose names have one of the endings, relative to the root. */
function filesIn(folder: string, ...endings: string[]): string[] {
  return fs.readdirSync(path.join(ROOT, folder), { withFileTypes: true }).flatMap((entry) => {
    const file = path.posix.join(folder, entry.name);
    if (entry.isDirectory()) return SKIPPED.has(entry.name) ? [] : filesIn(file, ...endings);
    return endings.some((ending) => entry.name.endsWith(ending)) ? [file] : [];
  });
}

function read(file: string): string {
  return fs.readFileSync(path.join(ROOT, file), "utf8");
}

/** The first column of a document's tables, as far as it is code. */
function firstColumn(file: string): string[] {
  return [...read(file).matchAll(/^\| `([^`]+)` \|/gm)].map((match) => match[1] as string);
}

const DOCUMENTS = filesIn(".", ".md");

test("every error code of the source is in docs/errors.md once, and there is no other", () => {
  const inSource = new Set<string>();
  for (const file of [...filesIn("src", ".ts"), ...filesIn("native", ".c")]) {
    const code = read(file).replace(/^\s*(?:\/\*|\*|\/\/).*$/gm, "");
    for (const match of code.matchAll(/["`](?:sluice: )?(E_[A-Z0-9_]+)["`:;]/g)) inSource.add(match[1] as string);
  }
  assert.ok(inSource.size > 40, "the codes are found");
  assert.deepEqual(
    firstColumn("docs/errors.md")
      .filter((name) => name.startsWith("E_"))
      .sort(),
    [...inSource].sort(),
  );
});

test("no document names an error code that does not exist", () => {
  const known = new Set([...firstColumn("docs/errors.md"), "E_CODE"]);
  for (const file of DOCUMENTS) {
    for (const [code] of read(file).matchAll(/\bE_[A-Z0-9_]+\b/g)) assert.ok(known.has(code), `${file}: ${code}`);
  }
});

test("the version is that of package.json", () => {
  assert.equal(VERSION, JSON.parse(read("package.json")).version);
});

/** How GitHub makes the anchor of a heading. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
}

test("every relative link in a document leads to a file, and to a heading of it", () => {
  const links = DOCUMENTS.flatMap((file) =>
    [...read(file).matchAll(/\]\((?!\w+:)([^)\s]+)\)/g)].map((match) => [file, match[1] as string] as const),
  );
  assert.ok(links.length > 5, "the links are found");
  for (const [file, link] of links) {
    const [to = "", anchor] = link.split("#");
    const target = to === "" ? file : path.posix.join(path.posix.dirname(file), to);
    assert.ok(fs.existsSync(path.join(ROOT, target)), `${file}: ${link} leads nowhere`);
    if (anchor === undefined) continue;
    const anchors = [...read(target).matchAll(/^#+ (.*)$/gm)].map((match) => anchorOf(match[1] as string));
    assert.ok(anchors.includes(anchor), `${file}: ${target} has no heading for #${anchor}`);
  }
});

test("every file of the project that a document names is there", () => {
  const named = DOCUMENTS.flatMap((file) =>
    [...read(file).matchAll(/`((?:src|native|schemas|scripts|test|docs)\/[\w./-]+)`/g)].map(
      (match) => [file, match[1] as string] as const,
    ),
  );
  assert.ok(named.length > 20, "the names are found");
  for (const [file, name] of named) assert.ok(fs.existsSync(path.join(ROOT, name)), `${file}: ${name} is not there`);
});

interface Schema {
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly default?: unknown;
}

/** Of each setting its default, by `table.key`. */
function settingsOf(schema: Schema, prefix = ""): [string, unknown][] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, inner]): [string, unknown][] =>
    inner.properties === undefined ? [[prefix + name, inner.default]] : settingsOf(inner, `${prefix}${name}.`),
  );
}

test("docs/configuration.md has every setting of the schema, with its default, and no other", () => {
  const documented = [...read("docs/configuration.md").matchAll(/^\| `(\w+\.\w+)` \| `([^`]*)` \|/gm)];
  assert.deepEqual(
    documented.map((match) => [match[1], JSON.parse(match[2] as string)]),
    settingsOf(JSON.parse(read("schemas/config.json"))),
  );
});

test("the settings file that docs/configuration.md shows is one, with every default", () => {
  const shown = /```toml\n([\s\S]*?)```/.exec(read("docs/configuration.md"))?.[1] ?? "";
  const { runtime, cdi, policy, share, daemon } = DEFAULTS;
  const { trustedNamespaces, ...rest } = policy;
  // Through JSON, since the parser's objects have no prototype.
  assert.deepEqual(JSON.parse(JSON.stringify(parseConfig(shown))), {
    runtime: { runtimes: runtime.runtimes },
    cdi: { spec_dirs: cdi.specDirs, default_kind: cdi.defaultKind },
    policy: { ...rest, trusted_namespaces: trustedNamespaces },
    share: { default_mode: share.defaultMode },
    daemon: {
      nri: daemon.nri,
      nri_socket: daemon.nriSocket,
      nri_index: daemon.nriIndex,
      kubelet_socket: daemon.kubeletSocket,
      evidence_deadline: daemon.evidenceDeadline,
      metrics_address: daemon.metricsAddress,
      log_level: daemon.logLevel,
    },
  });
});
