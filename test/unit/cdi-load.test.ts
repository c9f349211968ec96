import assert from "node:assert/strict";
import { test } from "node:test";
import { SPEC_FILE_MAX } from "../../src/cdi/load.ts";
import { checkSpecFile, loadSpec } from "../../src/cdi/read.part.ts";
import { binary, char, dir, fifo, file, link, memory, type Tree } from "../support/memory-files.ts";

const GOOD = '{"cdiVersion":"0.5.0","kind":"vendor.com/gpu","devices":[{"name":"0","containerEdits":{"env":["A=b"]}}]}';
const YAML = "cdiVersion: 0.5.0\nkind: vendor.com/gpu\ndevices:\n- name: 0\n  containerEdits:\n    env: [A=b]\n";

function load(content: Tree[string], name = "/etc/cdi/a.json") {
  return loadSpec(memory({ [name]: content }), name);
}

test("a spec is JSON or YAML by its content, whatever its name says", () => {
  const expected = JSON.parse(GOOD);
  for (const name of ["/etc/cdi/a.json", "/etc/cdi/a.yaml"]) {
    assert.deepEqual(load(GOOD, name), expected);
    assert.deepEqual(load(`\n\t ${GOOD}\n`, name), expected);
    assert.deepEqual(load(YAML, name), expected);
    assert.deepEqual(load(`\ufeff${YAML}`, name), expected);
    assert.deepEqual(load(`${GOOD.slice(0, -1)},}`, name), expected); // YAML's flow style
  }
});

test("a JSON file is canonical if JSON.parse of it is the spec", () => {
  const canonical = (text: string): boolean => checkSpecFile(memory({ "/d/a.json": text }), "/d/a.json").canonical;
  assert.equal(canonical(GOOD), true);
  assert.equal(canonical(YAML), false);
  assert.equal(canonical(GOOD.replace("kind", "Kind")), false);
});

test("names that no engine reads are refused", () => {
  for (const name of ["/etc/cdi/a.yml", "/etc/cdi/a.txt", "/etc/cdi/json", "/etc/cdi/a.JSON"]) {
    assert.throws(() => load(GOOD, name), { code: "E_CDI_READ", message: /neither in \.json nor in \.yaml/ });
  }
});

test("T12: a file or folder that anybody may write to is not trusted", () => {
  assert.throws(() => load(file(GOOD, { mode: 0o666 })), {
    code: "E_CDI_UNTRUSTED",
    message: /chmod o-w \/etc\/cdi\/a\.json/,
  });
  assert.throws(() => load(file(GOOD, { mode: 0o602 })), { code: "E_CDI_UNTRUSTED" });
  for (const mode of [0o777, 0o1777, 0o703]) {
    const files = memory({ "/etc/cdi": dir({ mode }), "/etc/cdi/a.json": GOOD });
    assert.throws(() => loadSpec(files, "/etc/cdi/a.json"), {
      code: "E_CDI_UNTRUSTED",
      message: /chmod o-w \/etc\/cdi/,
    });
  }
});

test("the group may write, and the owner is not looked at: root is nobody in a user namespace", () => {
  const files = memory({
    "/etc/cdi": dir({ mode: 0o775, uid: 65534 }),
    "/etc/cdi/a.json": file(GOOD, { mode: 0o664, uid: 65534 }),
  });
  assert.equal(loadSpec(files, "/etc/cdi/a.json").kind, "vendor.com/gpu");
});

test("T12: a link is followed, unless it leads through a folder that anybody may write to", () => {
  const files = memory({
    "/etc/cdi/good.json": link("../vendor/spec"),
    "/etc/cdi/bad.json": link("/tmp/spec"),
    "/etc/cdi/indirect.json": link("/etc/vendor/hop"),
    "/etc/vendor/hop": link("/tmp/spec"),
    "/etc/vendor/spec": GOOD,
    "/etc/cdi/loop.json": link("loop.json"),
    "/etc/cdi/dangling.json": link("nowhere"),
    "/tmp": dir({ mode: 0o1777 }),
    "/tmp/spec": GOOD,
  });
  assert.equal(loadSpec(files, "/etc/cdi/good.json").kind, "vendor.com/gpu");
  for (const name of ["bad", "indirect"]) {
    assert.throws(() => loadSpec(files, `/etc/cdi/${name}.json`), {
      code: "E_CDI_UNTRUSTED",
      message: /the folder \/tmp/,
    });
  }
  assert.throws(() => loadSpec(files, "/etc/cdi/loop.json"), { code: "E_CDI_READ", message: /ELOOP/ });
  assert.throws(() => loadSpec(files, "/etc/cdi/dangling.json"), { code: "E_CDI_READ", message: /does not exist/ });
});

