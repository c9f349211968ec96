import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { runBounded } from "../support/hostile.ts";
import { needs } from "../support/machine.ts";
import { ROOT } from "../support/simulated-host.ts";

const options = needs("build", "cc");
const PROGRAM = path.join(ROOT, "build/test/sluice");
const DOOR = "test/fixtures/doors/failing.door.ts";
const PART = "test/fixtures/doors/failing.part.ts";

/** `file:line` of the first line of a file that has this text. */
function lineOf(file: string, text: string): string {
  const index = fs
    .readFileSync(path.join(ROOT, file), "utf8")
    .split("\n")
    .findIndex((line) => line.includes(text));
  assert.ok(index >= 0, text);
  return `${file}:${index + 1}`;
}

/** The places in a stack, outermost last, without the names. */
function placesIn(stack: string): string[] {
  return stack.split("\n").flatMap((line) => /^ {4}at .* \((.*)\)$/.exec(line)?.[1] ?? []);
}

test("a defect is told in one line, with a stack of TypeScript files and lines", options, () => {
  execFileSync(process.execPath, ["--import", "tsx", "scripts/build.ts", "--test-doors"], {
    cwd: ROOT,
    stdio: "inherit",
  });
  const outer = [
    lineOf(DOOR, "return enter(sys"),
    lineOf("src/sys/enter.ts", "return main(sys);"),
    lineOf(DOOR, "return enter(sys"),
  ];
  const fail = (how: string) => {
    const { code, out, err } = runBounded(PROGRAM, ["failing", how], {});
    assert.deepEqual([out, code], ["", 70], err);
    const [first = "", ...stack] = err.split("\n");
    assert.equal(stack.pop(), "", "a last line that ends");
    return { first, places: placesIn(stack.join("\n")) };
  };
  const wording = /^sluice: E_INTERNAL: (.+); this is a defect of Sluice, please report it with the lines below$/;

  const here = fail("here");
  assert.match(here.first, wording);
  assert.deepEqual(here.places.slice(0, 5), [lineOf(DOOR, "const longer"), lineOf(DOOR, "return failHere"), ...outer]);

  const part = fail("part");
  assert.equal(wording.exec(part.first)?.[1], "RangeError: [ has no end");
  assert.deepEqual(part.places.slice(0, 7), [
    lineOf(PART, "throw new RangeError"),
    lineOf(PART, "return parse(text)"),
    PART, // what loads it
    lineOf(DOOR, "return failInPart"),
    ...outer,
  ]);

  // The two walls that hostile input must hit in place of the kernel's.
  const recursion = fail("recursion");
  assert.match(wording.exec(recursion.first)?.[1] ?? "", /^RangeError: Maximum call stack/);
  assert.equal(recursion.places[0], lineOf(DOOR, "return recurse(depth + 1)"));
  const memory = fail("memory");
  assert.match(wording.exec(memory.first)?.[1] ?? "", /^InternalError: out of memory/);
  assert.deepEqual(memory.places.slice(0, 2), [lineOf(DOOR, "kept.push"), lineOf(DOOR, "return fill()")]);

  assert.equal(wording.exec(fail("").first)?.[1], "a text");
});

test("no path of the machine that built it is in the product", options, () => {
  for (const program of [PROGRAM, path.join(ROOT, "build/sluice")]) {
    const text = fs.readFileSync(program, "latin1");
    // Of the checkout, the folders that are built from: its own path may be a part of what the product says.
    for (const folder of ["src", "build", "native", "node_modules", "test"]) {
      assert.ok(!text.includes(`${ROOT}/${folder}/`), `${program} has ${ROOT}/${folder}/`);
    }
  }
});
