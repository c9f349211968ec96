import assert from "node:assert/strict";
import { test } from "node:test";
import { Elements, patchJson } from "../../src/oci/lossless.ts";
import { sys } from "../../src/sys/node.ts";
import { dockerConfig } from "../fixtures/oci/docker-config.ts";
import { fullConfig } from "../fixtures/oci/full-config.ts";
import { random } from "../support/random.ts";

/** Parses `text`, lets `change` make the new tree, and patches. */
function patch(text: string, change: (before: never) => unknown): string {
  const before: unknown = JSON.parse(text);
  const after = change(before as never);
  const patched = patchJson(text, before, after);
  // The executable has a faster way to pass over what stays; it must not make a difference.
  assert.equal(patchJson(text, before, after, sys), patched);
  return patched;
}

/** The tree of a text in which a number is its own spelling, so that no digit is lost. */
function exact(text: string): unknown {
  const spelled = text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) =>
    token.startsWith('"') ? token : `"#${token}"`,
  );
  return JSON.parse(spelled);
}

test("a tree that did not change gives the text itself", () => {
  for (const text of [fullConfig, dockerConfig, "  1 ", "[]", '"\\u0041"']) {
    assert.equal(
      patch(text, (b) => b),
      text,
    );
  }
  assert.equal(
    patch(fullConfig, (b: object) => ({ ...b })),
    fullConfig,
  );
});

test("a changed member keeps its place and leaves every other byte alone", () => {
  const text = '{ "z" : 18446744073709551615 ,\t"a":  "old" , "2": 1.50, "1": [1E2 ] }';
  const patched = patch(text, (b: object) => ({ ...b, a: "new" }));
  assert.equal(patched, '{ "z" : 18446744073709551615 ,\t"a":  "new" , "2": 1.50, "1": [1E2 ] }');
});

test("new members go to the end and take the layout of the members before them", () => {
  const add = (b: object) => ({ ...b, x: { y: [1] }, z: null });
  assert.equal(patch('{"a":1}', add), '{"a":1,"x":{"y":[1]},"z":null}');
  assert.equal(patch('{\n  "a": 1\n}', add), '{\n  "a": 1,\n  "x": {"y":[1]},\n  "z": null\n}');
  assert.equal(
    patch('{\r\n\t"b" : 2,\r\n\t"a" : 1\r\n}\r\n', add).includes(',\r\n\t"x" : {"y":[1]},\r\n\t"z" : null\r\n}'),
    true,
  );
  assert.equal(patch("{}", add), '{"x":{"y":[1]},"z":null}');
  assert.equal(patch("{ }", add), '{"x":{"y":[1]},"z":null }');
});

test("removed members take their comma along, wherever they stand", () => {
  const without =
    (...keys: string[]) =>
    (b: object) =>
      Object.fromEntries(Object.entries(b).filter(([key]) => !keys.includes(key)));
  const text = '{ "a": 1, "b": 2, "c": 3 }';
  assert.equal(patch(text, without("a")), '{ "b": 2, "c": 3 }');
  assert.equal(patch(text, without("b")), '{ "a": 1, "c": 3 }');
  assert.equal(patch(text, without("c")), '{ "a": 1, "b": 2 }');
  assert.equal(patch(text, without("a", "b")), '{ "c": 3 }');
  assert.equal(patch(text, without("b", "c")), '{ "a": 1 }');
  assert.equal(patch(text, without("a", "c")), '{ "b": 2 }');
  assert.equal(patch(text, without("a", "b", "c")), "{  }");
  assert.equal(
    patch(text, () => ({ d: 4, e: 5 })),
    '{ "d": 4, "e": 5 }',
  );
  assert.equal(
    patch(text, (b: object) => ({ ...b, a: undefined, d: 4 })),
    '{ "b": 2, "c": 3, "d": 4 }',
  );
});

test("elements added to an array leave the old ones alone", () => {
  const add = (b: unknown[]) => [...b, "x", { y: 1 }];
  assert.equal(patch("[]", add), '["x",{"y":1}]');
  assert.equal(patch("[ ]", add), '["x",{"y":1} ]');
  assert.equal(patch("[1.0]", add), '[1.0,"x",{"y":1}]');
  assert.equal(patch("[\n\t1e2,\n\t{ }\n]", add), '[\n\t1e2,\n\t{ },\n\t"x",\n\t{"y":1}\n]');
});

