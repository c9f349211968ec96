import assert from "node:assert/strict";
import { test } from "node:test";
import { annotationKey, annotationValue, parseAnnotations } from "../../src/cdi/annotations.ts";
import { deviceNameProblem, isDeviceName, kindProblem, parseDeviceName } from "../../src/cdi/name.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { random } from "../support/random.ts";

test("a qualified name is taken apart at the first = and the first /", () => {
  assert.deepEqual(parseDeviceName("nvidia.com/gpu=0:1"), {
    kind: "nvidia.com/gpu",
    vendor: "nvidia.com",
    class: "gpu",
    name: "0:1",
  });
});

test("2.8 m: parts of one character are names", () => {
  assert.deepEqual(parseDeviceName("a/b=c"), { kind: "a/b", vendor: "a", class: "b", name: "c" });
  assert.deepEqual(parseDeviceName("A/B=0").name, "0");
});

test("names of every allowed form are taken", () => {
  for (const name of [
    "vendor.com/gpu=all",
    "v-e_n.d0r/c-l_a.s5=0_a-b.c:d",
    "nvidia.com/gpu=GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c",
    "nvidia.com/gpu=MIG-e91edf3b-b297-37c1-a2a7-7601c3238fa2",
    "k8s.gpu.nvidia.com/claim=0f1e-gpu-0-mig-1g.5gb-19-0",
    `${"a".repeat(253)}/${"b".repeat(63)}=${"c".repeat(1000)}`,
  ]) {
    assert.ok(isDeviceName(name), name);
    assert.deepEqual(annotationValue([name]), name);
  }
});

test("what is wrong with a name is said, part by part", () => {
  const table: [string, RegExp][] = [
    ["", /^"" is not a CDI device name: it is empty$/],
    ["0", /there is no "=" before the device name/],
    ["all", /there is no "="/],
    ["nvidia.com/gpu", /there is no "="/],
    ["=", /there is no "\/" between vendor and class/],
    ["=a", /there is no "\/"/],
    ["gpu=0", /there is no "\/"/],
    ["/=", /the vendor is empty/],
    ["/", /there is no "="/],
    ["/b=c", /the vendor is empty/],
    ["/dev/nvidia0", /there is no "="/],
    ["a/=b", /the class is empty/],
    ["a/b=", /the device name is empty/],
    ["a/b/c=d", /the class "b\/c" has the character "\/"/],
    ["1a/b=c", /the vendor "1a" does not start with a letter/],
    ["a/1b=c", /the class "1b" does not start with a letter/],
    ["a/b=-c", /the device name "-c" does not start with a letter or digit/],
    ["a-/b=c", /the vendor "a-" does not end with a letter or digit/],
    ["a/b.=c", /the class "b\." does not end/],
    ["a/b=c:", /the device name "c:" does not end/],
    ["a:b/c=d", /the vendor "a:b" has the character ":"/],
    ["a/b=c=d", /the device name "c=d" has the character "="/],
    ["a/b=c d", /the character " "/],
    [" a/b=c", /the vendor " a" has the character " "/],
    ["a/b=c,d", /the character ","/],
    ["a/b=\0", /the character "\\u0000"/],
    ["a/b=c\n", /the character "\\n"/],
    ["a/b=é", /the character "é"/],
    ["a/b=\u{1f600}", /the character "\u{1f600}"/u],
    ["a/b=\u202e", /the character "\\u202e"/],
    ["a/b=\ud800", /the character "\\ud800"/],
    [`${"a".repeat(254)}/b=c`, /the vendor has 254 characters, more than 253/],
    [`a/${"b".repeat(64)}=c`, /the class has 64 characters, more than 63/],
  ];
  for (const [name, message] of table) {
    assert.equal(isDeviceName(name), false, name);
    try {
      parseDeviceName(name);
      assert.fail(name);
    } catch (e) {
      assert.ok(e instanceof SluiceError, name);
      assert.equal(e.code, "E_CDI_NAME", name);
      assert.match(e.what, message, name);
    }
  }
});

