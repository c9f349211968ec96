import assert from "node:assert/strict";
import { test } from "node:test";
import { checkSpec, scanJson } from "../../src/cdi/validate.part.ts";
import { BAD, BAD_TOGETHER, FULL, GOOD, LENIENT, specWith } from "../support/cdi-corpus.ts";
import { random } from "../support/random.ts";

const ENV = { env: ["A=b"] };

test("every good spec is taken as it is", () => {
  for (const [name, value] of Object.entries(GOOD)) {
    const { spec, canonical, problems } = checkSpec(value);
    assert.deepEqual(problems, [], name);
    assert.deepEqual(spec, value, name);
    assert.equal(canonical, true, name);
  }
});

test("every bad spec is refused with the code and the places of what is wrong", () => {
  for (const [name, [value, code, ...pointers]] of Object.entries({ ...BAD, ...BAD_TOGETHER })) {
    const { spec, canonical, problems } = checkSpec(value);
    assert.equal(spec, undefined, name);
    assert.equal(canonical, false, name);
    assert.deepEqual(
      problems.map((problem) => problem.pointer),
      pointers,
      name,
    );
    for (const problem of problems) {
      assert.equal(problem.code, code, name);
      assert.ok(problem.what !== "" && problem.remedy !== "", name);
    }
  }
});

test("2.8 e: every rule that the library's schema misses is a rule here", () => {
  for (const name of ["a variable that is a number", "a mode in quotes", "a timeout of 0", "an unknown stage"]) {
    assert.ok(Object.hasOwn(BAD, name), name);
  }
});

test("a spec in another case, with nulls or with empty texts is put right and said not to be canonical", () => {
  for (const [name, [value, expected]] of Object.entries(LENIENT)) {
    const { spec, canonical, problems } = checkSpec(value);
    assert.deepEqual(problems, [], name);
    assert.deepEqual(spec, expected, name);
    assert.equal(canonical, false, name);
  }
});

test("two keys that differ only in case are the same field and refused", () => {
  const { problems } = checkSpec({ ...specWith(ENV), Kind: "a/b" });
  assert.equal(problems.length, 1);
  assert.equal(problems[0]?.pointer, "/Kind");
  assert.match(problems[0]?.what ?? "", /"kind" and "Kind" are the same field/);
  assert.equal(checkSpec({ ...specWith(ENV), Annotations: null, annotations: {} }).problems.length, 1);
});

