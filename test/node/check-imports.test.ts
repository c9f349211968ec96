import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { checkImports } from "../../scripts/check-imports.ts";

/** The violations in a tree of these files, one `file:line: rule` each. */
function violations(files: Record<string, string>): string[] {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), "check-imports-"));
  try {
    for (const [file, text] of Object.entries(files)) {
      fs.mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
      fs.writeFileSync(path.join(root, file), text);
    }
    return checkImports(root).map(({ file, line, rule }) => `${file}:${line}: ${rule}`);
  } finally {
    fs.rmSync(root, { recursive: true });
  }
}

test("the project itself has no violation", () => {
  assert.deepEqual(checkImports(fileURLToPath(new URL("../..", import.meta.url))), []);
});

test("imports along the arrows are accepted", () => {
  const files = {
    "src/sys/sys.ts": 'import type { X } from "./error.ts";\n',
    "src/cdi/name.ts": 'import { quote } from "../sys/error.ts";\n',
    "src/oci/apply.ts": 'import { X } from "../cdi/name.ts";\nimport type { Y } from "../cdi/spec.ts";\n',
    "src/policy/grant.ts": 'import type { Request } from "../request/request.ts";\n',
    "src/plan/plan.ts": 'import {\n  A,\n  B,\n} from "../oci/apply.ts";\nimport { C } from "../share/mig.ts";\n',
    "src/shim/runtime.door.ts": 'import { sys } from "../sys/native.ts";\nimport { inject } from "../plan/plan.ts";\n',
    "src/cli/cli.ts": 'import { runtime } from "../shim/runtime.ts";\nimport { X } from "../sys/error.ts";\n',
    "src/nri/plugin.node.ts": 'import * as net from "node:net";\nimport { x } from "../ttrpc/client.ts";\n',
    "src/sys/node.ts": 'import * as fs from "node:fs";\n',
    "src/cdi/yaml.part.ts": 'import { load } from "js-yaml";\nexport function parseYaml() {}\nexport type X = 1;\n',
    "test/unit/x.test.ts": 'import { test } from "node:test";\nimport { f } from "../support/files.ts";\n',
    "test/support/files.ts": 'import type { Files } from "../../src/sys/sys.ts";\n',
    "test/engine/x.test.ts": 'import * as fs from "node:fs";\n',
  };
  assert.deepEqual(violations(files), []);
});

test("an import against the arrows is caught, also of a type only", () => {
  for (const [file, line] of [
    ["src/sys/a.ts", 'import { x } from "../cdi/b.ts";'],
    ["src/cdi/a.ts", 'import { x } from "../oci/b.ts";'],
    ["src/cdi/a.ts", 'import type { x } from "../plan/b.ts";'],
    ["src/oci/a.ts", 'export { x } from "../plan/b.ts";'],
    ["src/oci/a.ts", 'export * from "../plan/b.ts";'],
    ["src/request/a.ts", 'import { x } from "../policy/b.ts";'],
    ["src/plan/a.ts", 'import "../shim/b.ts";'],
    ["src/shim/a.ts", 'import { x } from "../hook/b.ts";'],
    ["src/hook/a.ts", 'import x, { y } from "../cli/b.ts";'],
    ["src/ttrpc/a.ts", 'import * as x from "../sys/b.ts";'],
    ["src/cdi/a.ts", 'const x: import("../oci/b.ts").X = 1;'],
  ] as const) {
    const from = file.split("/")[1];
    const to = /\.\.\/(\w+)\//.exec(line)?.[1];
    assert.deepEqual(violations({ [file]: `\n${line}\n` }), [`${file}:2: src/${from} may not import src/${to}`]);
  }
});

test("an import that spans lines is reported where it begins", () => {
  assert.deepEqual(violations({ "src/cdi/a.ts": '// one\nimport {\n  x,\n  type Y,\n} from "../oci/b.ts";\n' }), [
    "src/cdi/a.ts:2: src/cdi may not import src/oci",
  ]);
});