test("names of a megabyte give a short error or a name", () => {
  const long = "x".repeat(1 << 20);
  for (const name of [long, `${long}/b=c`, `a/${long}=c`, `a/b=${long}!`, "=".repeat(1 << 20), "/".repeat(1 << 20)]) {
    assert.throws(() => parseDeviceName(name), { code: "E_CDI_NAME", message: /^.{1,600}$/s });
  }
  assert.equal(parseDeviceName(`a/b=${long}`).name.length, 1 << 20);
});

test("no text crashes the parser, and what it takes it puts together again", () => {
  const next = random(3);
  const alphabet = "ab0/=.-_: \0é";
  let taken = 0;
  for (let i = 0; i < 20_000; i++) {
    let text = "ab/c0=d:1";
    for (let edits = 1 + Math.floor(next() * 3); edits > 0; edits--) {
      const at = Math.floor(next() * text.length);
      const changed = alphabet.charAt(Math.floor(next() * alphabet.length));
      text = text.slice(0, at) + changed + text.slice(at + Math.floor(next() * 3));
    }
    if (!isDeviceName(text)) {
      assert.throws(() => parseDeviceName(text), { code: "E_CDI_NAME" });
      continue;
    }
    const { vendor, class: klass, name, kind } = parseDeviceName(text);
    assert.equal(`${vendor}/${klass}=${name}`, text);
    assert.equal(kindProblem(kind) ?? deviceNameProblem(name), undefined);
    taken++;
  }
  assert.ok(taken > 1000 && taken < 19_000, `${taken}`);
});

test("annotations give their devices sorted by key, in the order of each value", () => {
  assert.deepEqual(
    parseAnnotations({
      "cdi.k8s.io/z": "b.com/x=2,a.com/x=1",
      other: "not a name",
      "cdi.k8s.io/a": "c.com/x=3",
      "cdi.k8s.io/": "d.com/x=4",
      "xcdi.k8s.io/a": "!",
    }),
    [
      { key: "cdi.k8s.io/", devices: ["d.com/x=4"] },
      { key: "cdi.k8s.io/a", devices: ["c.com/x=3"] },
      { key: "cdi.k8s.io/z", devices: ["b.com/x=2", "a.com/x=1"] },
    ],
  );
  assert.deepEqual(parseAnnotations({}), []);
});

test("one bad name in one annotation refuses all, and the error names the key", () => {
  for (const value of ["", "a/b=c,", "a/b=c, a/b=d", "0", "a/b", ",", "a/b=c\0", 5, null, ["a/b=c"]]) {
    assert.throws(
      () => parseAnnotations({ "cdi.k8s.io/good": "a/b=c", "cdi.k8s.io/bad": value }),
      { code: "E_CDI_ANNOTATION", message: /annotation "cdi\.k8s\.io\/bad"/ },
      String(value),
    );
  }
});

test("annotations with hostile keys are harmless", () => {
  const annotations = JSON.parse('{"__proto__":"x","constructor":"y","cdi.k8s.io/__proto__":"a/b=c"}');
  assert.deepEqual(parseAnnotations(annotations), [{ key: "cdi.k8s.io/__proto__", devices: ["a/b=c"] }]);
});

test("an annotation key is made of plugin and device, with / as _", () => {
  assert.equal(annotationKey("vendor.com-gpu", "a/b/0"), "cdi.k8s.io/vendor.com-gpu_a_b_0");
  assert.equal(annotationKey("a", "b".repeat(61)), `cdi.k8s.io/a_${"b".repeat(61)}`);
  const table: [string, string, RegExp][] = [
    ["", "x", /the plugin's name is empty/],
    ["x", "", /the device's id is empty/],
    ["a", "b".repeat(62), /it has 64 characters/],
    ["-a", "b", /it holds something other/],
    ["a", "/", /it holds something other/],
    ["a b", "c", /it holds something other/],
    ["a/b", "c", /it holds something other/],
    ["a", "b\n", /it holds something other/],
  ];
  for (const [plugin, id, message] of table) {
    assert.throws(() => annotationKey(plugin, id), { code: "E_CDI_ANNOTATION", message });
  }
});

test("an annotation value holds qualified names only", () => {
  assert.equal(annotationValue(["a/b=c", "a/b=d"]), "a/b=c,a/b=d");
  assert.throws(() => annotationValue(["a/b=c", "d"]), { code: "E_CDI_NAME", message: /"d"/ });
});