test("elements of an array keep their text when they move", () => {
  const text = '[ {"v": 18446744073709551615}, "\\u0041", [ 1E0 ],\n{"v": 18446744073709551614} ]';
  const patched = patch(text, (b: unknown[]) => [b[3], b[2], b[1], b[0]]);
  assert.equal(patched, '[ {"v": 18446744073709551614}, [ 1E0 ], "\\u0041",\n{"v": 18446744073709551615} ]');
  assert.equal(
    patch(text, (b: unknown[]) => [b[3], "new", b[0]]),
    '[ {"v": 18446744073709551614}, "new", {"v": 18446744073709551615} ]',
  );
  assert.equal(
    patch(text, () => []),
    "[  ]",
  );
});

test("a changed element is patched in its place, and an object rebuilt around old parts keeps them", () => {
  const text = '[{"a": 9007199254740993, "b": 1}, {"a": 9007199254740995, "b": 2}]';
  const patched = patch(text, (b: { b: number }[]) => [b[0], { ...b[1], b: 3 }]);
  assert.equal(patched, '[{"a": 9007199254740993, "b": 1}, {"a": 9007199254740995, "b": 3}]');
});

test("numbers that look alike to JavaScript are never confused", () => {
  const text = "[9007199254740992, 9007199254740993, 7]";
  assert.equal(
    patch(text, (b: number[]) => [b[0], b[1], 8]),
    "[9007199254740992, 9007199254740993, 8]",
  );
  assert.equal(
    patch(text, (b: number[]) => [...b, 8]),
    "[9007199254740992, 9007199254740993, 7,8]",
  );
  assert.throws(() => patch(text, (b: number[]) => [b[1], 7]), { code: "E_JSON_NUMBER", message: /"\/1"/ });
  assert.throws(() => patch(text, (b: number[]) => [b[0]]), { code: "E_JSON_NUMBER" });
  assert.throws(() => patch(text, (b: number[]) => [7, b[0], b[1]]), { code: "E_JSON_NUMBER", message: /"\/0"/ });
  assert.equal(
    patch("[18446744073709551615, 1]", (b: number[]) => [1, b[0]]),
    "[1, 18446744073709551615]",
  );
});

test("a new number that would not survive is refused, also inside an old part that is moved", () => {
  const text = '{"a": {"limit": 18446744073709551615}, "c": 1e400}';
  assert.throws(() => patch(text, (b: object) => ({ ...b, d: [2 ** 60] })), {
    code: "E_JSON_NUMBER",
    message: /"\/d"/,
  });
  assert.throws(() => patch(text, (b: { a: object }) => ({ ...b, "x/y~z": b.a })), {
    code: "E_JSON_NUMBER",
    message: /"\/x~1y~0z"/,
  });
  assert.throws(() => patch(text, (b: { c: number }) => ({ ...b, d: b.c })), { code: "E_JSON_NUMBER" });
  assert.equal(
    patch("{}", () => ({ a: 2 ** 53 - 1, b: -0.5, c: "9007199254740993" })),
    '{"a":9007199254740991,"b":-0.5,"c":"9007199254740993"}',
  );
});

test("a key that is there twice is refused where its object must change, and kept where not", () => {
  const text = '{"a": {"x": 1, "x": 2}, "b": 1}';
  assert.equal(
    patch(text, (b: object) => ({ ...b, b: 2 })),
    '{"a": {"x": 1, "x": 2}, "b": 2}',
  );
  const refused = { code: "E_JSON_DUPLICATE_KEY", message: /"\/a\/x"/ };
  assert.throws(() => patch(text, (b: { a: object }) => ({ ...b, a: { ...b.a, y: 1 } })), refused);
  assert.throws(() => patch('{"a": {"x": 1, "\\u0078": 2}}', () => ({ a: { x: 3 } })), refused);
});