test("what is no readable file is an error, and nothing waits on a FIFO", () => {
  assert.throws(() => load(fifo()), { code: "E_CDI_READ", message: /it is a fifo, not a file/ });
  assert.throws(() => load(char(1, 3)), { code: "E_CDI_READ", message: /it is a char/ });
  assert.throws(() => load(dir()), { code: "E_CDI_READ", message: /it is a dir/ });
  assert.throws(() => load(binary()), { code: "E_CDI_SYNTAX", message: /not UTF-8/ });
  const files = memory({ "/etc/cdi/a.json": GOOD });
  files.fail("readText", "/etc/cdi/a.json", "EACCES");
  assert.throws(() => loadSpec(files, "/etc/cdi/a.json"), { code: "E_CDI_READ", message: /EACCES/ });
});

test("T12: a file beyond the size limit is not read", () => {
  const files = memory({ "/etc/cdi/a.json": GOOD + " ".repeat(SPEC_FILE_MAX) });
  assert.throws(() => loadSpec(files, "/etc/cdi/a.json"), { code: "E_CDI_TOO_LARGE", message: /more than 4194304/ });
  assert.equal(files.count("readText"), 0);
  assert.throws(() => load(`${YAML}#${" ".repeat(1 << 20)}`), { code: "E_CDI_TOO_LARGE", message: /it is YAML of/ });
  assert.equal(load(GOOD + " ".repeat(1 << 21)).kind, "vendor.com/gpu");
});

test("an error names the file, the place and the reason", () => {
  const table: [string, string, string, RegExp][] = [
    [
      "/etc/cdi/a.json",
      "",
      "E_CDI_SYNTAX",
      /CDI spec \/etc\/cdi\/a\.json: it is not YAML: line 1, column 1: the file is empty/,
    ],
    ["/etc/cdi/a.json", '{"a": tru}', "E_CDI_SYNTAX", /it is not JSON: line 1, column 7: a value was expected/],
    ["/etc/cdi/a.yaml", '{"a": tru}', "E_CDI_SPEC", /a\.yaml at \/a: a CDI spec has no field "a"/],
    ["/etc/cdi/a.json", '{"a": 1 "b"}', "E_CDI_SYNTAX", /it is not JSON: line 1, column 9: "," or "}" was expected/],
    ["/etc/cdi/a.yaml", '{"a": [1}', "E_CDI_SYNTAX", /it is not YAML: line 1, column/],
    ["/etc/cdi/a.json", GOOD.replace('"kind"', '"kind":"x/y","kind"'), "E_CDI_SYNTAX", /the key "kind" is there twice/],
    ["/etc/cdi/a.yaml", `${YAML}kind: a/b\n`, "E_CDI_SYNTAX", /line 7, column 1: the key "kind" is there twice/],
    [
      "/etc/cdi/a.yaml",
      YAML.replace("A=b", "A"),
      "E_CDI_SPEC",
      /a\.yaml at \/devices\/0\/containerEdits\/env\/0: the variable "A"/,
    ],
    ["/etc/cdi/a.yaml", YAML.replace("0.5.0", "0.3.0"), "E_CDI_VERSION", /at \/devices\/0\/name: .* needs CDI 0\.5\.0/],
    ["/etc/cdi/a.json", "[]", "E_CDI_SPEC", /must be an object, not a list/],
    ["/etc/cdi/a.json", '{"a":1,"b":2,"c":3}', "E_CDI_SPEC", /at \/a: .*\(and 2 more problems\)/],
    ["/etc/cdi/\u202ea.json", "", "E_CDI_SYNTAX", /CDI spec "\/etc\/cdi\/\\u202ea\.json"/],
  ];
  for (const [name, text, code, message] of table) assert.throws(() => load(text, name), { code, message }, text);
});

test("T12: deep nesting is an error in both formats", () => {
  for (const text of ['{"a":'.repeat(100_000), `{"a":${"[".repeat(100_000)}`, "- ".repeat(100_000)]) {
    assert.throws(() => load(text), { code: "E_CDI_SYNTAX" });
  }
});