test("2.8 d: annotations are really checked, in specs that are JSON too", () => {
  const of = (annotations: unknown): string[] => checkSpec(specWith(ENV, { annotations })).problems.map((p) => p.what);
  assert.deepEqual(of({ "Vendor.COM/Made-By": "x" }), []);
  assert.match(of({ "no/such/key": "x" })[0] ?? "", /"no\/such\/key" cannot be: it has more than one \//);
  assert.match(of({ a: 5 })[0] ?? "", /the annotation "a" must be a text, not 5/);
  assert.match(of({ [`${"a.".repeat(127)}a/b`]: "x" })[0] ?? "", /no DNS name/);
});

test("2.8 f: enableCMT and enableMBM are taken from 0.7.0 on and refused from 1.1.0 on", () => {
  const of = (cdiVersion: string): string[] =>
    checkSpec(specWith({ intelRdt: { enableCMT: true, enableMBM: true } }, { cdiVersion })).problems.map((p) => p.what);
  for (const version of ["0.7.0", "0.8.0", "1.0.0", "v1.0.0"]) assert.deepEqual(of(version), [], version);
  assert.equal(of("1.1.0").length, 2);
  assert.match(of("1.1.0")[0] ?? "", /CDI 1\.1\.0 removed the field enableCMT/);
});

test("2.8 f: a flag of a newer version counts even when it is false", () => {
  const { problems } = checkSpec(specWith({ intelRdt: { enableMonitoring: false } }, { cdiVersion: "1.0.0" }));
  assert.equal(problems.length, 1);
  assert.equal(problems[0]?.code, "E_CDI_VERSION");
  assert.equal(problems[0]?.pointer, "/devices/0/containerEdits/intelRdt/enableMonitoring");
});

test("2.8 g: permissions none are taken in every version", () => {
  for (const cdiVersion of ["0.3.0", "0.5.0", "1.0.0", "1.1.0"]) {
    const value = specWith({ deviceNodes: [{ path: "/dev/a", permissions: "none" }] }, { cdiVersion });
    assert.deepEqual(checkSpec(value).problems, [], cdiVersion);
  }
});

test("2.8 h: what the specification's example has wrong is refused or put right, and prestart is taken", () => {
  const list = checkSpec(specWith(ENV, { containerEdits: [ENV] })).problems;
  assert.match(list[0]?.what ?? "", /containerEdits must be an object, not a list/);
  const schema = checkSpec(specWith({ intelRdt: { schema: ["L3:0=f"] } })).problems;
  assert.match(schema[0]?.remedy ?? "", /schemata/);
  assert.deepEqual(checkSpec(specWith({ additionalGIDs: [1] })).problems, []);
  assert.deepEqual(checkSpec(specWith({ hooks: [{ hookName: "prestart", path: "/a" }] })).problems, []);
  const none = checkSpec({ cdiVersion: "1.1.0", kind: "a/b", devices: [{ name: "c" }] }).problems;
  assert.match(none[0]?.what ?? "", /the device "c" has no edits/);
});

test("2.8 m: a vendor and a class of one character are names like others", () => {
  assert.deepEqual(
    checkSpec({ cdiVersion: "0.3.0", kind: "a/b", devices: [{ name: "c", containerEdits: ENV }] }).problems,
    [],
  );
});

test("each field that an older version lacks is named with the version that it needs", () => {
  const table: [string, unknown, string][] = [
    ["0.6.0", { kind: "a/b.c" }, "/kind"],
    ["0.6.0", { annotations: { a: "b" } }, "/annotations"],
    ["0.7.0", { containerEdits: { additionalGids: [1] } }, "/containerEdits/additionalGids"],
    ["0.7.0", { containerEdits: { intelRdt: {} } }, "/containerEdits/intelRdt"],
    ["0.5.0", { devices: [{ name: "0", containerEdits: ENV }] }, "/devices/0/name"],
    [
      "0.5.0",
      { containerEdits: { deviceNodes: [{ path: "/a" }, { path: "/a", hostPath: "/b" }] } },
      "/containerEdits/deviceNodes/1/hostPath",
    ],
    [
      "0.4.0",
      { containerEdits: { mounts: [{ hostPath: "/a", containerPath: "/a", type: "bind" }] } },
      "/containerEdits/mounts/0/type",
    ],
    [
      "1.1.0",
      { containerEdits: { netDevices: [{ hostInterfaceName: "a", name: "b" }] } },
      "/containerEdits/netDevices",
    ],
  ];
  for (const [version, more, pointer] of table) {
    const value = specWith(ENV, { kind: "a/b", ...(more as object), cdiVersion: "0.3.0" });
    const { problems } = checkSpec(value);
    assert.deepEqual(
      problems.map((p) => [p.code, p.pointer, p.remedy]),
      [["E_CDI_VERSION", pointer, `declare at least ${version}`]],
    );
    assert.deepEqual(checkSpec({ ...value, cdiVersion: version }).problems, []);
  }
});

test("a good part does not hide a bad one: all problems are found, at most 20", () => {
  const value = {
    cdiVersion: "9",
    kind: "x",
    devices: [
      { name: "-", containerEdits: { env: ["A"], mounts: [{}] } },
      { name: "b", containerEdits: {} },
    ],
  };
  assert.deepEqual(
    checkSpec(value).problems.map((p) => p.pointer),
    [
      "/kind",
      "/devices/0/name",
      "/devices/0/containerEdits/env/0",
      "/devices/0/containerEdits/mounts/0/hostPath",
      "/devices/0/containerEdits/mounts/0/containerPath",
      "/devices/1/containerEdits",
      "/cdiVersion",
    ],
  );
  const many = checkSpec(specWith({ env: Array.from({ length: 10_000 }, () => "x") }));
  assert.equal(many.problems.length, 20);
});

test("hostile values end in problems with short texts", () => {
  const long = "x".repeat(1 << 20);
  const values: unknown[] = [
    undefined,
    true,
    Number.NaN,
    { [long]: 1 },
    Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`k${i}`, i])),
    specWith({ env: [long] }),
    specWith(ENV, { kind: `${long}/a` }),
    specWith(ENV, { annotations: { [long]: "" } }),
    JSON.parse('{"__proto__":{"cdiVersion":"0.3.0"},"constructor":1,"toString":2}'),
    specWith(JSON.parse('{"__proto__":{"env":["A=b"]}}')),
  ];
  for (const value of values) {
    const { spec, problems } = checkSpec(value);
    assert.equal(spec, undefined);
    assert.ok(problems.length > 0);
    for (const { what, pointer } of problems) assert.ok(what.length < 600 && pointer.length < 300, what.slice(0, 100));
  }
  assert.equal(({} as Record<string, unknown>)["env"], undefined);
});