test("a duplicate key is found even where the first one holds something else", () => {
  const variants = ["5", '"s"', "{}", '{"y": [1, 2]}', "[]", "[1]", "[[1, 2, 3], 4, 5]", "[{}, {}]"];
  for (const first of variants) {
    for (const second of ['{"y": [1]}', "[1, 2]", "[[1], [2]]", "7"]) {
      const text = `{"a": ${first}, "a": ${second}, "b": 1}`;
      const changes: ((a: unknown) => unknown)[] = [
        () => 8,
        (a) => (Array.isArray(a) ? [...a].reverse().concat(9) : { z: 1 }),
        (a) => (Array.isArray(a) ? [] : { y: [3] }),
      ];
      for (const change of changes) {
        assert.throws(() => patch(text, (b: { a: unknown }) => ({ ...b, a: change(b.a) })), {
          code: "E_JSON_DUPLICATE_KEY",
        });
      }
    }
  }
});

test("a member called __proto__ is a member like any other", () => {
  const text = '{"__proto__": {"a": 1}, "b": 2}';
  assert.equal(
    patch(text, (b: object) => ({ ...b, b: 3 })),
    '{"__proto__": {"a": 1}, "b": 3}',
  );
  assert.equal(
    patch(text, () => ({ b: 2 })),
    '{"b": 2}',
  );
  assert.equal(
    patch('{"b": 2}', (b: object) => ({ ...b, ["__proto__"]: 1, constructor: 2 })),
    '{"b": 2,"__proto__": 1,"constructor": 2}',
  );
  assert.equal(
    patch('{"toString": 1, "b": 2}', (b: object) => ({ ...b, b: 3 })),
    '{"toString": 1, "b": 3}',
  );
});

test("brackets, quotes and backslashes inside strings are not structure", () => {
  const text = '{ "a":["]}\\"", "\\\\", {"{":"[\\\\\\""}], "\\"b\\\\":1 }';
  assert.equal(
    patch(text, (b: object) => ({ ...b, c: 1 })),
    '{ "a":["]}\\"", "\\\\", {"{":"[\\\\\\""}], "\\"b\\\\":1, "c":1 }',
  );
});

test("deep nesting and long runs of one character neither overflow nor hang", () => {
  // As deep as this engine's own parser goes, which may be less than the text is.
  for (const depth of [100_000, 10_000, 1_000]) {
    const text = `[${" [".repeat(depth)}${"]".repeat(depth)}]`;
    let before: unknown[];
    try {
      before = JSON.parse(text);
    } catch {
      continue;
    }
    // Compared here, not by assert: a message with texts this long would be no help.
    assert.ok(patchJson(text, before, [...before, 1]) === `${text.slice(0, -1)}, 1]`);
    break;
  }
  const million = 1_000_000;
  for (const filler of ["x".repeat(million), "\\\\".repeat(million), '\\"'.repeat(million)]) {
    const text = `{ "a":["${filler}"]}`;
    assert.ok(patch(text, (b: object) => ({ ...b, b: 1 })) === `${text.slice(0, -1)}, "b":1}`);
  }
  const add = (b: number[]) => [...b, 2];
  const spaces = " ".repeat(million);
  assert.ok(patch(`[1${spaces}]`, add) === `[1,2${spaces}]`);
  const digits = "1".repeat(million);
  assert.ok(patch(`[${digits}]`, add) === `[${digits},2]`);
});

test("elements that are text already stand wherever new ones can", () => {
  const two = new Elements('{"x":18446744073709551615},[]');
  const text = '{"list":[{"a":1}, {"b":2},3]}';
  type Tree = { list: unknown[] };
  const list = (change: (old: unknown[]) => unknown[]) => patch(text, (b: Tree) => ({ list: change(b.list) }));
  const inside = '{"x":18446744073709551615},[]';
  assert.equal(
    list((old) => [...old, two, 4]),
    `{"list":[{"a":1}, {"b":2},3,${inside},4]}`,
  );
  assert.equal(
    list(([a, b, c]) => [two, c, a, b]),
    `{"list":[${inside}, 3,{"a":1},{"b":2}]}`,
  );
  assert.equal(
    list(([a, , c]) => [a, two, c]),
    `{"list":[{"a":1}, ${inside},3]}`,
  );
  assert.equal(
    list(() => [two]),
    `{"list":[${inside}]}`,
  );
  assert.equal(
    patch('{"a":[]}', () => ({ a: [two, 1] })),
    `{"a":[${inside},1]}`,
  );
  assert.equal(
    patch("{}", () => ({ a: { b: [0, two], c: undefined } })),
    `{"a":{"b":[0,${inside}]}}`,
  );
});

