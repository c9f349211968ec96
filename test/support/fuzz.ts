/** Hostile input from seeds: the same seed gives the same case in every engine. */

import assert from "node:assert/strict";
import { printable, SluiceError } from "../../src/sys/error.ts";
import { random } from "./random.ts";

export type Rand = () => number;

/** An integer in [0, limit). */
export function below(rand: Rand, limit: number): number {
  return Math.floor(rand() * limit);
}

export function pick<T>(rand: Rand, items: readonly T[]): T {
  return items[below(rand, items.length)] as T;
}

/** What breaks parsers: structure, escapes, control characters, half a surrogate pair, names with a meaning in JavaScript. */
const PIECES: readonly string[] = [
  ..."{}[]()<>\"'`,:;=/\\|&*!?%@#~-+._0a \t\n\r",
  "\0",
  "\u001b[2J",
  "\u009b",
  "\u202e",
  "\ufeff",
  "\ud800",
  "é",
  "😀",
  "__proto__",
  "constructor",
  "null",
  "-1",
  "1e400",
  "9007199254740993",
  "\\u0000",
  "\\ud800",
  "../",
  "<<: *a",
  "---\n",
];

/** A text with one to four changes: pieces put in, cut out, doubled, moved, nested, and the end cut off. */
export function damage(rand: Rand, text: string): string {
  let result = text;
  for (let changes = 1 + below(rand, 4); changes > 0; changes--) {
    const at = below(rand, result.length + 1);
    const end = at + below(rand, rand() < 0.8 ? 8 : 200);
    const part = result.slice(at, end);
    const [before, after] = [result.slice(0, at), result.slice(end)];
    switch (below(rand, 8)) {
      case 0:
        result = before + part + part + after;
        break;
      case 1:
        result = before + after;
        break;
      case 2:
        result = rand() < 0.3 ? before : after.slice(0, 40) + before + part + after;
        break;
      case 3: {
        const [open, close] = pick(rand, [
          ["[", "]"],
          ['{"a":', "}"],
          ["{a: ", "}"],
          ["- ", ""],
        ] as const);
        const depth = pick(rand, [1, 10, 70]);
        result = before + open.repeat(depth) + part + close.repeat(depth) + after;
        break;
      }
      default:
        result = before + pick(rand, PIECES) + (rand() < 0.5 ? part : "") + after;
    }
  }
  return result;
}

/** A copy of JSON data with one value, anywhere, replaced, removed, doubled or put elsewhere. */
export function damageData(rand: Rand, data: unknown): unknown {
  const copy: unknown = JSON.parse(JSON.stringify(data));
  const places: [holder: Record<string, unknown>, key: string][] = [];
  const visit = (value: unknown): void => {
    if (typeof value !== "object" || value === null) return;
    for (const key of Object.keys(value)) {
      places.push([value as Record<string, unknown>, key]);
      visit((value as Record<string, unknown>)[key]);
    }
  };
  visit(copy);
  const [holder, key] = pick(rand, places);
  const [other, otherKey] = pick(rand, places);
  const value = holder[key];
  switch (below(rand, 6)) {
    case 0:
      delete holder[key];
      break;
    case 1:
      holder[key] = other[otherKey] === holder ? null : JSON.parse(JSON.stringify(other[otherKey] ?? null));
      break;
    case 2:
      if (Array.isArray(holder)) holder.push(value);
      else holder[pick(rand, PIECES)] = value;
      break;
    case 3:
      holder[key] = typeof value === "string" ? damage(rand, value) : String(value);
      break;
    case 4:
      holder[key] = [value];
      break;
    default:
      holder[key] = pick<unknown>(rand, [null, "", 0, -1, 1.5, 2 ** 53, true, [], {}, [null], [[]], "\0"]);
  }
  return copy;
}

/** Not to be printed: what drives a terminal, or forges a line. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the characters
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/;
/** Whether nothing in a text drives the terminal that it is printed on; line feeds are allowed. */
export function isPrintable(text: string): boolean {
  return !UNPRINTABLE.test(text.replaceAll("\n", ""));
}

/** Characters. What is quoted in a message is cut. */
const MESSAGE_MAX = 3000;

/** What a refusal must be: a code, and one line that is fit to print. Throws where it is not. */
export function checkRefusal(code: unknown, message: string): void {
  assert.match(String(code), /^E_[A-Z][A-Z0-9_]*$/);
  assert.notEqual(code, "E_INTERNAL");
  assert.ok(!UNPRINTABLE.test(message), `a message that is not fit to print: ${JSON.stringify(message)}`);
  assert.ok(message.length <= MESSAGE_MAX, `a message of ${message.length} characters`);
}

/**
 * Runs `attempt` once for each seed from `firstSeed` on. It may give a value, or throw a SluiceError that is fit to be
 * shown; anything else fails the test with the seed and the case.
 *
 * @param attempt gets the seed's random numbers, and `show`, to which it says what the case is before it starts
 * @returns how many attempts were refused
 */
export function fuzz(
  firstSeed: number,
  cases: number,
  attempt: (rand: Rand, show: (input: unknown) => void) => void,
): number {
  let refused = 0;
  for (let seed = firstSeed; seed < firstSeed + cases; seed++) {
    let input: unknown;
    try {
      try {
        attempt(random(seed), (value) => {
          input = value;
        });
      } catch (thrown) {
        if (!(thrown instanceof SluiceError)) throw thrown;
        refused++;
        checkRefusal(thrown.code, printable(thrown.message)); // as errorLine shows it
      }
    } catch (thrown) {
      const { name, message, stack } = thrown as Error;
      assert.fail(`seed ${seed}: ${name}: ${message}\nof ${JSON.stringify(input)}\n${stack}`);
    }
  }
  return refused;
}
