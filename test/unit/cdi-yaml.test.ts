import assert from "node:assert/strict";
import { test } from "node:test";
import { checkSpec } from "../../src/cdi/validate.part.ts";
import { parseYaml } from "../../src/cdi/yaml.part.ts";
import { random } from "../support/random.ts";

function value(text: string): unknown {
  const result = parseYaml(text);
  if ("fault" in result) throw new Error(`${result.fault.line}:${result.fault.column} ${result.fault.what}`);
  return result.value;
}

function refused(text: string, line: number, column: number, what: RegExp): void {
  const result = parseYaml(text);
  assert.ok("fault" in result, `taken: ${text.slice(0, 60)}`);
  assert.match(result.fault.what, what, text.slice(0, 60));
  assert.deepEqual([result.fault.line, result.fault.column], [line, column], text.slice(0, 60));
}

const SPEC = `---
cdiVersion: 0.6.0
kind: vendor.com/gpu
devices:
    - name: 0
      containerEdits: {deviceNodes: [{path: /dev/a, fileMode: 0666, major: 0xc3, minor: 1_0}]}
    - name: 0:1
      containerEdits:
        env:
        - A=b
        - "B=c # no comment"
        hooks:
          - {hookName: createContainer, path: /bin/h, args: [h, --x, "a::b", 5, true, ~]}
annotations:
    version: 1.10
    on-call: yes
containerEdits:
`;

test("a spec in YAML is read by the types of its fields", () => {
  assert.deepEqual(value(SPEC), {
    cdiVersion: "0.6.0",
    kind: "vendor.com/gpu",
    devices: [
      { name: "0", containerEdits: { deviceNodes: [{ path: "/dev/a", fileMode: 438, major: 195, minor: 10 }] } },
      {
        name: "0:1",
        containerEdits: {
          env: ["A=b", "B=c # no comment"],
          hooks: [{ hookName: "createContainer", path: "/bin/h", args: ["h", "--x", "a::b", "5", "true", null] }],
        },
      },
    ],
    annotations: { version: "1.10", "on-call": "yes" },
    containerEdits: null,
  });
});

test("numbers have the forms of YAML 1.1 and of 1.2", () => {
  const table: [string, unknown][] = [
    ["0666", 438],
    ["0o666", 438],
    ["438", 438],
    ["0x1B6", 438],
    ["0b11", 3],
    ["-1", -1],
    ["+1", 1],
    ["0", 0],
    ["1_000", 1000],
    ["089", "089"],
    ["1.5", "1.5"],
    ["1e3", "1e3"],
    ["'438'", "438"],
    ["!!int 5", 5],
    ["!!str 5", "5"],
    ["! 5", "5"],
    ["~", null],
    ["null", null],
    ["", null],
    ["abc", "abc"],
  ];
  for (const [text, expected] of table) {
    for (const field of ["fileMode", "major", "TIMEOUT", "uid"])
      assert.deepEqual(value(`${field}: ${text}`), { [field]: expected }, text);
  }
  assert.deepEqual(value("additionalGids: [044, 7]"), { additionalGids: [36, 7] });
  assert.deepEqual(value("- {gid: 7}"), [{ gid: 7 }]);
});

test("flags have the words of YAML 1.1", () => {
  for (const word of ["y", "Yes", "TRUE", "true", "on"])
    assert.deepEqual(value(`enableMonitoring: ${word}`), { enableMonitoring: true });
  for (const word of ["n", "No", "FALSE", "false", "off"])
    assert.deepEqual(value(`enableCMT: ${word}`), { enableCMT: false });
  assert.deepEqual(value("enableMBM: tRUE"), { enableMBM: "tRUE" });
  assert.deepEqual(value("enableMBM: 'true'"), { enableMBM: "true" });
});

test("texts stay as they are written", () => {
  for (const text of ["0", "0:1", "007", "1.10", "yes", "off", "0x10", "2024-01-01", "1e3", ".inf"]) {
    assert.deepEqual(value(`name: ${text}`), { name: text });
    assert.deepEqual(value(`annotations: {major: ${text}}`), { annotations: { major: text } });
    assert.deepEqual(value(`env: [${text}]`), { env: [text] });
  }
  assert.deepEqual(value("name: |\n  a\n  b\n"), { name: "a\nb\n" });
  assert.deepEqual(value("name: >-\n  a\n  b\n"), { name: "a b" });
  assert.deepEqual(value('name: "\\u00e9\\t"'), { name: "\u00e9\t" });
});