/*
 * The property: for any text and any change, the patched text, read without losing a digit, is the old text, read so,
 * with the change made to it; and whatever subtree was not touched is there byte for byte.
 */

type Rand = () => number;
const pick = <T>(rand: Rand, items: readonly T[]): T => items[Math.floor(rand() * items.length)] as T;

const NUMBERS = [
  "0",
  "-0",
  "7",
  "-12",
  "1.50",
  "1E3",
  "1e400",
  "0.1e-7",
  "9007199254740993",
  "9007199254740992",
  "18446744073709551615",
  "9223372036854775807",
  "-9223372036854775808",
];
const STRINGS = [
  '""',
  '"a"',
  '"\\u0041"',
  '"\\/"',
  '"\\""',
  '"\\\\"',
  '"}]"',
  '"é\\ud83d\\ude00"',
  '"😀"',
  '"{\\"a\\":1}"',
];
const KEYS = [
  '"a"',
  '"b"',
  '"10"',
  '"2"',
  '"__proto__"',
  '"\\u0063"',
  '"é"',
  '"a/b~c"',
  '""',
  '"\\"q\\""',
  '"toString"',
];
type Style = "compact" | "two spaces" | "tabs" | "CRLF" | "random";
const STYLES: readonly Style[] = ["compact", "two spaces", "tabs", "CRLF", "random"];

interface Written {
  text: string;
  /** The text of each object and array, by the keys that lead to it. */
  parts: Map<string, string>;
}

function generate(rand: Rand, style: Style): Written {
  const parts = new Map<string, string>();
  const space = (level: number): string => {
    if (style === "compact") return "";
    if (style === "two spaces") return `\n${"  ".repeat(level)}`;
    if (style === "tabs") return `\n${"\t".repeat(level)}`;
    if (style === "CRLF") return `\r\n${" ".repeat(level)}`;
    return pick(rand, ["", " ", "\n", "\t \r\n"]);
  };
  const value = (level: number, path: string): string => {
    const roll = level === 0 ? 0.9 : rand();
    if (roll < 0.2) return pick(rand, NUMBERS);
    if (roll < 0.4) return pick(rand, STRINGS);
    if (roll < 0.45) return pick(rand, ["true", "false", "null"]);
    const count = level > 4 ? 0 : Math.floor(rand() * 6);
    const colon = style === "compact" ? ":" : style === "random" ? `${space(0)}:${space(0)}` : ": ";
    const keys = [...KEYS].sort(() => rand() - 0.5).slice(0, count);
    const isArray = level === 0 ? rand() < 0.5 : roll < 0.7;
    const items = keys.map((key, i) =>
      isArray ? value(level + 1, `${path}\n${i}`) : key + colon + value(level + 1, `${path}\n${JSON.parse(key)}`),
    );
    const [open, close] = isArray ? ["[", "]"] : ["{", "}"];
    const inner = items.map((item) => space(level + 1) + item).join(`${style === "random" ? space(0) : ""},`);
    const text = open + inner + (count > 0 ? space(level) : "") + close;
    parts.set(path, text);
    return text;
  };
  const lead = style === "random" ? space(0) : "";
  return { text: lead + value(0, "") + (style === "compact" ? "" : "\n"), parts };
}