test("a spec with any value changed is checked without a crash", () => {
  const next = random(7);
  const odd: unknown[] = [null, 0, -1, 1e300, "", "\0", "x", [], {}, [null], true];
  const mutate = (value: unknown): unknown => {
    if (next() < 0.05) return odd[Math.floor(next() * odd.length)];
    if (Array.isArray(value)) return value.map(mutate);
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, v]) => [next() < 0.03 ? key.toUpperCase() : key, mutate(v)]),
    );
  };
  let good = 0;
  for (let i = 0; i < 2000; i++) {
    const { spec, problems } = checkSpec(mutate(FULL));
    assert.equal(spec === undefined, problems.length > 0);
    if (spec !== undefined) good++;
    // What it made is canonical.
    if (spec !== undefined) assert.deepEqual(checkSpec(spec), { spec, canonical: true, problems: [] });
  }
  assert.ok(good > 0 && good < 2000, `${good}`);
});

test("good JSON has no fault", () => {
  for (const value of [
    FULL,
    [],
    {},
    [[]],
    { a: [] },
    "x",
    "",
    -1.5e-7,
    true,
    null,
    { "": { "": [0] } },
    ["\\", '"', "\\\\"],
  ]) {
    for (const indent of [0, 2]) assert.equal(scanJson(JSON.stringify(value, null, indent)), undefined);
  }
  assert.equal(scanJson(' \t\n\r{ "a" : [ 1 , 2 ] , "b" : "\\u00e9\\n" } \n'), undefined);
});

test("a fault of JSON is told by line, column and reason", () => {
  const table: [string, number, number, RegExp][] = [
    ["", 1, 1, /the text ends, but a value was expected/],
    ["{", 1, 2, /the text ends, but a key/],
    ['{"a":1,}', 1, 8, /a key in "quotes" was expected/],
    ["{a:1}", 1, 2, /a key in "quotes" was expected/],
    ['{"a" 1}', 1, 6, /":" was expected after a key/],
    ['{"a":}', 1, 6, /a value was expected/],
    ['{"a":1 "b":2}', 1, 8, /"," or "}" was expected/],
    ["[1 2]", 1, 4, /"," or "\]" was expected/],
    ["[1,]", 1, 4, /a value was expected/],
    ["[1}", 1, 3, /"}" closes what was opened otherwise/],
    ["{} x", 1, 4, /after the end/],
    ['{\n  "a": 1,\n  "b": tru\n}', 3, 8, /a value was expected/],
    ['{"a": "x\ny"}', 1, 7, /a bad escape or a control character/],
    ['{"a": "\\x"}', 1, 7, /a bad escape/],
    ['{"\\x": 1}', 1, 2, /this key has a bad escape/],
    ['{"a": "x', 1, 7, /no closing quote/],
    ['{"a": 01}', 1, 8, /"," or "}" was expected/],
    ['{"a": 1, "a": 2}', 1, 10, /the key "a" is there twice/],
    ['{"a": 1, "\\u0061": 2}', 1, 10, /the key "a" is there twice/],
    ['{"b": [{"a": 1, "c": {}, "a": 2}]}', 1, 26, /the key "a" is there twice/],
    ["[".repeat(100_000), 1, 65, /nested more than 64 levels deep/],
    ['{"a":'.repeat(100_000), 1, 321, /nested more than 64 levels deep/],
  ];
  for (const [text, line, column, what] of table) {
    const fault = scanJson(text);
    assert.ok(fault !== undefined, text.slice(0, 40));
    assert.match(fault.what, what, text.slice(0, 40));
    assert.deepEqual([fault.line, fault.column], [line, column], text.slice(0, 40));
  }
});

test("the scan of JSON agrees with JSON.parse on texts with anything changed", () => {
  const next = random(11);
  const good = JSON.stringify(FULL);
  const odd = '{}[]",:\\ \n0a-.\0';
  let refused = 0;
  for (let i = 0; i < 1000; i++) {
    const at = Math.floor(next() * good.length);
    const text =
      good.slice(0, at) + odd.charAt(Math.floor(next() * odd.length)) + good.slice(at + Math.floor(next() * 3));
    let parses = true;
    try {
      JSON.parse(text);
    } catch {
      parses = false;
    }
    const fault = scanJson(text);
    if (fault === undefined) assert.ok(parses, text);
    else if (parses) assert.match(fault.what, /is there twice/, text);
    if (fault !== undefined) refused++;
  }
  assert.ok(refused > 300);
});
