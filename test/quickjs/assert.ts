/** `node:assert/strict` for the executable's engine: what unit tests use of it, as strict as Node's. */

class AssertionError extends Error {
  override readonly name = "AssertionError";
}

type Expected = RegExp | { code?: string; message?: string | RegExp; name?: string; [field: string]: unknown };

function show(value: unknown): string {
  const text = typeof value === "string" ? JSON.stringify(value) : value instanceof Error ? String(value) : undefined;
  return (text ?? JSON.stringify(value) ?? String(value)).slice(0, 2000);
}

function fail(message?: string): never {
  throw new AssertionError(message ?? "failed");
}

function same(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  if (a instanceof Map && b instanceof Map) return same([...a], [...b]);
  if (a instanceof Set && b instanceof Set) return same([...a], [...b]);
  if (a instanceof Error && b instanceof Error && (a.message !== b.message || a.name !== b.name)) return false;
  if (Array.isArray(a) && a.length !== (b as unknown[]).length) return false;
  const keys = Object.keys(a);
  if (keys.length !== Object.keys(b).length) return false;
  return keys.every((key) => Object.hasOwn(b, key) && same(a[key as never], b[key as never]));
}

function matches(thrown: unknown, expected: Expected): string | undefined {
  if (expected instanceof RegExp) return expected.test(String(thrown)) ? undefined : `does not match ${expected}`;
  for (const [field, wanted] of Object.entries(expected)) {
    const actual = (thrown as Record<string, unknown> | undefined)?.[field];
    const good = wanted instanceof RegExp ? typeof actual === "string" && wanted.test(actual) : same(actual, wanted);
    if (!good) return `its ${field} is ${show(actual)}, not ${wanted instanceof RegExp ? wanted : show(wanted)}`;
  }
  return undefined;
}

function ok(value: unknown, message?: string): asserts value {
  if (!value) fail(message ?? `${show(value)} is not truthy`);
}

const assert = Object.assign(ok, {
  ok,
  fail,
  equal(actual: unknown, expected: unknown, message?: string) {
    if (!Object.is(actual, expected)) fail(message ?? `${show(actual)} is not ${show(expected)}`);
  },
  notEqual(actual: unknown, expected: unknown, message?: string) {
    if (Object.is(actual, expected)) fail(message ?? `both are ${show(actual)}`);
  },
  deepEqual(actual: unknown, expected: unknown, message?: string) {
    if (!same(actual, expected))
      fail(message ?? `not equal:\n  actual   ${show(actual)}\n  expected ${show(expected)}`);
  },
  match(actual: string, expected: RegExp, message?: string) {
    if (typeof actual !== "string" || !expected.test(actual))
      fail(message ?? `${show(actual)} does not match ${expected}`);
  },
  throws(call: () => unknown, expected?: Expected, message?: string) {
    let thrown: unknown;
    try {
      call();
    } catch (e) {
      thrown = e;
      const difference = expected === undefined ? undefined : matches(e, expected);
      if (difference !== undefined) fail(message ?? `threw ${show(thrown)}, but ${difference}`);
      return;
    }
    fail(message ?? "did not throw");
  },
});

export default assert;