/** Changes a tree and its exact twin alike. `fresh` makes values that the text cannot hold. */
function mutate(rand: Rand, tree: unknown, twin: unknown, fresh: () => number, level: number): [unknown, unknown] {
  const replacement = (): [unknown, unknown] => {
    const n = fresh();
    return pick(rand, [
      [n, `#${n}`],
      [`s${n}`, `s${n}`],
      [{ k: [n] }, { k: [`#${n}`] }],
      [[], []],
    ]);
  };
  if (Array.isArray(tree) && Array.isArray(twin)) {
    const a: unknown[] = [...tree];
    const b: unknown[] = [...twin];
    // Not both: an element that changes and moves at once is written anew. So each part is also changed only once.
    const moves = rand() < 0.5;
    const touched = new Set<number>();
    for (let steps = 1 + Math.floor(rand() * 2); steps > 0; steps--) {
      const i = Math.floor(rand() * a.length);
      const j = Math.floor(rand() * a.length);
      const roll = rand();
      const [x, y] = replacement();
      if (roll < 0.35 || a.length === 0) {
        a.push(x);
        b.push(y);
      } else if (roll < 0.5) {
        a[i] = x;
        b[i] = y;
      } else if (!moves) {
        if (touched.has(i)) continue;
        touched.add(i);
        [a[i], b[i]] = mutate(rand, a[i], b[i], fresh, level + 1);
      } else if (roll < 0.75) {
        a.splice(i, 1);
        b.splice(i, 1);
      } else {
        // Swapped twins look like nothing happened: JavaScript cannot say it.
        if (a[i] === a[j]) continue;
        [a[i], a[j]] = [a[j], a[i]];
        [b[i], b[j]] = [b[j], b[i]];
      }
    }
    return [a, b];
  }
  if (typeof tree === "object" && tree !== null && typeof twin === "object" && twin !== null) {
    const a = new Map<string, unknown>(Object.entries(tree));
    const b = new Map<string, unknown>(Object.entries(twin));
    const touched = new Set<string>();
    for (let steps = 1 + Math.floor(rand() * 3); steps > 0; steps--) {
      const keys = [...a.keys()];
      const roll = rand();
      const key = pick(rand, keys);
      const [x, y] = replacement();
      if (roll < 0.3 || keys.length === 0) {
        const name = pick(rand, ["new", "__proto__", "7"]);
        a.set(name, x);
        b.set(name, y);
      } else if (roll < 0.5) {
        a.delete(key);
        b.delete(key);
      } else if (roll < 0.6) {
        a.set(key, x);
        b.set(key, y);
      } else if (!touched.has(key)) {
        touched.add(key);
        const [p, q] = mutate(rand, a.get(key), b.get(key), fresh, level + 1);
        a.set(key, p);
        b.set(key, q);
      }
    }
    return [Object.fromEntries(a), Object.fromEntries(b)];
  }
  return replacement();
}

function collect(value: unknown, path: string, into: Map<unknown, string>): void {
  if (typeof value !== "object" || value === null) return;
  into.set(value, path);
  for (const [key, part] of Object.entries(value)) collect(part, `${path}\n${key}`, into);
}

test("a patched text is the old one with the change and nothing else, whatever the text and the change", () => {
  const rand = random(20260801);
  let counter = 777_000;
  let refused = 0;
  const cases = 1500;
  for (let i = 0; i < cases; i++) {
    const { text, parts } = generate(rand, STYLES[i % STYLES.length] as Style);
    const before: unknown = JSON.parse(text);
    const [after, twin] = mutate(rand, before, exact(text), () => counter++, 0);
    let patched: string;
    try {
      patched = patchJson(text, before, after, i % 2 === 0 ? undefined : sys);
    } catch (thrown) {
      assert.equal((thrown as { code?: string }).code, "E_JSON_NUMBER", `case ${i}: ${text}`);
      refused++;
      continue;
    }
    assert.deepEqual(exact(patched), twin, `case ${i}:\n${text}\nbecame\n${patched}`);
    const old = new Map<unknown, string>();
    collect(before, "", old);
    const now = new Map<unknown, string>();
    collect(after, "", now);
    for (const part of now.keys()) {
      const path = old.get(part);
      if (path === undefined) continue;
      const raw = parts.get(path);
      assert.ok(raw !== undefined && patched.includes(raw), `case ${i}: ${path} lost its bytes:\n${text}\n${patched}`);
    }
    assert.equal(patchJson(text, before, before), text);
  }
  assert.ok(refused > 0 && refused < cases / 10, `${refused} refused`);
});