test("a module of Node's in pure code is caught", () => {
  assert.deepEqual(violations({ "src/cdi/a.ts": 'import * as fs from "node:fs";\n' }), [
    "src/cdi/a.ts:1: only src/sys/node.ts, src/daemon, src/kubelet and *.node.ts of src/nri and src/ttrpc import node:fs",
  ]);
});

test("a package outside a part is caught", () => {
  assert.deepEqual(violations({ "src/cdi/a.ts": 'import { load } from "js-yaml";\n' }), [
    "src/cdi/a.ts:1: the package js-yaml belongs into a *.part.ts, which loads only when it is needed",
  ]);
});

test("the global native outside src/sys/native.ts is caught", () => {
  const rule = "only src/sys/native.ts uses the global native";
  assert.deepEqual(violations({ "src/oci/a.ts": "\ndeclare const native: object;\n" }), [`src/oci/a.ts:2: ${rule}`]);
  assert.deepEqual(violations({ "src/oci/a.ts": "const n = (globalThis as X).native;\n" }), [
    `src/oci/a.ts:1: ${rule}`,
  ]);
  assert.deepEqual(violations({ "src/sys/native.ts": "declare const native: object;\n" }), []);
});

test("the implementations of Sys are imported only where a program begins", () => {
  assert.deepEqual(
    violations({
      "src/plan/a.ts": 'import { sys } from "../sys/native.ts";\nimport { sys as n } from "../sys/node.ts";\n',
    }),
    [
      "src/plan/a.ts:1: only a *.door.ts imports src/sys/native.ts: all else is given its Sys",
      "src/plan/a.ts:2: only what runs in Node imports src/sys/node.ts",
    ],
  );
});

test("an import of a door is caught", () => {
  assert.deepEqual(violations({ "src/cli/a.ts": 'import "../shim/runtime.door.ts";\n' }), [
    "src/cli/a.ts:1: src/shim/runtime.door.ts is an entry: nothing imports it",
  ]);
});

test("a part that exports anything but functions is caught", () => {
  const rule = "a *.part.ts exports functions only: they are called across bundles";
  for (const line of [
    "export const x = 1;",
    "export class X {}",
    "export default function () {}",
    "export async function f() {}",
    'export { x } from "./b.ts";',
    "export function* f() {}",
  ]) {
    assert.deepEqual(violations({ "src/cdi/a.part.ts": `${line}\n` }), [`src/cdi/a.part.ts:1: ${rule}`], line);
  }
});

test("a cycle of modules is caught once, a cycle of types is not", () => {
  const cycle = {
    "src/cdi/a.ts": 'import { b } from "./b.ts";\n',
    "src/cdi/b.ts": '\nimport { c } from "./c.ts";\n',
    "src/cdi/c.ts": '\n\nimport { type A } from "./a.ts";\n',
  };
  assert.deepEqual(violations(cycle), [
    "src/cdi/c.ts:3: import cycle: src/cdi/a.ts -> src/cdi/b.ts -> src/cdi/c.ts -> src/cdi/a.ts",
  ]);
  assert.deepEqual(violations({ ...cycle, "src/cdi/c.ts": 'import type { A } from "./a.ts";\n' }), []);
});

test("a file outside the rooms is caught", () => {
  const rule = "this folder is no room; the table of rooms is in scripts/check-imports.ts";
  assert.deepEqual(violations({ "src/a.ts": "", "src/utils/b.ts": "" }), [
    `src/a.ts:1: ${rule}`,
    `src/utils/b.ts:1: ${rule}`,
  ]);
  assert.deepEqual(violations({ "src/cdi/a.ts": 'import { x } from "../../test/support/b.ts";\n' }), [
    "src/cdi/a.ts:1: src/cdi imports test/support/b.ts, which is in no room of src",
  ]);
});

test("a unit test that needs Node is caught, also through what it loads", () => {
  assert.deepEqual(
    violations({
      "test/unit/a.test.ts": 'import { test } from "node:test";\nimport { x } from "../support/x.ts";\n',
      "test/support/x.ts": 'import * as fs from "node:fs";\n',
      "test/support/unused.ts": 'import * as fs from "node:fs";\n',
    }),
    ["test/support/x.ts:1: unit tests also run in the executable's engine, which has no node:fs"],
  );
});