test("aliases and merge keys work, and a value takes the type of the field that it is used in", () => {
  assert.deepEqual(value("major: &n 0666\nname: *n"), { major: 438, name: "0666" });
  assert.deepEqual(value("a: &e {path: /x, major: 1}\nb: {<<: *e, major: 2}\nc: {major: 3, <<: *e}"), {
    a: { path: "/x", major: 1 },
    b: { path: "/x", major: 2 },
    c: { path: "/x", major: 3 },
  });
  assert.deepEqual(value("a: &a {x: p}\nb: &b {x: q, z: r}\nc: {<<: [*a, *b]}"), {
    a: { x: "p" },
    b: { x: "q", z: "r" },
    c: { x: "p", z: "r" },
  });
  assert.deepEqual(value("a: &x [p]\nb: &x [q]\nc: *x"), { a: ["p"], b: ["q"], c: ["q"] });
});

test("what a spec cannot be is refused with line and column", () => {
  refused("", 1, 1, /the file is empty/);
  refused("# nothing\n---\n", 1, 1, /the file is empty/);
  refused("~", 1, 1, /the file is empty/);
  refused("a: b\na: c", 2, 1, /the key "a" is there twice/);
  refused("x:\n  - {a: b,\n     a: c}", 3, 6, /the key "a" is there twice/);
  refused("a: b\n---\nc: d", 3, 1, /second document/);
  refused("a: b\n---\n[]", 3, 1, /second document/);
  refused("5: b", 1, 1, /the key "5" is not a text/);
  refused("a: {true: b}", 1, 5, /the key "true" is not a text/);
  refused("~: b", 1, 1, /the key "~" is not a text/);
  refused("? [a]\n: b", 1, 3, /a key must be a text/);
  refused("? {a: b}\n: b", 1, 3, /a key must be a text/);
  refused("a: &k b\n*k : c", 2, 2, /a key must be a text/);
  refused("a: !!binary aGk=", 1, 4, /the tag "!!binary"/);
  refused("a: !!js/function 'x'", 1, 4, /the tag "!!js\/function"/);
  refused("a: !custom {b: c}", 1, 4, /the tag "!custom"/);
  refused("a: !!set {b}", 1, 4, /the tag "!!set"/);
  refused("a: !<tag:yaml.org,2002:str> b", 1, 4, /the tag/);
  refused("%TAG !! tag:x,2000:\n---\na: b", 1, 1, /%TAG/);
  refused("a: *b", 1, 5, /nothing is named "b"/);
  refused("a: &x [*x]", 1, 9, /the alias "x" stands inside what it names/);
  refused("a: &x p\nb: &x {c: *x}", 2, 12, /stands inside/);
  refused("a: {<<: b}", 1, 9, /a merge key/);
  refused("a: [b", 1, 6, /unexpected end/);
  refused("a: b\n\tc: d", 2, 1, /./);
  refused("a: b\0", 1, 5, /null byte/);
  refused("__proto__: {a: b}", 1, 1, /"__proto__"/);
});

test("T12: an alias bomb, a merge bomb and deep nesting are refused at once", () => {
  const bomb = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"];
  for (let i = 1; i < 20; i++) bomb.push(`a${i}: &a${i} [${`*a${i - 1},`.repeat(9)}*a${i - 1}]`);
  refused(bomb.join("\n"), 5, 39, /expands to more than 100000 values/);
  const merges = ["m0: &m0 {a0: {b: c}}"];
  for (let i = 1; i < 40; i++) merges.push(`m${i}: &m${i} {<<: *m${i - 1}, x${i}: *m${i - 1}}`);
  assert.ok("fault" in parseYaml(merges.join("\n")));
  for (const text of ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000), "? ".repeat(100_000)]) {
    const result = parseYaml(text);
    assert.ok("fault" in result);
    assert.match(result.fault.what, /maxDepth/);
  }
});

test("a hundred thousand values are the bound, aliases expanded", () => {
  const list = `- &a [${"a,".repeat(998)}]\n`; // with the list and the outer one 1000
  assert.ok("value" in parseYaml(list + "- *a\n".repeat(99)));
  assert.ok("fault" in parseYaml(list + "- *a\n".repeat(100)));
});

test("any damage to a YAML spec gives a value or a fault, never a crash", () => {
  const next = random(5);
  const odd = "{}[]&*!|>'\"%@`:-? \n\t#,<~0a\0\u00e9\ufeff";
  for (let i = 0; i < 1000; i++) {
    let text = SPEC;
    for (let edits = 1 + Math.floor(next() * 4); edits > 0; edits--) {
      const at = Math.floor(next() * text.length);
      text = text.slice(0, at) + odd.charAt(Math.floor(next() * odd.length)) + text.slice(at + Math.floor(next() * 3));
    }
    const result = parseYaml(text);
    if ("value" in result) checkSpec(result.value);
    else assert.ok(result.fault.line >= 1 && result.fault.column >= 1 && result.fault.what !== "", text);
  }
});
